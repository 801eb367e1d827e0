"""history.py: averages of pairs that move only when both are there."""

from __future__ import annotations

import numpy as np
import pytest

from covey_aggregator.reputation.history import Cosines

X, Y = np.array([1.0, 0.0]), np.array([0.6, 0.8])


def test_the_average_is_corrected_for_its_youth_and_fades() -> None:
    cosines = Cosines(0.75)
    cosines.keep(cosines.after(["a", "b"], np.array([X, X])))
    page = cosines.after(["a", "b"], np.array([X, Y]))
    expected = (0.75 * 0.25 * 1 + 0.25 * 0.6) / (1 - 0.75**2)
    np.testing.assert_allclose(page.cosines(), [[0, expected], [expected, 0]], atol=1e-6)


def test_looking_ahead_changes_nothing() -> None:
    cosines = Cosines(0.75)
    cosines.keep(cosines.after(["a", "b"], np.array([X, X])))
    kept = cosines.encode()
    cosines.after(["a", "b", "c"], np.array([X, Y, Y]))
    assert cosines.encode() == kept


def test_absence_changes_nothing_between_a_pair() -> None:
    cosines = Cosines(0.75)
    cosines.keep(cosines.after(["a", "b"], np.array([X, X])))
    for _ in range(5):
        cosines.keep(cosines.after(["a", "c"], np.array([X, Y])))
    page = cosines.after(["a", "b", "c"], np.array([X, Y, Y]))
    assert page.rounds[0, 1] == 2 and page.rounds[0, 2] == 6 and page.rounds[1, 2] == 1
    assert page.cosines()[0, 1] == pytest.approx((0.75 * 0.25 + 0.25 * 0.6) / (1 - 0.75**2), abs=1e-6)
    assert list(page.met()) == [True, True, True]


def test_the_past_has_nothing_of_this_round_in_it() -> None:
    cosines = Cosines(0.75)
    page = cosines.after(["a", "b"], np.array([X, Y]))
    assert not page.past.any() and not page.met().any()
    cosines.keep(page)
    np.testing.assert_allclose(cosines.after(["a", "b"], np.array([X, X])).past[0, 1], 0.25 * 0.6, atol=1e-6)


def test_it_survives_a_restart_whatever_the_order_of_names() -> None:
    rng = np.random.default_rng(1)
    names = [f"d{n}" for n in range(6)]
    cosines = Cosines(0.75)
    for _ in range(3):
        order = [str(name) for name in rng.permutation(names)]
        cosines.keep(cosines.after(order, rng.normal(size=(6, 4))))
    again = Cosines(0.75, cosines.encode())
    assert again.encode() == cosines.encode()
    directions = rng.normal(size=(6, 4))
    np.testing.assert_array_equal(again.after(names, directions).averages, cosines.after(names, directions).averages)


def test_who_is_forgotten_takes_no_memory_and_who_is_renamed_keeps_the_past() -> None:
    cosines = Cosines(0.75)
    cosines.keep(cosines.after(["a", "b", "c"], np.array([X, X, Y])))
    cosines.forget(["b"])
    cosines.rename("a", "z")
    names, averages, rounds = cosines.encode()
    assert names == ["c", "z"] and len(averages) == 4 and len(rounds) == 1
    assert cosines.after(["c", "z"], np.array([X, X])).past[0, 1] == pytest.approx(0.25 * 0.6, abs=1e-6)
