"""covey_agent.graphs: buffers take turns, batches of any size are bound, and threads never spin."""

from __future__ import annotations

import numpy as np
import pytest

from covey_agent.graphs import Graph, Stepper, tensor_type
from covey_modelkit import build_bundle, softmax
from covey_protocol.bundle import INFER_FILE, STEP_FILE, Float32, Int64

BUNDLE = build_bundle(softmax((4,), 3, seed=1), name="linear")
SHAPES = [tensor_type(spec.shape) for spec in BUNDLE.manifest.parameters]
BATCH, LABELS, SCALAR = tensor_type([None, 4]), tensor_type([None], "int64"), tensor_type([])
STEP = Graph(
    BUNDLE,
    STEP_FILE,
    1,
    inputs=[*SHAPES, *SHAPES, BATCH, LABELS, SCALAR, SCALAR],
    outputs=[*SHAPES, *SHAPES, SCALAR],
)
RNG = np.random.default_rng(0)
X: Float32 = RNG.standard_normal((20, 4)).astype(np.float32)
Y: Int64 = RNG.integers(0, 3, 20)


def stepper(batch: int = 8) -> Stepper:
    return Stepper(STEP, BUNDLE, BUNDLE.weights, batch=batch, learning_rate=0.1, momentum=0.9)


def unbound(rows: list[Int64]) -> tuple[list[float], Float32]:
    """The same steps by passing fresh arrays each time."""
    state = [np.array(view) for view in BUNDLE.manifest.views(BUNDLE.weights)]
    state += [np.zeros_like(view) for view in state]
    losses = []
    for part in rows:
        inputs = [*state, X[part], Y[part], np.array(0.1, np.float32), np.array(0.9, np.float32)]
        *state, loss = STEP.session.run(None, dict(zip(STEP.inputs, inputs, strict=True)))
        losses.append(float(loss))
    return losses, np.concatenate([part.reshape(-1) for part in state[: len(SHAPES)]])


@pytest.mark.parametrize("sizes", [[8], [8, 8], [8, 8, 3], [8, 3, 8, 3, 1], [1, 8, 3, 3, 8, 8, 1]])
def test_bound_steps_equal_unbound_steps(sizes: list[int]) -> None:
    rows = [RNG.permutation(20)[:size] for size in sizes]
    steps = stepper()
    losses = [steps.step(X, Y, part) for part in rows]
    expected_losses, expected_weights = unbound(rows)
    assert losses == expected_losses
    np.testing.assert_array_equal(steps.weights(), expected_weights)


def test_no_output_is_bound_onto_an_input() -> None:
    first, second = stepper()._buffers
    assert not np.shares_memory(first, second)


def test_the_weights_before_the_first_step_are_the_given_ones() -> None:
    np.testing.assert_array_equal(stepper().weights(), BUNDLE.weights)


def test_two_runs_do_not_disturb_each_other() -> None:
    rows = [np.arange(8), np.arange(8, 16)]
    one, two = stepper(), stepper()
    mixed = [(one.step(X, Y, part), two.step(X, Y, part)) for part in rows]
    assert [pair[0] for pair in mixed] == [pair[1] for pair in mixed] == unbound(rows)[0]


def test_threads_are_bounded_and_do_not_spin() -> None:
    graph = Graph(BUNDLE, INFER_FILE, 2, inputs=[*SHAPES, BATCH], outputs=[tensor_type([None, 3])])
    options = graph.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    for entry in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning"):
        assert options.get_session_config_entry(entry) == "0"
