"""Boxes that only the holder of one key can open: libsodium's sealed boxes, with the randomness passed in."""

from __future__ import annotations

from nacl.bindings import (
    crypto_box_easy,
    crypto_box_open_easy,
    crypto_box_PUBLICKEYBYTES,
    crypto_box_seal_open,
    crypto_scalarmult_base,
)
from nacl.encoding import RawEncoder
from nacl.exceptions import CryptoError
from nacl.hash import blake2b

from covey_protocol.errors import RefusedError

KEY_BYTES = crypto_box_PUBLICKEYBYTES
_NONCE_BYTES = 24


def seal_anonymously(plaintext: bytes, public: bytes, entropy: bytes) -> bytes:
    """Return what ``crypto_box_seal`` would: ephemeral public key, then a box under it.

    Args:
        plaintext: What only the holder of ``public``'s secret half may read.
        public: X25519 key.
        entropy: 32 uniform bytes, the ephemeral secret key.

    Raises:
        RefusedError: The public key is of low order.
    """
    ephemeral = crypto_scalarmult_base(entropy)
    try:
        return ephemeral + crypto_box_easy(plaintext, _nonce(ephemeral, public), public, entropy)
    except (CryptoError, RuntimeError) as error:
        raise RefusedError("the sealing key is of low order", cause="low-order-key") from error


def open_sealed(sealed: bytes, public: bytes, secret: bytes) -> bytes:
    """Open a sealed box.

    Raises:
        RefusedError: It was not sealed for this key, or was changed.
    """
    try:
        return crypto_box_seal_open(sealed, public, secret)
    except (CryptoError, RuntimeError, ValueError, TypeError) as error:
        raise RefusedError("a sealed box does not open", cause="sealed") from error


def reopen_sealed(sealed: bytes, public: bytes, entropy: bytes) -> bytes:
    """Open a sealed box with the ephemeral key it was made with, as its sender can for all to see.

    Args:
        sealed: The box.
        public: The key it was sealed for.
        entropy: The ephemeral secret key.

    Raises:
        RefusedError: It was not made with this key, or does not open with it.
    """
    ephemeral, box = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    if crypto_scalarmult_base(entropy) != ephemeral:
        raise RefusedError("a sealed box was made with another key", cause="sealed")
    try:
        return crypto_box_open_easy(box, _nonce(ephemeral, public), public, entropy)
    except (CryptoError, RuntimeError, ValueError, TypeError) as error:
        raise RefusedError("a sealed box does not open", cause="sealed") from error


def _nonce(ephemeral: bytes, public: bytes) -> bytes:
    return blake2b(ephemeral + public, digest_size=_NONCE_BYTES, encoder=RawEncoder)
