"""covey_agent.graphs: weights and gradients have own buffers, batches of any size are bound, threads never spin."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_agent.graphs import Graph, Stepper
from covey_modelkit import build_bundle, softmax
from covey_protocol import uniform
from covey_protocol.bundle import GRAD_FILE, INFER_FILE, Float32, Int64
from covey_protocol.optimiser import Optimiser
from covey_protocol.plan import Plan

BUNDLE = build_bundle(softmax((4,), 3, seed=1), name="linear")
GRAD = Graph(BUNDLE, GRAD_FILE, 1)
PLAN = Plan(learning_rate=0.1, momentum=0.9)
RNG = np.random.default_rng(0)
X: Float32 = RNG.standard_normal((20, 4)).astype(np.float32)
Y: Int64 = RNG.integers(0, 3, 20)


def stepper(batch: int = 8, plan: Plan = PLAN) -> Stepper:
    return Stepper(GRAD, BUNDLE, BUNDLE.weights, batch=batch, plan=plan)


def unbound(rows: list[Int64], plan: Plan = PLAN) -> tuple[list[float], Float32]:
    """The same steps by passing fresh arrays each time."""
    weights = BUNDLE.weights.copy()
    optimiser, losses = Optimiser(weights, len(weights), plan), []
    for part in rows:
        inputs = [*BUNDLE.manifest.views(weights), X[part], Y[part]]
        *slopes, loss = GRAD.session.run(None, dict(zip(GRAD.inputs, inputs, strict=True)))
        optimiser.step(np.concatenate([slope.reshape(-1) for slope in slopes]))
        losses.append(float(loss))
    return losses, weights


@pytest.mark.parametrize("sizes", [[8], [8, 8], [8, 8, 3], [8, 3, 8, 3, 1], [1, 8, 3, 3, 8, 8, 1]])
def test_bound_steps_equal_unbound_steps(sizes: list[int]) -> None:
    rows = [RNG.permutation(20)[:size] for size in sizes]
    steps = stepper()
    losses = [steps.step(X, Y, part) for part in rows]
    expected_losses, expected_weights = unbound(rows)
    assert losses == expected_losses
    np.testing.assert_array_equal(steps.weights(), expected_weights)


def test_no_output_is_bound_onto_an_input() -> None:
    steps = stepper()
    assert not np.shares_memory(steps._weights, steps._gradient)


def test_the_weights_before_the_first_step_are_the_given_ones() -> None:
    np.testing.assert_array_equal(stepper().weights(), BUNDLE.weights)


def test_two_runs_do_not_disturb_each_other() -> None:
    rows = [np.arange(8), np.arange(8, 16)]
    one, two = stepper(), stepper()
    mixed = [(one.step(X, Y, part), two.step(X, Y, part)) for part in rows]
    assert [pair[0] for pair in mixed] == [pair[1] for pair in mixed] == unbound(rows)[0]


def test_threads_are_bounded_and_do_not_spin() -> None:
    graph = Graph(BUNDLE, INFER_FILE, 2)
    options = graph.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    for entry in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning"):
        assert options.get_session_config_entry(entry) == "0"


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_plan_says_how_weights_move(optimiser: str) -> None:
    plan = msgspec.structs.replace(PLAN, optimiser=optimiser, weight_decay=0.1, proximal=0.5)
    rows = [np.arange(8), np.arange(8, 16), np.arange(4)]
    steps = stepper(plan=plan)
    losses = [steps.step(X, Y, part) for part in rows]
    expected_losses, expected_weights = unbound(rows, plan)
    assert losses == expected_losses
    np.testing.assert_array_equal(steps.weights(), expected_weights)


def dropping() -> onnx.ModelProto:
    """A layer behind a dropout of 0.4."""
    graph = helper.make_graph(
        [
            helper.make_node("Dropout", ["x", "ratio"], ["kept"], name="drop"),
            helper.make_node("MatMul", ["kept", "w"], ["y"], name="layer"),
        ],
        "dropping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
            numpy_helper.from_array(np.array(0.4, np.float32), "ratio"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_dropout_and_reproduced_inputs() -> None:
    """What is dropped follows from the source of noise alone, batch by batch, and needs no targets."""
    bundle = build_bundle(dropping(), name="dropping", loss="mse", autoencoder=True)
    graph = Graph(bundle, GRAD_FILE, 1)

    def losses(seed: int) -> list[float]:
        plan = Plan(learning_rate=1e-9)
        steps = Stepper(graph, bundle, bundle.weights, batch=8, plan=plan, noise=uniform.bits(seed))
        return [steps.step(X, X, np.arange(size)) for size in (8, 8, 3)]

    source, expected = uniform.bits(5), []
    for size in (8, 8, 3):
        numbers = np.empty((size, 4), np.float32)
        uniform.fill(source, numbers)
        expected.append(float(np.mean((X[:size] * ((numbers >= 0.4) / 0.6) - X[:size]) ** 2)))
    np.testing.assert_allclose(losses(5), expected, rtol=1e-5)
    assert losses(5) == losses(5) != losses(6)
