"""attacks/crowd.py: ALIE, IPM, min-max and min-sum against small computations of another make."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.simulator.views import attacker, make_view

from covey_simulator.attacks.crowd import little_z, squared_distances


# Values of the normal table: 24/26 = .9231, 49/80 = .6125, 49/60 = .8167, 9/18 = .5, 24/38 = .6316.
@pytest.mark.parametrize(
    ("n", "m", "z"),
    [(50, 24, 1.426), (100, 20, 0.286), (100, 40, 0.903), (20, 2, 0.0), (50, 12, 0.336), (10, 8, 0.0), (10, 9, 0.0)],
)
def test_alie_takes_z_from_n_and_m(n: int, m: int, z: float) -> None:
    assert little_z(n, m) == pytest.approx(z, abs=6e-4)


def test_alie_hides_within_the_spread() -> None:
    view = make_view(honest=26, malicious=24)
    sent = attacker("alie", honest=26, malicious=24).updates(view)
    assert sent.keys() == view.own.keys()
    for coordinate in (0, 7, 39):
        values = [float(update[coordinate]) for update in view.honest.values()]
        mean = sum(values) / 26
        spread = (sum((value - mean) ** 2 for value in values) / 26) ** 0.5
        assert sent[30][coordinate] == pytest.approx(mean - 1.426 * spread, abs=2e-3)
    harder = attacker("alie", honest=26, malicious=24, scale=3.0).updates(view)
    mean_update = np.mean(list(view.honest.values()), axis=0)
    assert np.allclose(harder[30] - mean_update, 3 * (sent[30] - mean_update), atol=1e-5)


def test_ipm_turns_the_mean_around() -> None:
    view = make_view()
    sent = attacker("ipm", scale=0.5).updates(view)
    assert np.allclose(sent[13], -0.5 * np.mean(list(view.honest.values()), axis=0), atol=1e-6)
    assert np.array_equal(sent[12], sent[15])


def deviation_of(name: str, crowd: Any) -> Any:
    mean = crowd.mean(axis=0)
    return {"unit": -mean / np.sqrt(mean @ mean), "sign": -np.sign(mean), "std": -crowd.std(axis=0)}[name]


@pytest.mark.parametrize("deviation", ["unit", "std", "sign"])
@pytest.mark.parametrize("kind", ["min-max", "min-sum"])
def test_min_max_and_min_sum_go_as_far_as_they_may(kind: str, deviation: str) -> None:
    view = make_view(seed=3)
    crowd = np.stack(list(view.honest.values())).astype(np.float64)
    sent = attacker(kind, deviation=deviation).updates(view)[14].astype(np.float64)
    push, mean = deviation_of(deviation, crowd), crowd.mean(axis=0)
    gamma = float((sent - mean) @ push / (push @ push))
    assert gamma > 0
    assert np.allclose(sent, mean + gamma * push, atol=1e-5)
    between = np.array([[((a - b) ** 2).sum() for b in crowd] for a in crowd])
    bound, far = (between.max(), max) if kind == "min-max" else (between.sum(axis=1).max(), sum)

    def reaches(factor: float) -> float:
        return float(far([((mean + factor * gamma * push - row) ** 2).sum() for row in crowd]))

    assert reaches(1 - 1e-5) <= bound
    assert reaches(1 + 1e-5) > bound
    assert reaches(1.0) == pytest.approx(bound, rel=1e-4)


def test_a_crowd_without_spread_gives_no_direction() -> None:
    same = np.ones(8, np.float32)
    view = dataclasses.replace(make_view(dimension=8), honest=dict.fromkeys(range(12), same))
    assert np.allclose(attacker("min-max").updates(view)[12], same)


def test_distances_are_those_of_pairs() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 7))
    found = squared_distances(rows)
    assert found[1, 3] == pytest.approx(((rows[1] - rows[3]) ** 2).sum())
    assert np.allclose(np.diag(found), 0, atol=1e-9)


def test_without_honest_devices_attackers_take_their_own_for_the_crowd() -> None:
    view = dataclasses.replace(make_view(), honest={})
    sent = attacker("ipm").updates(view)
    assert np.allclose(sent[12], -np.mean(list(view.own.values()), axis=0), atol=1e-6)
