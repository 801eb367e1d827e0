"""refusals.py: silence is weighed against how often a device falls silent anywhere."""

from __future__ import annotations

import math

import pytest

from covey_aggregator.reputation.refusals import Liveness, weight


def after(rounds: int, lost_every: int) -> Liveness:
    found = Liveness()
    for number in range(rounds):
        found = found.after(1, int(number % lost_every == 0))
    return found


def test_an_unknown_device_is_taken_for_a_good_one() -> None:
    assert Liveness().loss == 0.05 and Liveness().score == 1
    assert weight(Liveness()) == pytest.approx(math.log(10))


def test_the_worse_the_link_the_less_a_silence_says() -> None:
    weights = [weight(after(200, every)) for every in (1, 2, 3, 5, 10, 200)]
    assert weights == sorted(weights) and weights[0] == 0 and weights[-1] > 2


def test_an_honest_link_never_adds_up() -> None:
    """At a loss of one in five a round's silence weighs less than four rounds' answers take back."""
    assert 0.5 * weight(after(200, 5)) * 0.2 < 0.3 * 0.8


def test_old_losses_fade() -> None:
    found = after(50, 2)
    for _ in range(100):
        found = found.after(1, 0)
    assert found.score > 0.99
