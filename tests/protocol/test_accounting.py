"""covey_protocol.accounting: never less than what is lost, and no more than need be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_protocol import accounting
from covey_protocol.accounting import ORDERS
from covey_protocol.errors import ConfigError
from covey_protocol.noise import calibrate

VECTORS = json.loads((Path(__file__).parent / "vectors" / "privacy.json").read_text())


def gaussian(multiplier: float, rounds: int) -> NDArray[np.float64]:
    return rounds * np.array(ORDERS) / (2 * multiplier**2)


def test_the_orders_are_those_of_the_vectors() -> None:
    assert list(ORDERS) == VECTORS["orders"]


@pytest.mark.parametrize("case", VECTORS["conversions"])
def test_the_conversion_is_that_of_another_accountant(case: dict[str, float]) -> None:
    spent = gaussian(case["multiplier"], int(case["rounds"]))
    assert accounting.epsilon(spent, case["delta"]) == pytest.approx(case["epsilon"], rel=1e-9)


@pytest.mark.parametrize("case", VECTORS["skellam"])
def test_skellam_noise_costs_no_less_than_its_whole_distribution_says(case: dict[str, float]) -> None:
    cost = accounting.skellam(case["shift"] ** 2, case["variance"], 1)
    found = accounting.epsilon(case["rounds"] * cost, case["delta"])
    assert found >= 0.999 * case["epsilon"]
    if case["variance"] >= 20:  # below, the bound on single rounds is loose; no task's noise is that small
        assert found <= 1.35 * case["epsilon"] + 0.1


@pytest.mark.parametrize("case", [case for case in VECTORS["gaussian"] if case["epsilon"] < 40])
def test_a_fine_ring_costs_little_more_than_gaussian_noise(case: dict[str, float]) -> None:
    noise = calibrate(case["multiplier"], n_max=10, dimension=650)
    found = accounting.epsilon(case["rounds"] * accounting.round_cost(noise, sketched=False), case["delta"])
    assert case["epsilon"] <= found <= 1.15 * case["epsilon"]


def divergence(order: int, shift: int, variance: int) -> float:
    """Return the Rényi divergence of Skellam noise, shifted and not, added up in long double."""
    rate, reach = variance / 2, int(14 * math.sqrt(variance)) + 40 * abs(shift) + 40
    numbers = np.arange(0, 2 * reach + int(rate) + 1)
    logs = numbers * math.log(rate) - rate - np.array([math.lgamma(number + 1) for number in numbers])
    poisson = np.exp(logs.astype(np.longdouble))
    both = np.correlate(poisson, poisson, "full")
    middle = len(poisson) - 1
    here = np.log(both[middle - reach : middle + reach + 1])
    there = np.log(both[middle - reach - shift : middle + reach + 1 - shift])
    return float(np.log(np.exp(order * there + (1 - order) * here).sum()) / (order - 1))


@pytest.mark.parametrize("variance", [2, 10, 100, 1000])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("order", [2, 3, 5, 8])
def test_the_bound_holds_for_one_coordinate(order: int, shift: int, variance: int) -> None:
    bound = float(accounting.skellam(shift**2, variance, 1)[ORDERS.index(order)])
    exact = divergence(order, shift, variance)
    assert exact <= bound * (1 + 1e-9)
    if variance >= 100 and shift * order <= 10:
        assert bound <= 1.2 * exact


def test_the_bound_is_the_papers() -> None:
    """Corollary 3.6, reckoned by hand for Δ² = Δ₁ = 1 and for Δ² = 9, Δ₁ = 6 in four coordinates."""
    assert accounting.skellam(1, 2, 1)[0] == pytest.approx(2 / 4 + min(9 / 16, 3 / 4))
    assert accounting.skellam(1, 1, 1)[1] == pytest.approx(3 / 2 + min(11 / 4, 3 / 2))
    assert accounting.skellam(9, 10, 4)[0] == pytest.approx(2 * 9 / 20 + min((27 + 36) / 400, 18 / 20))


@given(st.integers(1, 10**6), st.integers(2, 10**7), st.integers(1, 10**6))
def test_costs_are_sane(sensitivity: int, variance: int, dimension: int) -> None:
    cost = accounting.skellam(sensitivity, variance, dimension)
    assert (np.diff(cost) >= 0).all() and (cost > 0).all()
    assert (accounting.skellam(sensitivity, 2 * variance, dimension) <= cost).all()
    assert (accounting.skellam(sensitivity + 1, variance, dimension) >= cost).all()
    # What is assumed of a round of which only its multiplier is known is never too little.
    multiplier = math.sqrt(variance / sensitivity)
    assert (accounting.least_noise_cost(multiplier, 1) >= cost * (1 - 1e-12)).all()


def test_nothing_and_everything() -> None:
    assert accounting.epsilon(accounting.nothing(), 1e-5) == 0
    assert accounting.epsilon(accounting.everything(), 1e-5) == math.inf
    assert accounting.epsilon(accounting.least_noise_cost(0, 3), 1e-5) == math.inf
    assert accounting.epsilon(accounting.skellam(1, 0, 1), 1e-5) == math.inf
    assert accounting.epsilon(accounting.skellam(0, 0, 1), 1e-5) == 0
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            accounting.epsilon(accounting.nothing(), delta)


def test_a_sketch_costs_as_many_rounds_as_there_are_honest_members() -> None:
    noise = calibrate(2.0, n_max=20, dimension=650, a_min=18, sketch=8)
    assert noise.honest == 12
    plain, sketched = (accounting.round_cost(noise, sketched=told) for told in (False, True))
    assert np.allclose(sketched, 12 * plain, rtol=1e-3)


@settings(deadline=None, max_examples=40)
@given(
    st.floats(0.3, 20),
    st.sampled_from([1e-3, 1e-5, 1e-8]),
    st.integers(1, 2000),
    st.sampled_from([(0, 0), (8, 0), (0, 9)]),
)
def test_the_least_multiplier_is_enough_and_hardly_more(
    target: float, delta: float, rounds: int, extras: tuple[int, int]
) -> None:
    sketch, a_min = extras
    ring = {"n_max": 10, "dimension": 300, "a_min": a_min, "sketch": sketch}
    try:
        z = accounting.multiplier_for(target, delta, rounds, **ring)
    except ConfigError:
        return
    cost = accounting.round_cost(calibrate(z, **ring), sketched=bool(sketch))
    assert accounting.epsilon(rounds * cost, delta) <= target
    assert accounting.rounds_within(cost, target, delta) >= rounds
    less = accounting.round_cost(calibrate(0.985 * z, **ring), sketched=bool(sketch))
    assert accounting.epsilon(rounds * less, delta) > target


def test_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves 0 units"):
        accounting.multiplier_for(1, 1e-5, 10_000, n_max=10, dimension=650)
    with pytest.raises(ConfigError, match="no noise up to"):
        accounting.multiplier_for(1e-9, 1e-5, 1_000_000, n_max=10, dimension=650)


def test_rounds_within_count_what_went_before() -> None:
    cost = gaussian(4.0, 1)
    most = accounting.rounds_within(cost, 8, 1e-5)
    assert accounting.epsilon(most * cost, 1e-5) <= 8 < accounting.epsilon((most + 1) * cost, 1e-5)
    assert accounting.rounds_within(cost, 8, 1e-5, 10 * cost) == most - 10
    assert accounting.rounds_within(cost, 8, 1e-5, accounting.everything()) == 0
