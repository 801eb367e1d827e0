"""sketches.py: norms and directions, whatever finite numbers come in."""

from __future__ import annotations

import numpy as np
import pytest

from covey_aggregator.reputation.sketches import read, typical


def test_norms_and_directions() -> None:
    expected = np.array([[0.0, -1.0], [0.6, 0.8]])
    found = read({"b": np.array([3.0, 4.0]), "a": np.array([0.0, -2.0])}, ["a", "b"])
    assert found.names == ("a", "b") and found.buckets == 2
    np.testing.assert_allclose(found.norms, [2, 5])
    np.testing.assert_allclose(found.directions, expected)


def test_who_sends_nothing_has_no_direction() -> None:
    found = read({"a": np.zeros(3), "b": np.ones(3), "c": np.full(3, 1e-12)}, ["a", "b", "c"])
    assert not found.directions[[0, 2]].any()


def test_the_largest_numbers_overflow_nothing_and_hide_nobody() -> None:
    found = read({"a": np.full(4, 1.7e308), "b": np.ones(4), "c": np.ones(4)}, ["a", "b", "c"])
    assert np.isfinite(found.norms).all()
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1)


def test_the_typical_norm_is_not_that_of_riders() -> None:
    assert typical(np.array([0.0, 0.0, 0.0, 2.0, 4.0])) == 3
    assert typical(np.zeros(3)) == 0


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([np.inf, 0.0]), np.ones(3)])
def test_what_no_ring_recovers_is_refused(bad: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    with pytest.raises(ValueError, match="sketch"):
        read({"a": np.ones(2), "b": bad}, ["a", "b"])
