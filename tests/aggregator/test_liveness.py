"""Groups close although devices drop out or refuse, with the real coordinator and real devices on simulated wires.

``./run bench liveness`` prints the figures for a hundred devices; here the fleets are small, and their drawn
misfortunes fixed by a seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.aggregator.liveness import Outcome, alternating, always, fifth, simulate, sometimes

from covey_protocol import topics

GOAL_DROPOUT, GOAL_REFUSERS = 0.85, 0.95


def refusing(devices: int, refusal: Any) -> dict[str, Any]:
    return {"refusers": dict.fromkeys(fifth(devices), refusal)}


def check_refusers(outcome: Outcome) -> None:
    assert outcome.share(10) >= GOAL_REFUSERS
    assert outcome.honest_out <= 0.02
    assert outcome.early <= 5


def test_a_fifth_of_drop_outs_costs_groups_but_no_epochs_and_keeps_nobody_out(tmp_path: Path) -> None:
    outcome = simulate(tmp_path, 30, 10, seed=1, dropout=0.2, reported=0.5)
    assert outcome.share(1) >= GOAL_DROPOUT
    assert outcome.early == 0
    assert outcome.honest_out <= 0.01


@pytest.mark.parametrize("refusal", [always(topics.UNMASK), alternating], ids=["unmask", "alternating"])
def test_groups_close_again_once_refusers_sit_out(tmp_path: Path, refusal: Any) -> None:
    outcome = simulate(tmp_path, 24, 12, seed=2, group_size=6, **refusing(24, refusal))
    assert outcome.share(1, 3) < GOAL_REFUSERS  # groups of six bear one
    check_refusers(outcome)


def test_groups_close_again_once_dealers_of_bad_shares_sit_out(tmp_path: Path) -> None:
    outcome = simulate(tmp_path, 20, 11, seed=3, group_size=5, poisoners=frozenset(fifth(20)))
    assert outcome.share(1, 1) < GOAL_REFUSERS
    check_refusers(outcome)
    assert outcome.refusers_out == 1.0


def test_a_device_that_dies_costs_no_windows(tmp_path: Path) -> None:
    """When all who break off are reported lost, rounds take as long as quiet ones, and a moment for each stage."""
    quiet = simulate(tmp_path / "quiet", 10, 5, seed=4)
    dying = simulate(tmp_path / "dying", 10, 5, seed=4, dropout=0.15)
    patient = simulate(tmp_path / "patient", 10, 5, seed=4, dropout=0.15, task_sleep=True)
    assert max(dying.seconds) < max(quiet.seconds) + 3 * 7
    assert max(patient.seconds) > max(quiet.seconds) + 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "poison"),
    [
        (always(topics.SURVIVORS), False),
        (always(topics.UNMASK), False),
        (sometimes(topics.SURVIVORS), False),
        (alternating, False),
        (None, True),
    ],
)
def test_a_hundred_devices_with_a_fifth_of_refusers(tmp_path: Path, refusal: Any, poison: bool) -> None:
    options: Any = {"poisoners": frozenset(fifth(100))} if poison else refusing(100, refusal)
    check_refusers(simulate(tmp_path, 100, 14, seed=5, **options))


@pytest.mark.slow
def test_a_hundred_devices_with_a_fifth_of_drop_outs(tmp_path: Path) -> None:
    outcome = simulate(tmp_path, 100, 20, seed=6, dropout=0.2, reported=0.5)
    assert outcome.share(1) >= GOAL_DROPOUT
    assert outcome.early <= 1
    assert outcome.honest_out <= 0.02
