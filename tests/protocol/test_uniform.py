"""covey_protocol.uniform: the same numbers everywhere, evenly spread."""

from __future__ import annotations

import numpy as np
import pytest

from covey_protocol import uniform


def drawn(*entropy: int, size: int = 100_000) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    out = np.empty(size, np.float32)
    uniform.fill(uniform.bits(*entropy), out)
    return out


FIRST = [14271106, 10686443, 8575447, 4526269, 5164520]


def test_the_stream_is_fixed() -> None:
    """Bundles are tested on devices by what the builder's machine drew."""
    assert (drawn(0, size=5) * 2**24).astype(int).tolist() == FIRST


def test_numbers_are_spread_evenly_below_one() -> None:
    numbers = drawn(3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert abs(counts - 5000).max() < 350  # five standard deviations


@pytest.mark.parametrize("entropy", [(0,), (1, 2), (2**256 - 1, 1)])
def test_another_seed_gives_other_numbers(entropy: tuple[int, ...]) -> None:
    assert (drawn(*entropy) != drawn(1)).any()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_any_size_is_filled(size: int) -> None:
    out = np.full((size, 3), np.nan, np.float32)
    uniform.fill(uniform.bits(1), out)
    assert np.isfinite(out).all()
