"""BLAKE2b-256 by libsodium, separated by purpose.

Every use has a name of its own (``person``, at most 16 bytes), so a digest made for one purpose can never be taken for
one made for another.
"""

from __future__ import annotations

from nacl.bindings import (
    crypto_generichash_blake2b_final,
    crypto_generichash_blake2b_init,
    crypto_generichash_blake2b_salt_personal,
    crypto_generichash_blake2b_update,
)

DIGEST_BYTES = 32
_SHORT = 12


def digest(data: bytes, *, person: bytes, key: bytes = b"") -> bytes:
    """Return the 32-byte BLAKE2b digest of ``data`` for one purpose.

    Args:
        data: What is digested; several parts are best joined by ``cbor.encode`` so that their borders count.
        person: The purpose, at most 16 bytes.
        key: Up to 64 secret bytes that make it a keyed digest (RFC 7693, section 2.9).
    """
    return crypto_generichash_blake2b_salt_personal(data, digest_size=DIGEST_BYTES, key=key, person=person)


def content_digest(data: bytes | memoryview) -> bytes:
    """Return the digest by which blobs (models, bundles, masked vectors) are named and signed.

    Plain BLAKE2b-256 without a purpose, so that ``b2sum -l 256`` prints the same.
    """
    state = crypto_generichash_blake2b_init(digest_size=DIGEST_BYTES)
    crypto_generichash_blake2b_update(state, bytes(data))
    return crypto_generichash_blake2b_final(state)


def short(value: bytes) -> str:
    """Return the first digits of a digest for people to read; never compare by it."""
    return value.hex()[:_SHORT]
