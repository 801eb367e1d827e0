"""Gradients held against finite differences of an independent evaluation in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.modelkit.helpers import Array, classifier, normal, run
from tests.modelkit.reference import OPERATORS

from covey_modelkit.build import Target, build_graphs
from covey_modelkit.forward import Forward, read_forward

BATCH = 5
STEP = 1e-5


@dataclass(frozen=True)
class Case:
    """A model that uses an operator between its input, its parameters and the output.

    Args:
        nodes: From ``x`` and the parameters to ``logits``.
        shapes: Of the parameters.
        input_shape: Of one sample.
        scale: Of the parameters and the input; all above zero where ``positive``.
        batch: Samples.
    """

    nodes: Sequence[onnx.NodeProto]
    shapes: Mapping[str, tuple[int, ...]]
    input_shape: tuple[int, ...] = (3,)
    loss: str = "cross-entropy"
    positive: bool = False
    constants: Mapping[str, Array] = field(default_factory=dict)
    batch: int = BATCH

    def model(self) -> onnx.ModelProto:
        rng = np.random.default_rng(3)
        weights = {name: self.numbers(rng, *shape) for name, shape in self.shapes.items()}
        constants = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
            for name, value in self.constants.items()
        ]
        return classifier([*constants, *self.nodes], weights, input_shape=["N", *self.input_shape])

    def numbers(self, rng: np.random.Generator, *shape: int) -> Array:
        made = normal(rng, *shape)
        return np.abs(made) + np.float32(0.5) if self.positive else made


def numpy_loss(loss: str, output: Array, target: Array) -> float:
    """The losses by numpy, in float64."""
    if loss == "cross-entropy":
        partition = np.log(np.exp(output).sum(axis=1))
        return float(np.mean(partition - output[np.arange(len(target)), target]))
    if loss == "binary-cross-entropy":
        p = 1 / (1 + np.exp(-output))
        return float(-np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)))
    error = output - target
    if loss == "mse":
        return float(np.mean(error**2))
    return float(np.mean(np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)))


def reference_output(nodes: Sequence[onnx.NodeProto], forward: Forward, inputs: Mapping[str, Array]) -> Array:
    """Evaluate nodes by the ONNX reference implementation, in float64."""
    doubled = [
        numpy_helper.from_array(value.astype(np.float64) if value.dtype == np.float32 else value, name)
        for name, value in ((name, numpy_helper.to_array(tensor)) for name, tensor in forward.constants.items())
        if name not in inputs
    ]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in inputs],
        [helper.make_tensor_value_info(forward.output, TensorProto.DOUBLE, None)],
        doubled,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    result: Any = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, dict(inputs))
    return np.asarray(result[0])


@dataclass(frozen=True)
class Found:
    """What our graph says of a case, and the same by finite differences."""

    loss: float
    expected_loss: float
    slopes: dict[str, Array]
    expected: dict[str, Array]


def compare(
    case: Case,
    *,
    nodes: Sequence[onnx.NodeProto] | None = None,
    noise: Sequence[Array] = (),
    more: Mapping[str, Array] | None = None,
    along: bool = False,
    train: Sequence[str] = (),
) -> Found:
    """Build a case and find its gradients both ways.

    Args:
        case: The model.
        nodes: Evaluated as the reference instead of the forward graph, where training does otherwise.
        noise: What the training graph takes as random numbers.
        more: Further inputs of the reference.
        train: Which parameters to train; the others are frozen.
        along: Compare slopes along one random direction for each parameter instead of each element's.
    """
    forward = read_forward(case.model(), loss=case.loss)
    target: Target = "labels" if case.loss == "cross-entropy" else "values"
    graphs = build_graphs(forward, loss=case.loss, target=target, train=train)
    assert set(graphs.parameters) == set(train or case.shapes) - set(graphs.buffers)
    rng = np.random.default_rng(7)
    x = case.numbers(rng, case.batch, *case.input_shape)
    if target == "labels":
        y = rng.integers(0, forward.output_shape[0], case.batch)
    else:
        y = rng.random((case.batch, *forward.output_shape)).astype(np.float32)
    stored = {name: numpy_helper.to_array(forward.constants[name]) for name in (*graphs.parameters, *graphs.buffers)}
    outputs = run(graphs.grad, [*stored.values(), x, y, *noise])
    inputs = {name: value.astype(np.float64) for name, value in stored.items()}
    inputs |= {forward.input: x.astype(np.float64), **(more or {})}
    ran = nodes if nodes is not None else forward.nodes

    def loss(name: str, moved: Array) -> float:
        return numpy_loss(case.loss, reference_output(ran, forward, inputs | {name: moved}), y)

    slopes, expected = {}, {}
    for name, slope in zip(graphs.parameters, outputs, strict=False):
        start = inputs[name]
        if along:
            way = rng.standard_normal(start.shape)
            slopes[name] = np.array((slope * way).sum())
            expected[name] = np.array((loss(name, start + STEP * way) - loss(name, start - STEP * way)) / (2 * STEP))
        else:
            slopes[name], expected[name] = slope, np.zeros_like(start)
            for index in np.ndindex(start.shape):
                way = np.zeros_like(start)
                way[index] = STEP
                expected[name][index] = (loss(name, start + way) - loss(name, start - way)) / (2 * STEP)
    name = graphs.parameters[0]
    return Found(float(outputs[-1]), loss(name, inputs[name]), slopes, expected)


def check(found: Found, *, flat: Sequence[str] = ()) -> None:
    """Assert that both agree; parameters in ``flat`` may have no slope at all."""
    np.testing.assert_allclose(found.loss, found.expected_loss, rtol=1e-5)
    for name, slope in found.slopes.items():
        # A softmax ignores what all logits share; a case whose gradient vanishes would test nothing.
        assert name in flat or np.abs(found.expected[name]).max() > 1e-4, name
        np.testing.assert_allclose(slope, found.expected[name], rtol=2e-4, atol=2e-5, err_msg=name)
