"""model_guard.py: a server cannot show a device any model it likes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from covey_protocol.errors import RefusedError
from covey_protocol.model_guard import LOSS_SLACK, STEP_SLACK, ModelGuard

LAST = np.zeros(100, np.float32)


def moved(distance: float) -> np.ndarray:
    return np.full(100, distance / 10, np.float32)


def test_a_model_moves_as_far_as_its_rounds_allow() -> None:
    guard = ModelGuard(10)
    guard.check_step(LAST, moved(0.99 * STEP_SLACK * 3.0), reach=3.0, rounds=1)
    guard.check_step(LAST, moved(0.99 * STEP_SLACK * 3.0 * 4), reach=3.0, rounds=4)


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_a_model_that_jumps_is_refused(rounds: int) -> None:
    with pytest.raises(RefusedError, match="moved by") as refused:
        ModelGuard(10).check_step(LAST, moved(1.01 * STEP_SLACK * 3.0 * rounds), reach=3.0, rounds=rounds)
    assert refused.value.cause == "model-step"


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_model_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(RefusedError):
        ModelGuard(10).check_step(LAST, np.full(100, bad, np.float32), reach=3.0, rounds=1)


def test_a_round_number_that_does_not_grow_counts_as_one_round() -> None:
    with pytest.raises(RefusedError):
        ModelGuard(10).check_step(LAST, moved(1.01 * STEP_SLACK * 3.0), reach=3.0, rounds=-5)


def test_an_exploding_loss_is_refused_and_not_taken_as_usual() -> None:
    guard = ModelGuard(10)
    guard.check_loss(2.3)
    for _ in range(3):
        with pytest.raises(RefusedError, match="loss") as refused:
            guard.check_loss(1.01 * LOSS_SLACK * math.log(10))
        assert refused.value.cause == "model-loss"
    with pytest.raises(RefusedError):
        guard.check_loss(math.nan)
    guard.check_loss(2.0)


def test_a_task_that_begins_badly_is_judged_by_blind_guessing() -> None:
    guard = ModelGuard(2)
    guard.check_loss(0.9 * LOSS_SLACK * math.log(2))
    with pytest.raises(RefusedError):
        guard.check_loss(30.0)


def test_without_labels_the_first_loss_stands_for_guessing() -> None:
    guard = ModelGuard(0)
    for never in (math.nan, math.inf):
        with pytest.raises(RefusedError, match="loss"):
            guard.check_loss(never)
    guard.check_loss(100.0)
    guard.check_loss(1.0)
    guard.check_loss(0.9 * LOSS_SLACK * 100.0)
    with pytest.raises(RefusedError, match="loss"):
        guard.check_loss(1.01 * LOSS_SLACK * 100.0)
