"""Shamir's secret sharing over the scalar field of Ed25519 (Shamir 1979; order L = 2^252 + 277423…).

Secrets and shares are 32-byte little-endian scalars below L. Arithmetic on secrets is libsodium's
(``crypto_core_ed25519_scalar_*``); the Lagrange coefficients depend on public indices only and use Python integers.
Share ``i`` is the polynomial at x = i + 1, where i is the member's place in the roster.
"""

from __future__ import annotations

from collections.abc import Mapping

from nacl.bindings import (
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
)

from covey_protocol.errors import LocalError, MalformedError

ORDER = 2**252 + 27742317777372353535851937790883648493
SCALAR_BYTES = 32
ENTROPY_BYTES = 64
ZERO = bytes(SCALAR_BYTES)


def scalar(entropy: bytes) -> bytes:
    """Return a uniform scalar from 64 uniform bytes."""
    if len(entropy) != ENTROPY_BYTES:
        raise LocalError(f"a scalar takes {ENTROPY_BYTES} bytes of entropy, not {len(entropy)}")
    return crypto_core_ed25519_scalar_reduce(entropy)


def is_scalar(data: bytes) -> bool:
    """Say whether the bytes are a reduced, non-zero scalar."""
    return len(data) == SCALAR_BYTES and 0 < int.from_bytes(data, "little") < ORDER


def split(secret: bytes, n: int, t: int, entropy: bytes) -> list[bytes]:
    """Share a secret among ``n`` so that any ``t`` can restore it and fewer learn nothing.

    Args:
        secret: A scalar.
        n: Number of shares.
        t: Threshold, 1 ≤ t ≤ n.
        entropy: 64·(t − 1) uniform bytes for the polynomial's coefficients.

    Returns:
        ``n`` scalars; element i belongs to roster place i.
    """
    if not 1 <= t <= n:
        raise LocalError(f"threshold {t} of {n} shares")
    if len(entropy) != ENTROPY_BYTES * (t - 1):
        raise LocalError(f"{t - 1} coefficients take {ENTROPY_BYTES * (t - 1)} bytes of entropy, not {len(entropy)}")
    coefficients = [secret] + [
        crypto_core_ed25519_scalar_reduce(entropy[at : at + ENTROPY_BYTES])
        for at in range(0, len(entropy), ENTROPY_BYTES)
    ]
    return [_evaluate(coefficients, (i + 1).to_bytes(SCALAR_BYTES, "little")) for i in range(n)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Restore a secret from shares by roster place.

    Args:
        shares: At least t of them; with fewer, or with wrong ones, the result is some other scalar, which callers find
            out by comparing with what was published about the secret.

    Raises:
        MalformedError: A share is not a scalar.
    """
    places = sorted(shares)
    for place in places:
        if len(shares[place]) != SCALAR_BYTES or int.from_bytes(shares[place], "little") >= ORDER:
            raise MalformedError(f"share of roster place {place} is not a scalar", cause="share")
    total = ZERO
    for place, weight in zip(places, _lagrange_at_zero(places), strict=True):
        term = crypto_core_ed25519_scalar_mul(weight, shares[place])
        total = crypto_core_ed25519_scalar_add(total, term)
    return total


def _evaluate(coefficients: list[bytes], x: bytes) -> bytes:
    """Horner's rule."""
    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = crypto_core_ed25519_scalar_add(crypto_core_ed25519_scalar_mul(value, x), coefficient)
    return value


def _lagrange_at_zero(places: list[int]) -> list[bytes]:
    """Return λ_i = Π_{j≠i} x_j / (x_j − x_i) mod L for x = place + 1."""
    weights = []
    for i in places:
        numerator, denominator = 1, 1
        for j in places:
            if j != i:
                numerator = numerator * (j + 1) % ORDER
                denominator = denominator * (j - i) % ORDER
        weights.append((numerator * pow(denominator, -1, ORDER) % ORDER).to_bytes(SCALAR_BYTES, "little"))
    return weights
