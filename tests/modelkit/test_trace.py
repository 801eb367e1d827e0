"""covey_modelkit.trace: the recorded reference is one that other machines can meet."""

from __future__ import annotations

import numpy as np
import pytest
from tests.modelkit.helpers import classifier, node, normal, run

from covey_modelkit import build_bundle, softmax
from covey_protocol.bundle import Bundle
from covey_protocol.errors import ConfigError
from covey_protocol.optimiser import Optimiser
from covey_protocol.plan import Plan


def test_the_trace_is_what_the_graphs_give() -> None:
    bundle = build_bundle(softmax((6,), 4), name="test")
    trace = bundle.manifest.trace
    x, y = bundle.manifest.trace_batch()
    weights = bundle.weights.copy()
    plan = Plan(learning_rate=trace.learning_rate, momentum=trace.momentum)
    optimiser = Optimiser(weights, bundle.dimension, plan)
    for expected in trace.losses:
        *slopes, loss = run(bundle.grad, [*bundle.manifest.views(weights), x, y])
        optimiser.step(np.concatenate([slope.reshape(-1) for slope in slopes]))
        assert float(loss) == expected
    assert np.linalg.norm(weights.astype(np.float64) - bundle.weights) == pytest.approx(trace.change)
    outputs = run(bundle.infer, [*bundle.manifest.views(weights), x])
    np.testing.assert_array_equal(outputs[0], bundle.manifest.trace_output())


def test_the_trace_meets_every_class_it_can() -> None:
    _, y = build_bundle(softmax((6,), 4), name="test").manifest.trace_batch()
    assert set(y.tolist()) == {0, 1, 2, 3}


def scaled(factor: float) -> Bundle:
    weight = normal(np.random.default_rng(0), 3, 2)
    big = np.array(factor, np.float32)
    nodes = [node("MatMul", ["x", "w"], "h"), node("Mul", ["h", "big"], "logits")]
    return build_bundle(classifier(nodes, {"w": weight, "big": big}), name="test")


def test_a_touchy_model_gets_a_smaller_learning_rate() -> None:
    trace = scaled(30.0).manifest.trace
    assert trace.learning_rate < 0.1
    assert max(trace.losses) <= 1.5 * trace.losses[0]


def test_a_model_that_only_diverges_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not converge"):
        scaled(1e30)
