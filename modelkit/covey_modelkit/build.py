"""From an author's ONNX model to a bundle that devices can train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from covey_modelkit.differentiate import differentiate
from covey_modelkit.forward import BATCH, Forward, read_forward
from covey_modelkit.gradients import LOSSES
from covey_modelkit.graph import OPSET, GraphWriter, make_model
from covey_modelkit.trace import record_trace
from covey_protocol.bundle import Bundle, TensorSpec
from covey_protocol.errors import ConfigError, MalformedError


@dataclass(frozen=True)
class Graphs:
    """The trainable form of a model.

    Args:
        step: One step of gradient descent with momentum.
        infer: Logits of a batch.
        parameters: Names of the trained tensors, in the order in which both graphs take them.
    """

    step: onnx.ModelProto
    infer: onnx.ModelProto
    parameters: list[str]


def build_bundle(model: onnx.ModelProto, *, name: str, loss: str = "cross-entropy") -> Bundle:
    """Turn a classifier into a trainable bundle.

    The model's float32 weights become parameters. The graphs are run on this machine to record the reference trace.

    Args:
        model: Any ONNX model of supported operators, with its weights inside.
        name: Of the bundle: letters, digits, dot, dash and underscore, at most 64.
        loss: What to minimise.

    Raises:
        ConfigError: The model cannot be trained; the message names the node and what to do.
    """
    forward = read_forward(model)
    graphs = build_graphs(forward, loss=loss)
    stored = [numpy_helper.to_array(forward.constants[parameter]) for parameter in graphs.parameters]
    weights = np.concatenate([array.reshape(-1) for array in stored]).astype(np.float32)
    step, infer = (part.SerializeToString(deterministic=True) for part in (graphs.step, graphs.infer))
    if not np.isfinite(weights).all():
        raise ConfigError("the model's weights hold values that are not finite")
    trace = record_trace(step, infer, stored, forward.input_shape, forward.classes)
    try:
        return Bundle.create(
            name=name,
            loss=loss,
            input=TensorSpec(forward.input, forward.input_shape),
            classes=forward.classes,
            parameters=[
                TensorSpec(parameter, list(array.shape))
                for parameter, array in zip(graphs.parameters, stored, strict=True)
            ],
            opset=OPSET,
            trace=trace,
            step=step,
            infer=infer,
            weights=weights,
        )
    except MalformedError as error:
        raise ConfigError(f"the model does not fit into a bundle: {error}") from error


def build_graphs(forward: Forward, *, loss: str = "cross-entropy") -> Graphs:
    """Write the training step and the inference graph.

    Raises:
        ConfigError: An operator has no gradient, the loss is unknown, or there is nothing to train.
    """
    if loss not in LOSSES:
        raise ConfigError(f"loss {loss!r} is unknown; choose among {', '.join(sorted(LOSSES))}")
    writer = GraphWriter(forward.shapes)
    labels, rate, momentum = (writer.fresh(hint) for hint in ("labels", "learning_rate", "momentum"))
    value, seed = LOSSES[loss](writer, forward.logits, labels)
    gradients = differentiate(writer, forward.nodes, {forward.logits: seed}, forward.candidates)
    if not gradients:
        raise ConfigError("the model has no float32 initializer that influences its output: nothing to train")
    parameters = list(gradients)
    velocities, moved, new_velocities = [], [], []
    for parameter, gradient in gradients.items():
        velocity = writer.fresh(f"velocity.{parameter}")
        kept = writer.emit("Mul", [momentum, velocity], f"kept.{parameter}")
        new_velocity = writer.emit("Add", [kept, gradient], f"new_velocity.{parameter}")
        stride = writer.emit("Mul", [rate, new_velocity], f"stride.{parameter}")
        velocities.append(velocity)
        new_velocities.append(new_velocity)
        moved.append(writer.emit("Sub", [parameter, stride], f"new.{parameter}"))
    fixed = [tensor for name, tensor in forward.constants.items() if name not in gradients]
    shapes = [list(forward.constants[parameter].dims) for parameter in parameters]
    batch = _tensor(forward.input, [BATCH, *forward.input_shape])
    step = helper.make_graph(
        [*forward.nodes, *writer.nodes],
        "step",
        [
            *map(_tensor, parameters, shapes),
            *map(_tensor, velocities, shapes),
            batch,
            helper.make_tensor_value_info(labels, TensorProto.INT64, [BATCH]),
            _tensor(rate, []),
            _tensor(momentum, []),
        ],
        [*map(_tensor, moved, shapes), *map(_tensor, new_velocities, shapes), _tensor(value, [])],
        [*fixed, *writer.constants],
    )
    infer = helper.make_graph(
        forward.nodes,
        "infer",
        [*map(_tensor, parameters, shapes), batch],
        [_tensor(forward.logits, [BATCH, forward.classes])],
        fixed,
    )
    return Graphs(_checked(step), _checked(infer), parameters)


def _tensor(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = make_model(graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConfigError(f"the model's shapes do not fit together: {error}") from error
    return model
