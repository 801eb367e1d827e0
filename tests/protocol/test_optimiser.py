"""covey_protocol.optimiser: weights move as the papers say, in float32, and buffers are replaced."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from covey_protocol.optimiser import EPSILON, Optimiser
from covey_protocol.plan import Plan

STEPS, SIZE, BUFFERS = 12, 40_000, 3  # more than two tiles
RNG = np.random.default_rng(8)
START = RNG.standard_normal(SIZE + BUFFERS).astype(np.float32)
GRADIENTS = RNG.standard_normal((STEPS, SIZE + BUFFERS)).astype(np.float32)


def moved(plan: Plan) -> npt.NDArray[np.float32]:
    weights = START.copy()
    optimiser = Optimiser(weights, SIZE, plan)
    for gradient in GRADIENTS:
        optimiser.step(gradient.copy())
    return weights


def by_hand(plan: Plan) -> npt.NDArray[np.float64]:
    """The formulas of the papers, in float64."""
    first = START[:SIZE].astype(np.float64)
    w, m, v = first.copy(), np.zeros(SIZE), np.zeros(SIZE)
    for step, gradient in enumerate(GRADIENTS[:, :SIZE].astype(np.float64), start=1):
        g = gradient + plan.proximal * (w - first)
        if plan.optimiser == "sgd":
            m = plan.momentum * m + g + plan.weight_decay * w
            w = w - plan.learning_rate * m
            continue
        w = w - plan.learning_rate * plan.weight_decay * w
        m = plan.momentum * m + (1 - plan.momentum) * g
        v = plan.beta2 * v + (1 - plan.beta2) * g**2
        fair_m, fair_v = m / (1 - plan.momentum**step), v / (1 - plan.beta2**step)
        w = w - plan.learning_rate * fair_m / (np.sqrt(fair_v) + EPSILON)
    return w


SGD, ADAM = Plan(learning_rate=0.05, momentum=0.8), Plan(optimiser="adam", learning_rate=0.01, momentum=0.8, beta2=0.9)


@pytest.mark.parametrize("plan", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.3}, {"proximal": 2.0}, {"weight_decay": 0.1, "proximal": 0.5}])
def test_weights_move_as_the_formulas_say(plan: Plan, more: dict[str, float]) -> None:
    changed = msgspec.structs.replace(plan, **more)
    np.testing.assert_allclose(moved(changed)[:SIZE], by_hand(changed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", [SGD, ADAM], ids=["sgd", "adam"])
def test_buffers_are_replaced_and_never_moved(plan: Plan) -> None:
    decayed = msgspec.structs.replace(plan, weight_decay=1.0, proximal=1.0)
    np.testing.assert_array_equal(moved(decayed)[SIZE:], GRADIENTS[-1, SIZE:])


def test_sgd_is_the_same_bits_everywhere() -> None:
    """Each operation is one of IEEE 754, in an order that is written down."""
    weights, slow = START[:SIZE].copy(), np.zeros(SIZE, np.float32)
    for gradient in GRADIENTS[:, :SIZE]:
        slow = slow * np.float32(SGD.momentum) + gradient
        weights = weights - slow * np.float32(SGD.learning_rate)
    assert moved(SGD)[:SIZE].tobytes() == weights.tobytes()
