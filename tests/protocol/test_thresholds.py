"""covey_protocol.thresholds: the numbers that privacy and agreement hang on, for every roster there can be."""

from __future__ import annotations

import itertools

import pytest

from covey_protocol.thresholds import H_MIN, ROSTER_MAX, ROSTER_MIN, accepted_min, colluders, threshold

SIZES = range(ROSTER_MIN, ROSTER_MAX + 1)


@pytest.mark.parametrize(
    ("n", "c", "t", "a_min"),
    [(4, 1, 3, 4), (5, 1, 4, 4), (6, 1, 5, 4), (8, 2, 6, 5), (10, 3, 7, 6), (16, 5, 11, 8), (32, 10, 22, 13)],
)
def test_known_values(n: int, c: int, t: int, a_min: int) -> None:
    assert (colluders(n), threshold(n), accepted_min(n)) == (c, t, a_min)


@pytest.mark.parametrize("n", SIZES)
def test_honest_members_suffice_and_colluders_do_not(n: int) -> None:
    c, t = colluders(n), threshold(n)
    assert c < t <= n - c  # neither can colluders restore a secret alone, nor can they hold up the rest
    assert 3 * c < n
    assert accepted_min(n) - c >= H_MIN >= 3


@pytest.mark.parametrize("n", SIZES)
def test_two_certificates_need_an_honest_double_signer(n: int) -> None:
    # Any two sets of t of n members share at least 2t − n, which is more than the colluders.
    assert 2 * threshold(n) - n > colluders(n)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_by_trying_all_certificates(n: int) -> None:
    colluding = set(range(colluders(n)))
    signers = [set(members) for members in itertools.combinations(range(n), threshold(n))]
    assert all(first & second - colluding for first in signers for second in signers)
