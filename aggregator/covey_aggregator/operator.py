"""The operator's home: the key at the root of all trust, and the policy that it signs.

::

    operator.key       Ed25519 seed, mode 0600, under a passphrase if there is one (see ``passphrase``)
    operator.yaml      the fleet's name
    policy.yaml        floors, for people to edit
    policy.cbor        the policy as it was signed last
    delegation.cbor    the delegation that was signed last
    revocations.cbor   the revocation list that was signed last
    issued             every token that was ever signed: its digest and the device's name, one a line
    operator.next      the key that is to follow, while a change of the key is under way
    succession.cbor    how the key came to be this one, if it was changed; see ``rotating``
    succession.reply   the same, for servers
    answers/           replies by the digest of their request, so that no request is signed twice
    bundles/           bundles for requests of a server elsewhere

It may live on another machine and is never needed while rounds run. A server home holds its public half only. What was
signed last is kept so that versions only grow, whatever the clock says.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml
from nacl.signing import SigningKey

from covey_aggregator import succession_file
from covey_aggregator.files import (
    PRIVATE,
    flush_folder,
    locked,
    make_private_folder,
    read_yaml,
    replace,
    write_new,
)
from covey_aggregator.passphrase import Ask, KeyFile, make_key
from covey_aggregator.requests import Reply, reply_text
from covey_aggregator.succession_file import SignedSuccession
from covey_protocol import cbor, identity, topics
from covey_protocol.errors import ConfigError, CoveyError, MalformedError
from covey_protocol.policy import Policy, sign_policy, verify_policy
from covey_protocol.provisioning import Broker, Provisioning
from covey_protocol.succession import read_succession

KEY_FILE, NEXT_KEY_FILE = "operator.key", "operator.next"
SETTINGS_FILE = "operator.yaml"
POLICY_FILE = "policy.yaml"
SIGNED_POLICY, SIGNED_DELEGATION, ISSUED, LOCK = "policy.cbor", "delegation.cbor", "issued", "operator.lock"
REVOCATIONS_FILE, SUCCESSION_REPLY = "revocations.cbor", "succession.reply"
DELEGATION_SECONDS = 365 * 86400


class OperatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator's home says about itself."""

    fleet: str


