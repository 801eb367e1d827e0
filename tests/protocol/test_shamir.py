"""covey_protocol.shamir: any t shares restore a secret, fewer say nothing about it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import Entropy

from covey_protocol import shamir
from covey_protocol.errors import LocalError, MalformedError
from covey_protocol.shamir import ENTROPY_BYTES, ORDER, SCALAR_BYTES

entropy = Entropy("shamir")
SECRET = shamir.scalar(entropy(ENTROPY_BYTES))


def split(secret: bytes, n: int, t: int) -> dict[int, bytes]:
    return dict(enumerate(shamir.split(secret, n, t, entropy(ENTROPY_BYTES * (t - 1)))))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 32), st.data(), st.randoms(use_true_random=False))
def test_any_t_restore_and_fewer_do_not(n: int, data: st.DataObject, dice: random.Random) -> None:
    t = data.draw(st.integers(1, n))
    shares = split(SECRET, n, t)
    chosen = dice.sample(sorted(shares), t)
    assert shamir.combine({place: shares[place] for place in chosen}) == SECRET
    assert shamir.combine(shares) == SECRET
    if t > 1:
        assert shamir.combine({place: shares[place] for place in chosen[1:]}) != SECRET


def test_fewer_shares_fit_every_secret() -> None:
    # t − 1 shares of one secret are completed to shares of any other by the right t-th one: they tell nothing.
    shares, other = split(SECRET, 4, 3), shamir.scalar(entropy(ENTROPY_BYTES))
    points = {0: int.from_bytes(other, "little"), 1: _number(shares[0]), 2: _number(shares[1])}
    third = _interpolate(points, 3).to_bytes(SCALAR_BYTES, "little")
    assert shamir.combine({0: shares[0], 1: shares[1], 2: third}) == other


def test_shares_lie_on_one_polynomial() -> None:
    shares = split(SECRET, 6, 3)
    points = {place + 1: _number(shares[place]) for place in (0, 2, 5)}
    assert _interpolate(points, 0) == _number(SECRET)
    for place, share in shares.items():
        assert _interpolate(points, place + 1) == _number(share)


def test_a_wrong_share_restores_something_else() -> None:
    shares = split(SECRET, 5, 3)
    wrong = {**shares, 1: shares[2]}
    assert shamir.combine({place: wrong[place] for place in (0, 1, 3)}) != SECRET
    shifted = {place + 1: share for place, share in shares.items()}
    assert shamir.combine({place: shifted[place] for place in (1, 2, 3)}) != SECRET


def test_threshold_one_gives_everybody_the_secret() -> None:
    assert set(shamir.split(SECRET, 3, 1, b"")) == {SECRET}


@pytest.mark.parametrize("share", [b"", bytes(31), bytes(33), ORDER.to_bytes(32, "little"), b"\xff" * 32])
def test_combining_what_is_no_scalar(share: bytes) -> None:
    shares = split(SECRET, 3, 2)
    with pytest.raises(MalformedError, match="place 1") as caught:
        shamir.combine({0: shares[0], 1: share})
    assert caught.value.cause == "share"


def test_is_scalar() -> None:
    good = [SECRET, (1).to_bytes(32, "little"), (ORDER - 1).to_bytes(32, "little")]
    bad = [shamir.ZERO, ORDER.to_bytes(32, "little"), b"\xff" * 32, SECRET[:-1], SECRET + b"\0", b""]
    assert all(shamir.is_scalar(data) for data in good)
    assert not any(shamir.is_scalar(data) for data in bad)


def test_scalars_are_reduced() -> None:
    number = 2**500 + 12345
    assert _number(shamir.scalar(number.to_bytes(64, "little"))) == number % ORDER
    assert all(shamir.is_scalar(shamir.scalar(entropy(64))) for _ in range(50))


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_entropy_has_its_exact_size(size: int) -> None:
    with pytest.raises(LocalError):
        shamir.scalar(bytes(size))
    with pytest.raises(LocalError):
        shamir.split(SECRET, 4, 2, bytes(size))


@pytest.mark.parametrize(("n", "t"), [(3, 0), (3, 4), (0, 1), (3, -1)])
def test_impossible_thresholds(n: int, t: int) -> None:
    with pytest.raises(LocalError):
        shamir.split(SECRET, n, t, bytes(ENTROPY_BYTES * max(0, t - 1)))


def _number(scalar: bytes) -> int:
    return int.from_bytes(scalar, "little")


def _interpolate(points: dict[int, int], x: int) -> int:
    """Lagrange in plain integers."""
    total = 0
    for i, y in points.items():
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator, denominator = numerator * (x - j), denominator * (i - j)
        total += y * numerator * pow(denominator, -1, ORDER)
    return total % ORDER
