"""covey_modelkit.trace: the recorded reference is one that other machines can meet."""

from __future__ import annotations

import numpy as np
import pytest
from tests.modelkit.helpers import classifier, node, normal, run

from covey_modelkit import build_bundle, softmax
from covey_protocol.bundle import Bundle
from covey_protocol.errors import ConfigError


def test_the_trace_is_what_the_graphs_give() -> None:
    bundle = build_bundle(softmax((6,), 4), name="test")
    trace = bundle.manifest.trace
    x, y = bundle.manifest.trace_batch()
    state = [np.array(view) for view in bundle.manifest.views(bundle.weights)]
    state += [np.zeros_like(view) for view in state]
    for expected in trace.losses:
        scalars = [np.array(trace.learning_rate, np.float32), np.array(trace.momentum, np.float32)]
        *state, loss = run(bundle.step, [*state, x, y, *scalars])
        assert float(loss) == expected
    trained = np.concatenate([part.reshape(-1) for part in state[:2]])
    assert np.linalg.norm(trained.astype(np.float64) - bundle.weights) == pytest.approx(trace.change)
    np.testing.assert_array_equal(run(bundle.infer, [*state[:2], x])[0], bundle.manifest.trace_logits())


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
