"""The operator's key at rest, with or without a passphrase.

Without one the file is the 32 bytes of the Ed25519 seed. With one it is a CBOR map: the seed in a libsodium secretbox
whose key Argon2id (RFC 9106) makes from the passphrase, with the parameters that it takes. A file from elsewhere could
ask for any amount of memory and time, so the parameters are bounded before they are used.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.signing import SigningKey

from covey_aggregator.files import PRIVATE, replace, write_private
from covey_protocol.errors import ConfigError, LocalError, MalformedError
from covey_protocol.payload import Key, Payload, prepare, read, write

SEED_BYTES = 32
BYTES_MAX = 1024
"""Of a passphrase."""
_FILE_MAX = 4096
_MEMORY_MAX = 1 << 30
_WORK_MAX = 4 << 30  # passes times bytes: what libsodium calls sensitive
Ask = Callable[[], bytes]


class Cost(NamedTuple):
    """What Argon2id takes: passes, and bytes of memory."""

    passes: int
    memory: int


MODERATE = Cost(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
"""Libsodium's middle way: 256 MiB, less than a second on a computer of today."""


class SealedKey(Payload, frozen=True, kw_only=True):
    """The file of a key with a passphrase; ``public_key`` is checked against the seed when it is opened."""

    kind: Literal["covey-operator-key"]
    version: Literal[1]
    kdf: Literal["argon2id13"]
    passes: Annotated[int, msgspec.Meta(ge=argon2id.OPSLIMIT_MIN, le=16)]
    memory: Annotated[int, msgspec.Meta(ge=argon2id.MEMLIMIT_MIN, le=_MEMORY_MAX)]
    salt: Annotated[bytes, msgspec.Meta(min_length=argon2id.SALTBYTES, max_length=argon2id.SALTBYTES)]
    public_key: Key
    box: Annotated[bytes, msgspec.Meta(min_length=72, max_length=72)]  # nonce of 24, tag of 16, seed of 32

    def __repr__(self) -> str:
        return f"SealedKey(public_key={self.public_key.hex()!r})"


class KeyFile:
    """The operator's key file. The passphrase is asked for when something is to be signed, and once.

    Args:
        path: The file.
        ask: Returns the passphrase; without it a key that has one cannot be used.

    Raises:
        ConfigError: The file is missing, damaged or readable by others.
    """

    def __init__(self, path: Path, ask: Ask | None = None) -> None:
        self._path, self._ask = path, ask
        data = _read(path)
        self._seed: bytes | None = None
        self._sealed: SealedKey | None = None
        if len(data) == SEED_BYTES:
            self._seed = data
            self.public_key = bytes(SigningKey(data).verify_key)
            return
        try:
            self._sealed = read(SealedKey, data, max_bytes=_FILE_MAX)
        except MalformedError as error:
            raise ConfigError(f"{path}: neither a key nor a sealed one: {error}") from error
        self.public_key = self._sealed.public_key

    @property
    def has_passphrase(self) -> bool:
        """Whether the key is sealed."""
        return self._sealed is not None

    @property
    def key(self) -> SigningKey:
        """The key itself.

        Raises:
            ConfigError: The passphrase is wrong, or there is nobody to ask for it.
        """
        if self._seed is None:
            assert self._sealed is not None
            if self._ask is None:
                raise ConfigError(f"{self._path}: has a passphrase, and none was given")
            self._seed = _open(self._sealed, self._ask(), self._path)
        return SigningKey(self._seed)

    def protect(self, passphrase: bytes, cost: Cost | None = None) -> None:
        """Write the key anew under another passphrase, or without one if it is empty."""
        replace(self._path, _written(bytes(self.key), passphrase, cost), PRIVATE)


def make_key(path: Path, passphrase: bytes) -> None:
    """Make a key; without a passphrase if that is empty."""
    write_private(path, _written(bytes(SigningKey.generate()), passphrase, None))


def write_key(path: Path, key: SigningKey, passphrase: bytes) -> None:
    """Write a key in one step; without a passphrase if that is empty."""
    replace(path, _written(bytes(key), passphrase, None), PRIVATE)


def normal(text: str, where: str) -> bytes:
    """Return a passphrase as bytes, the same whichever way a keyboard composes its letters (Unicode's NFKC).

    Raises:
        ConfigError: It is too long.
    """
    data = unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass")
    if len(data) > BYTES_MAX:
        raise ConfigError(f"{where}: longer than {BYTES_MAX} bytes")
    return data


def read_passphrase(path: Path) -> bytes:
    """Return the passphrase that stands in the first line of a file, or comes out of a pipe.

    Raises:
        ConfigError: It cannot be read, is readable by others, or is empty.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise ConfigError(f"{path}: readable by others; run: chmod 600 {path}")
            line = file.readline(4 * BYTES_MAX).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no passphrase can be read from it") from error
    if not line:
        raise ConfigError(f"{path}: the passphrase in it is empty")
    return normal(line, str(path))


def _written(seed: bytes, passphrase: bytes, cost: Cost | None) -> bytes:
    if not passphrase:
        return seed
    passes, memory = cost or MODERATE
    salt = os.urandom(argon2id.SALTBYTES)
    return write(
        SealedKey(
            kind="covey-operator-key",
            version=1,
            kdf="argon2id13",
            passes=passes,
            memory=memory,
            salt=salt,
            public_key=bytes(SigningKey(seed).verify_key),
            box=bytes(_box(passphrase, salt, passes, memory).encrypt(seed)),
        )
    )


def _open(sealed: SealedKey, passphrase: bytes, path: Path) -> bytes:
    if sealed.passes * sealed.memory > _WORK_MAX:
        raise ConfigError(f"{path}: asks for {sealed.passes} passes over {sealed.memory >> 20} MiB; refused")
    try:
        seed = _box(passphrase, sealed.salt, sealed.passes, sealed.memory).decrypt(sealed.box)
    except CryptoError:
        raise ConfigError(f"{path}: the passphrase is wrong, or the file is damaged") from None
    if bytes(SigningKey(seed).verify_key) != sealed.public_key:
        raise ConfigError(f"{path}: damaged: the public key in it belongs to another key")
    return seed


def _box(passphrase: bytes, salt: bytes, passes: int, memory: int) -> SecretBox:
    try:
        key = argon2id.kdf(SecretBox.KEY_SIZE, passphrase, salt, opslimit=passes, memlimit=memory)
    except (RuntimeError, MemoryError):
        raise LocalError(f"the passphrase takes {memory >> 20} MiB of memory, and they are not free") from None
    return SecretBox(key)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data, mode = file.read(_FILE_MAX + 1), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: readable by others; run: chmod 600 {path}")
    return data


prepare(globals())
