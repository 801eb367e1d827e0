"""Pairwise masks and self-masks (Bonawitz et al. 2017, section 4), in Z_2^16.

Member i of a dealt list D publishes

    y_i = x_i + PRG(b_i) + Σ_{j ∈ D, j after i} PRG(s_ij) − Σ_{j ∈ D, j before i} PRG(s_ij)

where s_ij is a Diffie-Hellman secret of i and j and b_i is i's own. Over everybody the pairwise masks cancel. Who drops
out after dealing leaves pairwise masks behind, which the aggregator removes once t members have revealed their shares
of that member's masking secret; b_i is revealed only for those whose vectors are in the sum, never both.

An X25519 key is no scalar modulo L, so what is shared is a uniform scalar z and the key is derived from it; whoever
restores z derives the same key and compares it with the one that was published.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base

from covey_protocol import cbor, prg, shamir
from covey_protocol.digest import digest
from covey_protocol.errors import RefusedError
from covey_protocol.prg import Ring

_ANY_SECRET = bytes([1]) * 32


@dataclass(frozen=True)
class RoundSecrets:
    """What a member keeps in memory for one round, and nowhere else.

    Attributes:
        masking: Scalar z; the masking key pair derives from it.
        self_mask: Scalar β; the self-mask's seed b derives from it.
        sharing: X25519 secret key that only decrypts shares and is never shared itself.
        draw: r, this member's part in the shard's seed, opened when all vectors are fixed.
    """

    masking: bytes = field(repr=False)
    self_mask: bytes = field(repr=False)
    sharing: bytes = field(repr=False)
    draw: bytes = field(repr=False)

    ENTROPY_BYTES = 2 * shamir.ENTROPY_BYTES + 64

    @staticmethod
    def from_entropy(entropy: bytes) -> RoundSecrets:
        """Make the secrets from ``ENTROPY_BYTES`` uniform bytes."""
        cut = shamir.ENTROPY_BYTES
        return RoundSecrets(
            masking=shamir.scalar(entropy[:cut]),
            self_mask=shamir.scalar(entropy[cut : 2 * cut]),
            sharing=entropy[2 * cut : 2 * cut + 32],
            draw=entropy[2 * cut + 32 : 2 * cut + 64],
        )


def masking_key(scalar: bytes) -> bytes:
    """Return the X25519 secret key that belongs to the shared scalar z."""
    return digest(scalar, person=b"covey-mask-key")


def public_key(secret_key: bytes) -> bytes:
    """Return the X25519 public key of a secret key."""
    return crypto_scalarmult_base(secret_key)


def self_mask_seed(scalar: bytes) -> bytes:
    """Return b, the seed of the self-mask, that belongs to the shared scalar β."""
    return digest(scalar, person=b"covey-self-mask")


def self_mask_commitment(scalar: bytes) -> bytes:
    """Return what a member publishes in JOIN so that a wrong β is noticed when it is restored."""
    return seed_commitment(self_mask_seed(scalar))


def seed_commitment(seed: bytes) -> bytes:
    """Return the commitment that belongs to a restored seed b."""
    return digest(seed, person=b"covey-self-comm")


def check_public_key(key: bytes, whose: str) -> None:
    """Refuse a key with which everybody would arrive at the same secret.

    Raises:
        RefusedError: The key is a point of low order; the message says ``whose``.
    """
    try:
        crypto_scalarmult(_ANY_SECRET, key)
    except RuntimeError as error:
        raise RefusedError(f"{whose} is of low order", cause="low-order-key") from error


@dataclass(frozen=True)
class PairParty:
    """One end of a pair: roster place, name and masking public key."""

    place: int
    name: str
    key: bytes


def pair_seed(secret_key: bytes, mine: PairParty, theirs: PairParty, context: bytes) -> bytes:
    """Return s_ij, the same at both ends.

    Args:
        secret_key: My X25519 masking key.
        mine: My end.
        theirs: The other end.
        context: The encoded signing context of the round with its roster digest (``Context.encoded``).

    Raises:
        RefusedError: The other end's key is of low order, which would make the secret public.
    """
    try:
        shared = crypto_scalarmult(secret_key, theirs.key)
    except RuntimeError as error:
        raise RefusedError(f"masking key of {theirs.name!r} is of low order", cause="low-order-key") from error
    first, second = sorted((mine, theirs), key=lambda party: party.place)
    pair = [context, [first.name, first.key], [second.name, second.key]]
    return digest(cbor.encode(pair), key=shared, person=b"covey-pair-seed")


def mask(vector: Ring, self_seed: bytes, pairs: Iterable[tuple[int, bytes]], place: int) -> None:
    """Mask a vector in place.

    Args:
        vector: Shape (d,); becomes y_i.
        self_seed: b_i.
        pairs: (place, s_ij) of every other member of D.
        place: My own place.
    """
    added, subtracted = [self_seed], list[bytes]()
    for other, seed in pairs:
        (added if other > place else subtracted).append(seed)
    prg.change(vector, add=added, subtract=subtracted)


def unmask(total: Ring, self_seeds: Iterable[bytes], pairs: Iterable[tuple[int, int, bytes]]) -> None:
    """Take masks off a sum, in place.

    Args:
        total: Shape (d,); the sum of the survivors' masked vectors, becomes that of what they masked.
        self_seeds: b_i of every survivor.
        pairs: (survivor's place, dropped member's place, s_ij) of every survivor with everybody who dealt and then
            dropped out: the pairwise masks that nobody's vector cancels.
    """
    added, subtracted = list[bytes](), list(self_seeds)
    for survivor, dropped, seed in pairs:
        (subtracted if dropped > survivor else added).append(seed)
    prg.change(total, add=added, subtract=subtracted)
