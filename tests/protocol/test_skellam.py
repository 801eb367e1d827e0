"""covey_protocol.skellam: the numbers are distributed as they should be, and follow from their seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_protocol import prg, skellam
from covey_protocol.prg import BLOCK

COUNT = 200_000


def seed(number: int) -> bytes:
    return number.to_bytes(32, "little")


def drawn(variance: int, count: int = COUNT, number: int = 1) -> NDArray[np.int64]:
    vector = np.zeros(count, np.uint16)
    skellam.add_noise(vector, seed(number), variance)
    return vector.view(np.int16).astype(np.int64)


def chances(variance: int, reach: int) -> NDArray[np.float64]:
    """Return Skellam's distribution from -reach to reach, by adding up products of Poisson's, in floating point."""
    rate = variance / 2
    numbers = np.arange(0, 2 * reach + int(rate) + 1)
    logs = numbers * math.log(rate) - rate - np.array([math.lgamma(number + 1) for number in numbers])
    poisson = np.exp(logs)
    both = np.correlate(poisson, poisson, "full")
    middle = len(poisson) - 1
    return both[middle - reach : middle + reach + 1]


@pytest.mark.parametrize("variance", [2, 4, 14, 100, 1000, 20_000])
def test_draws_are_distributed_as_skellam(variance: int) -> None:
    """Pearson's chi-square over the numbers that are expected 20 times at least; 5 standard deviations are refused."""
    found, reach = drawn(variance), int(8 * math.sqrt(variance)) + 10
    expected = COUNT * chances(variance, reach)
    observed = np.bincount(np.clip(found, -reach, reach) + reach, minlength=2 * reach + 1)
    often = expected >= 20
    rest = COUNT - expected[often].sum(), COUNT - observed[often].sum()
    square = ((observed[often] - expected[often]) ** 2 / expected[often]).sum()
    assert abs(rest[1] - rest[0]) < 6 * math.sqrt(rest[0] + 20)
    freedom = int(often.sum())
    assert abs(square - freedom) < 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("variance", [2, 1000, 1_531_862])
def test_draws_have_the_moments_of_skellam(variance: int) -> None:
    found = drawn(variance, number=7).astype(np.float64)
    deviation = math.sqrt(variance)
    assert abs(found.mean()) < 5 * deviation / math.sqrt(COUNT)
    assert found.var() == pytest.approx(variance, rel=5 * math.sqrt((2 + 1 / variance) / COUNT))
    assert abs((found**3).mean()) < 5 * deviation**3 * math.sqrt((15 + 40 / variance) / COUNT)
    assert (found**4).mean() / variance**2 == pytest.approx(3 + 1 / variance, abs=0.12)


@pytest.mark.parametrize("rate", [1, 5, 300, 50_000])
def test_thresholds_are_poissons_distribution(rate: int) -> None:
    """Held against sums in floating point, wherever these are good for something."""
    table = skellam._table(rate)
    numbers = np.arange(table.low, table.low + len(table.exact))
    logs = numbers * math.log(rate) - rate - np.array([math.lgamma(number + 1) for number in numbers])
    assert np.allclose(np.cumsum(np.exp(logs)), [exact / 2**128 for exact in table.exact], rtol=1e-7, atol=1e-12)
    assert list(table.exact) == sorted(table.exact)
    assert table.exact[-1] > 2**128 - 2**30  # nothing of any weight is cut off
    assert table.low == 0 or table.exact[0] < 2**30


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 40, 3000]), st.integers(0, 2**16 - 1), st.integers(0, 2**32))
def test_the_guide_is_only_quicker(rate: int, first: int, number: int) -> None:
    """What 16 bits decide is what 128 of them say, whatever the others are."""
    table = skellam._table(rate)
    said = int(table.guide[first])
    for rest in (0, (1 << 112) - 1, number << 60):
        reached = sum(threshold <= (first << 112) | rest for threshold in table.exact)
        assert said in (reached, -1)


def test_a_number_on_a_threshold_is_looked_at_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 64 bits are a threshold's own; the other 64 decide, and both sides of it come about."""
    table = skellam._table(3)
    threshold = table.exact[4]
    high, low = threshold >> 64, threshold & (2**64 - 1)
    guide = np.array([high >> 48], np.uint16)

    def words(continued: int) -> Callable[[bytes, int], NDArray[np.uint16]]:
        return lambda _, length: np.frombuffer(continued.to_bytes(8, "little"), np.uint16)[:length]

    monkeypatch.setattr(prg, "expand", words((high & (2**48 - 1)) << 16))
    for rest, reached in ((low - 1, 4), (low, 5)):
        monkeypatch.setattr(skellam, "_derived", lambda *_, rest=rest: rest.to_bytes(8, "big") + bytes(24))
        assert skellam._draw(table, guide, seed(1)).tolist() == [reached]


def test_noise_follows_from_its_seed_and_from_nothing_else() -> None:
    assert np.array_equal(drawn(100, 1000), drawn(100, 1000))
    assert not np.array_equal(drawn(100, 1000), drawn(100, 1000, number=2))
    vector = np.full(1000, 65_530, np.uint16)
    skellam.add_noise(vector, seed(1), 100)
    assert np.array_equal((vector - 65_530).astype(np.uint16).view(np.int16), drawn(100, 1000))


def test_no_two_draws_share_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either side and of any block: both the first bits and what they are continued with."""
    seen = list[bytes]()
    derived = skellam._derived

    def noted(key: bytes, *purpose: int) -> bytes:
        seen.append(derived(key, *purpose))
        return seen[-1]

    monkeypatch.setattr(skellam, "_derived", noted)
    drawn(1000, 3 * BLOCK)
    assert len(seen) == len(set(seen)) == 2 * (1 + 2 * 3)


def test_noise_of_neighbours_and_of_blocks_is_independent() -> None:
    found = drawn(200, 3 * BLOCK).astype(np.float64) / math.sqrt(200)
    for lag in (1, 2, BLOCK, 2 * BLOCK):
        pairs = len(found) - lag
        assert abs(float(found[:-lag] @ found[lag:]) / pairs) < 5 / math.sqrt(pairs)


def test_sums_of_noise_are_skellam_again() -> None:
    """Three devices of variance 40 make one of variance 120, which is what the accounting counts on."""
    total = sum((drawn(40, number=number) for number in (1, 2, 3)), np.zeros(COUNT, np.int64))
    reach = 100
    expected = COUNT * chances(120, reach)
    observed = np.bincount(np.clip(total, -reach, reach) + reach, minlength=2 * reach + 1)
    often = expected >= 20
    square = ((observed[often] - expected[often]) ** 2 / expected[often]).sum()
    assert abs(square - often.sum()) < 5 * math.sqrt(2 * often.sum()) + 5


def test_no_variance_is_no_noise() -> None:
    assert not drawn(0).any()


@pytest.mark.parametrize("variance", [-2, 1, 3, 2 * skellam.RATE_MAX + 2])
def test_variances_that_cannot_be_had(variance: int) -> None:
    with pytest.raises(ValueError, match="even number"):
        drawn(variance, 10)
