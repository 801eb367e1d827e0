"""attacks/timing.py and copies.py: on-off, slow poison, clones, Sybil waves and framing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from tests.simulator.views import attacker, cosine, make_view

from covey_simulator.attack_kinds import KINDS
from covey_simulator.attack_settings import Attack


def test_on_off_alternates_from_its_start() -> None:
    mind = attacker("on-off", inner="sign-flip", scale=2.0, on_rounds=2, off_rounds=3, start_round=3)
    attacked = []
    for number in range(1, 10):
        view = make_view(number=number)
        sent = mind.updates(view)
        factor = -2.0 if sent[12] @ view.own[12] < 0 else 1.0
        assert np.allclose(sent[12], factor * view.own[12])
        attacked.append(factor < 0)
    assert attacked == [False, False, True, True, False, False, False, True, True]


def test_slow_poison_grows_along_one_direction_to_its_cap() -> None:
    mind = attacker("slow-poison", rate=0.1, scale=0.25, start_round=2)
    drifts = []
    for number in range(1, 6):
        view = make_view(number=number)
        drift = mind.updates(view)[12].astype(np.float64) - view.own[12]
        size = np.median([np.linalg.norm(update) for update in view.honest.values()])
        drifts.append(drift / size)
    assert [float(np.linalg.norm(drift)) for drift in drifts] == pytest.approx([0, 0.1, 0.2, 0.25, 0.25], abs=1e-5)
    against = -np.mean(list(make_view(number=2).honest.values()), axis=0)
    for drift in drifts[1:]:
        assert cosine(drift, against) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["clones", "sybil-wave"])
def test_clones_are_one_update_with_jitter(kind: str, jitter: float) -> None:
    view = make_view(dimension=4000)
    sent = attacker(kind, inner="ipm", jitter=jitter, scale=2.0).updates(view)
    base = -2 * np.mean(list(view.honest.values()), axis=0)
    assert sent.keys() == view.own.keys()
    for update in sent.values():
        assert np.linalg.norm(update - base) == pytest.approx(jitter * np.linalg.norm(base), rel=1e-3, abs=1e-3)
    for one, other in itertools.combinations(sent.values(), 2):
        assert cosine(one, other) == pytest.approx(1 / (1 + jitter**2), abs=0.05)
        assert (jitter == 0) == np.array_equal(one, other)


def test_a_sybil_wave_joins_late() -> None:
    wave = Attack(kind="sybil-wave", fraction=0.5, start_round=7)
    assert wave.joins_at == 7
    assert Attack(kind="sybil-wave", start_round=7, joins_at=3).joins_at == 3
    assert Attack(kind="sign-flip", start_round=7).joins_at == 1
    assert [kind for kind in KINDS if KINDS[kind].late] == ["sybil-wave"]


def test_framers_crowd_around_one_victim() -> None:
    mind = attacker("framing", manner="copy", jitter=0.3)
    for number in (1, 2):
        view = make_view(dimension=4000, number=number)
        sent = mind.updates(view)
        near = {index: cosine(sent[12], update) for index, update in view.honest.items()}
        victim = max(near, key=lambda index: near[index])
        assert near[victim] == pytest.approx(np.sqrt(1 - 0.3**2), abs=0.02)
        assert sorted(near.values())[-2] < 0.7
        assert np.linalg.norm(sent[12]) == pytest.approx(np.linalg.norm(view.honest[victim]), rel=0.02)
        assert cosine(sent[12], sent[13]) < 0.95
        if number == 1:
            first = victim
    assert victim == first


def test_a_push_pulls_away_from_the_mean_beside_the_victim() -> None:
    view = make_view(dimension=400)
    sent: dict[int, Any] = attacker("framing", manner="push", jitter=0.6).updates(view)
    assert np.array_equal(sent[12], sent[13])
    near = {index: cosine(sent[12], update) for index, update in view.honest.items()}
    victim = max(near, key=lambda index: near[index])
    assert near[victim] == pytest.approx(0.8, abs=1e-3)
    aside = sent[12] - 0.8 * view.honest[victim]
    assert cosine(aside, np.mean(list(view.honest.values()), axis=0)) < -0.3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_every_attack_waits_for_its_round_and_repeats_itself(kind: Any) -> None:
    early, late = make_view(number=2), make_view(number=3, history=(make_view(number=2).weights,) * 2)
    settings: dict[str, Any] = {"start_round": 3, **({"scale": 2.0} if kind == "scaling" else {})}
    if KINDS[kind].protocol:  # by default they send honest updates
        settings["inner"] = "ipm"
    mind = attacker(kind, **settings)
    assert {index: update.tolist() for index, update in mind.updates(early).items()} == {
        index: update.tolist() for index, update in early.own.items()
    }
    sent = mind.updates(late)
    assert sent.keys() == late.own.keys()
    assert all(update.dtype == np.float32 and update.shape == (40,) for update in sent.values())
    twin = attacker(kind, **settings)
    twin.updates(make_view(number=2))
    again = twin.updates(make_view(number=3, history=late.history))
    assert all(np.array_equal(sent[index], again[index]) for index in sent)
    # In so small a fleet the rule may let nothing pass that is worse than honest.
    assert kind == "rule-search" or not all(np.array_equal(sent[index], late.own[index]) for index in sent)


def test_an_attack_without_attackers_in_a_round_sends_nothing() -> None:
    for kind in KINDS:
        assert attacker(kind).updates(make_view(own={})) == {}
