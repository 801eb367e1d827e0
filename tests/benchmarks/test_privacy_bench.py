"""benchmarks.privacy in small, and the audit that it rests on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import _canary, privacy
from benchmarks._canary import Finding, Game, play
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol import accounting


@pytest.mark.parametrize("game", [Game(1.0), Game(1.0, spread=False), Game(2.0, alone=True), Game(1.0, a_min=9)])
def test_no_canary_proves_more_than_is_claimed_and_weak_noise_is_noticed(game: Game) -> None:
    sound = play(game, 2000)
    assert sound.sound and sound.least > 0.3, "an attack that finds nothing says nothing"
    weak = play(game, 2000, privacy.quarter)
    assert not weak.sound


def test_a_budget_over_rounds_stands_too() -> None:
    found = play(Game(2.0, rounds=4), 600)
    assert found.sound and found.least > 0.3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("game", privacy.GAMES)
def test_the_long_form(game: Game) -> None:
    assert play(game, 20_000 // game.rounds).sound


def test_what_is_claimed_is_what_devices_pay() -> None:
    game = Game(1.5, a_min=9, rounds=3)
    noise = game.scale.noise
    assert noise is not None and noise.honest == 6
    cost = accounting.round_cost(noise, sketched=False)
    assert game.claimed == pytest.approx(accounting.epsilon(3 * cost, game.delta))
    assert not Finding(1.01, 1.0).sound


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(1, 400))
def test_the_upper_bound_is_clopper_and_pearsons(successes: int, trials: int) -> None:
    """So few successes or fewer have a chance of 2.5% at the bound, and the bound is never below what was seen."""
    successes = min(successes, trials)
    bound = _canary.upper_bound(successes, trials)
    assert bound >= successes / trials
    if successes < trials:
        below = sum(math.comb(trials, k) * bound**k * (1 - bound) ** (trials - k) for k in range(successes + 1))
        assert below == pytest.approx(0.025, rel=1e-3)


def test_all_tables_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    small = ["--devices", "60", "--watched", "20", "--rounds", "2", "--trials", "400", "--seeds", "1", "--no-goals"]
    assert privacy.main([*small, "--epsilons", "none,8", "--multipliers", "0,0.5", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [row["epsilon"] for row in found["curve"]] == [None, 8.0]
    assert [row["multiplier"] for row in found["detection"]] == [0.0, 0.5]
    assert found["detection"][1]["epsilon"] > 0
    assert len(found["audit"]) == len(privacy.GAMES)
    assert "proven at least" in capsys.readouterr().out


def test_missed_goals_are_said() -> None:
    row = {"game": {}, "sound": {"least": 3.0, "claimed": 2.0}, "quarter": {"least": 1.0, "claimed": 2.0}}
    curve: list[dict[str, Any]] = [{"epsilon": None, "large": [0.9]}, {"epsilon": 8.0, "large": [0.84]}]
    said = privacy._missed({"audit": [row], "curve": curve})
    assert len(said) == 3
    assert "costs 0.060 of accuracy" in said[0] and "more than is claimed" in said[1] and "says nothing" in said[2]
    assert np.isfinite(Game(1.0).claimed)