@dataclass(frozen=True)
class OperatorHome:
    """An opened operator home."""

    path: Path
    fleet: str
    key_file: KeyFile = field(repr=False)
    policy: Policy
    succession: SignedSuccession | None = field(repr=False, default=None)

    @property
    def former(self) -> tuple[bytes, ...]:
        """The keys before this one, oldest first."""
        return self.succession.checked.former if self.succession else ()

    def check_current(self) -> None:
        """Sign nothing more by a key that another command has changed meanwhile.

        Raises:
            ConfigError: One has.
        """
        if KeyFile(self.path / KEY_FILE).public_key != self.public_key or is_unfinished(self.path):
            raise ConfigError(f"{self.path}: the operator's key was changed a moment ago; run this again")

    @property
    def key(self) -> SigningKey:
        """The key; asks for its passphrase the first time."""
        return self.key_file.key

    def protect(self, passphrase: bytes) -> None:
        """Put the key under another passphrase, or under none if it is empty."""
        with locked(self.path / LOCK):
            self.check_current()
            self.key_file.protect(passphrase)

    @property
    def public_key(self) -> bytes:
        """The trust anchor of the fleet."""
        return self.key_file.public_key

    def delegate(self, aggregator_key: bytes, known: int = 0) -> bytes:
        """Sign the delegation to an aggregator's key, for a year; its version is the time it was made, or more.

        Args:
            aggregator_key: Whose word the fleet is to take from now on, and nobody else's.
            known: The version that the server has.

        Raises:
            ConfigError: What was signed last is damaged.
        """
        key, now = self.key, int(time.time())
        with locked(self.path / LOCK):
            self.check_current()
            last = self.delegated()
            version = max(now, known + 1, last.version + 1 if last else 0)
            made = identity.issue_delegation(key, self.fleet, aggregator_key, version, now + DELEGATION_SECONDS)
            replace(self.path / SIGNED_DELEGATION, made)
        return made

    def delegated(self) -> identity.Delegation | None:
        """Return the delegation that was signed last.

        Raises:
            ConfigError: It is damaged.
        """
        data = self.kept(SIGNED_DELEGATION)
        if not data:
            return None
        try:
            return identity.verify_delegation(data, operator_key=self.public_key, fleet=self.fleet)
        except CoveyError as error:
            raise ConfigError(f"{self.path / SIGNED_DELEGATION}: {error}") from error

    def signed_policy(self, known: int = 0) -> bytes:
        """Return the policy as devices get it: what was signed last, or ``policy.yaml`` under a grown version.

        Args:
            known: The version that the server has.

        Raises:
            ConfigError: What was signed last is damaged.
        """
        with locked(self.path / LOCK):
            data, last = self.kept(SIGNED_POLICY), self._last_policy()
            if last is not None:
                same = msgspec.structs.replace(self.policy, version=last.version) == last
                if same and last.version >= max(self.policy.version, known):
                    return data
            version = max(self.policy.version, known + 1 if known else 0, last.version + 1 if last else 0)
            self.check_current()
            made = sign_policy(msgspec.structs.replace(self.policy, version=version), self.key, self.fleet)
            replace(self.path / SIGNED_POLICY, made)
        return made

    def policy_version(self) -> int:
        """Return the newest version of the policy: as it was signed last, or as it stands in ``policy.yaml``."""
        last = self._last_policy()
        return max(self.policy.version, last.version if last else 0)

    def _last_policy(self) -> Policy | None:
        data = self.kept(SIGNED_POLICY)
        if not data:
            return None
        try:
            return verify_policy(data, operator_key=self.public_key, fleet=self.fleet)
        except CoveyError as error:
            raise ConfigError(f"{self.path / SIGNED_POLICY}: {error}") from error

    def kept(self, file: str) -> bytes:
        """Return what was kept in a file, nothing if it is not there.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            return (self.path / file).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ConfigError(f"{self.path / file}: cannot be read: {error.strerror}") from error

    def provision(
        self,
        device: str,
        *,
        profile: str,
        seconds: int,
        delegation: bytes,
        broker: Broker,
        revocations: bytes = b"",
    ) -> Provisioning:
        """Make a one-time token for a device and everything that goes with it.

        Args:
            device: Its name.
            profile: Its firmware profile.
            seconds: How long the token is good for; 0 for ever.
            delegation: The aggregator's.
            broker: Where to connect.
            revocations: The signed head of the newest revocation list, if there is one.

        Raises:
            ConfigError: The name cannot stand in a topic.
        """
        topics.check_device(device)
        secret = SigningKey.generate()
        not_after = int(time.time()) + seconds if seconds else 0
        key = self.key
        with locked(self.path / LOCK):  # no change of the key comes between the token and its place on the list
            self.check_current()
            token = identity.issue_token(
                key, self.fleet, device, token_key=bytes(secret.verify_key), profile=profile, not_after=not_after
            )
            self._note_issued(identity.token_id(token), device)
        return Provisioning(
            fleet=self.fleet,
            device=device,
            profile=profile,
            operator_key=self.public_key,
            token=token,
            token_secret=bytes(secret),
            delegation=delegation,
            policy=self.signed_policy(),
            broker=broker,
            made=int(time.time()),
            revocations=revocations,
        )

    def issued(self) -> list[str]:
        """Return every token that was ever signed: its digest in hex and the device's name, with a space between."""
        return self.kept(ISSUED).decode("ascii", "replace").splitlines()

    def _note_issued(self, token: bytes, device: str) -> None:
        """Remember a token before anybody gets it: whoever changes the operator's key has to list them all."""
        handle = os.open(self.path / ISSUED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        with os.fdopen(handle, "ab") as file:
            file.write(f"{token.hex()} {device}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def init_operator(path: Path, fleet: str, *, new: Ask | None = None, ask: Ask | None = None) -> OperatorHome:
    """Make an operator home; running it again changes nothing.

    Args:
        path: Where.
        fleet: The fleet's name.
        new: Returns the passphrase of a new key, empty for none; without it a new key has none.
        ask: Returns the passphrase of a key that is there.

    Raises:
        ConfigError: The home exists for another fleet, or the name cannot stand in a topic.
    """
    topics.check_name(fleet, "fleet")
    make_private_folder(path)
    if (path / SETTINGS_FILE).exists():
        existing = open_operator(path, ask)
        if existing.fleet != fleet:
            raise ConfigError(f"{path}: is the operator home of fleet {existing.fleet!r}, not {fleet!r}")
        return existing
    if not (path / KEY_FILE).exists():
        make_key(path / KEY_FILE, new() if new else b"")
    policy = yaml.safe_dump(msgspec.to_builtins(Policy()), sort_keys=False)
    write_new(path / POLICY_FILE, f"# Floors that no aggregator can lower; see docs/configuration.md\n{policy}")
    write_new(path / SETTINGS_FILE, yaml.safe_dump({"fleet": fleet}))
    return open_operator(path, ask)


def open_operator(path: Path, ask: Ask | None = None) -> OperatorHome:
    """Open an operator home.

    Args:
        path: Where it is.
        ask: Returns the key's passphrase; called when something is to be signed and the key has one.

    Raises:
        ConfigError: It is none, or a file in it is damaged; the message names it.
    """
    if not (path / SETTINGS_FILE).exists():
        raise ConfigError(f"{path}: no operator home; make one with `covey operator init {path} --fleet NAME`")
    settings = read_yaml(path / SETTINGS_FILE, OperatorSettings)
    policy = _read_policy(path / POLICY_FILE)
    topics.check_name(settings.fleet, f"{path / SETTINGS_FILE}: fleet")
    _finish(path, settings.fleet)
    key = KeyFile(path / KEY_FILE, ask)
    succession, _ = succession_file.read(path, operator_key=key.public_key, fleet=settings.fleet)
    if succession is not None and succession.key != key.public_key:
        raise ConfigError(f"{path / KEY_FILE}: has been followed by another key; this is an old copy")
    return OperatorHome(path, settings.fleet, key, policy, succession)


def is_unfinished(path: Path) -> bool:
    """Whether a change of the key counts already, and the home has not been brought after it.

    Raises:
        ConfigError: A file of it is damaged.
    """
    if not (path / NEXT_KEY_FILE).exists() or not (path / succession_file.FILE).exists():
        return False
    fleet = read_yaml(path / SETTINGS_FILE, OperatorSettings).fleet
    try:
        found = read_succession(_message(path), fleet)
    except CoveyError as error:
        raise ConfigError(f"{path / succession_file.FILE}: {error}") from error
    return found.key == KeyFile(path / NEXT_KEY_FILE).public_key


def _message(path: Path) -> bytes:
    match cbor.decode((path / succession_file.FILE).read_bytes(), max_bytes=succession_file.BYTES_MAX):
        case [bytes(message), bytes(), bytes()]:
            return message
    raise MalformedError("not the parts of a succession")


def _finish(path: Path, fleet: str) -> None:
    """Bring a home after a change of its key that counts already; may be cut off and repeated at any step."""
    if not is_unfinished(path):
        return
    with locked(path / LOCK):
        if not is_unfinished(path):
            return
        key = KeyFile(path / NEXT_KEY_FILE).public_key
        found, _ = succession_file.read(path, operator_key=key, fleet=fleet)
        assert found is not None
        words = found.checked.words
        replace(path / SIGNED_DELEGATION, words.delegation)
        replace(path / SIGNED_POLICY, words.policy)
        if words.revocations:
            replace(path / REVOCATIONS_FILE, cbor.encode([words.revocations, found.revoked]), PRIVATE)
        reply = Reply(fleet=fleet, operator_key=key, succession=found.encoded())
        replace(path / SUCCESSION_REPLY, reply_text(reply).encode())
        destroy(path / KEY_FILE)
        (path / NEXT_KEY_FILE).replace(path / KEY_FILE)
        flush_folder(path)


def destroy(path: Path) -> None:
    """Overwrite a key with zeros and remove it, if it is there; on flash storage old blocks may outlive this."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    flush_folder(path.parent)


def _read_policy(path: Path) -> Policy:
    """Read the policy; what a newer peer may send is tolerated, but what an operator misspells is not."""
    fields = read_yaml(path, dict[str, object])
    unknown = sorted(set(fields) - set(Policy.__struct_fields__))
    if unknown:
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}; there are {', '.join(Policy.__struct_fields__)}")
    return read_yaml(path, Policy)
