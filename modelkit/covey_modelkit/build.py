"""From an author's ONNX model to a bundle that devices can train."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from covey_modelkit.differentiate import differentiate, influenced
from covey_modelkit.forward import BATCH, Forward, read_forward
from covey_modelkit.gradients import LOSSES
from covey_modelkit.graph import OPSET, GraphWriter, make_model
from covey_modelkit.trace import record_trace
from covey_modelkit.training import inference_form, training_form
from covey_protocol.bundle import Bundle, TensorSpec
from covey_protocol.bundle_manifest import INPUT, LABELS
from covey_protocol.errors import ConfigError, MalformedError

Target = Literal["labels", "values", "input"]


@dataclass(frozen=True)
class Graphs:
    """The trainable form of a model.

    Args:
        grad: Gradients, new buffers and the loss of a batch.
        infer: Output of a batch.
        parameters: Names of the trained tensors, in the order in which both graphs take them.
        buffers: Names of the running statistics, which come after the parameters.
        noise: Shapes, for one sample, of the random numbers that ``grad`` takes.
    """

    grad: onnx.ModelProto
    infer: onnx.ModelProto
    parameters: list[str]
    buffers: list[str]
    noise: list[list[int]]


def build_bundle(
    model: onnx.ModelProto,
    *,
    name: str,
    loss: str = "cross-entropy",
    autoencoder: bool = False,
    train: Sequence[str] = (),
    output: str | None = None,
) -> Bundle:
    """Turn a model into a trainable bundle.

    The model's float32 weights become parameters, the running statistics of its batch normalisations buffers. The
    graphs are run on this machine to record the reference trace.

    Args:
        model: Any ONNX model of supported operators, with its weights inside.
        name: Of the bundle: letters, digits, dot, dash and underscore, at most 64.
        loss: What to minimise: ``cross-entropy`` against labels; ``binary-cross-entropy``, ``mse`` or ``huber`` against
            numbers shaped like the output.
        autoencoder: The model is to reproduce its input, and data needs no targets.
        train: Patterns (``head.*``) of the weights to train; the others are frozen. By default all are trained.
        output: Which of the model's outputs to train, if it has several.

    Raises:
        ConfigError: The model cannot be trained; the message names the node and what to do.
    """
    if loss not in LOSSES:
        raise ConfigError(f"loss {loss!r} is unknown; choose among {', '.join(sorted(LOSSES))}")
    if autoencoder and loss == "cross-entropy":
        raise ConfigError("an autoencoder has no labels; choose --loss mse, huber or binary-cross-entropy")
    forward = read_forward(model, loss=loss, output=output)
    target: Target = "labels" if loss == "cross-entropy" else "input" if autoencoder else "values"
    _check_target(forward, target)
    graphs = build_graphs(forward, loss=loss, target=target, train=train)
    stored = [numpy_helper.to_array(forward.constants[name]) for name in (*graphs.parameters, *graphs.buffers)]
    stored = [np.ascontiguousarray(array, np.float32).reshape(array.shape) for array in stored]
    weights = np.concatenate([array.reshape(-1) for array in stored])
    if not np.isfinite(weights).all():
        raise ConfigError("the model's weights hold values that are not finite")
    specs = [TensorSpec(*pair) for pair in zip(_names(graphs), [list(array.shape) for array in stored], strict=True)]
    count = len(graphs.parameters)
    try:
        trace = record_trace(graphs.grad, graphs.infer, stored, count, forward, target, graphs.noise, loss)
        return Bundle.create(
            name=name,
            loss=loss,
            input=TensorSpec(forward.input, forward.input_shape),
            output=forward.output_shape,
            target=target,
            parameters=specs[:count],
            buffers=specs[count:],
            noise=graphs.noise,
            opset=OPSET,
            trace=trace,
            grad=graphs.grad.SerializeToString(deterministic=True),
            infer=graphs.infer.SerializeToString(deterministic=True),
            weights=weights,
        )
    except MalformedError as error:
        raise ConfigError(f"the model does not fit into a bundle: {error}") from error


def build_graphs(
    forward: Forward, *, loss: str = "cross-entropy", target: Target = "labels", train: Sequence[str] = ()
) -> Graphs:
    """Write the graphs of gradients and of inference.

    Raises:
        ConfigError: An operator has no gradient, or there is nothing to train.
    """
    writer = GraphWriter(forward.shapes, forward.values)
    wanted = _chosen(forward.candidates, train)
    form = training_form(writer, forward, wanted, influenced(forward.nodes, wanted))
    aim = forward.input if target == INPUT else writer.fresh("labels" if target == LABELS else "targets")
    value, seed = LOSSES[loss](writer, forward.output, aim)
    gradients = differentiate(writer, forward.nodes, {forward.output: seed}, wanted)
    if not gradients:
        raise ConfigError("the model has no float32 initializer that influences its output: nothing to train")
    parameters = list(gradients)
    state = [*parameters, *form.buffers]
    shapes = [list(forward.constants[name].dims) for name in state]
    fixed = [tensor for name, tensor in forward.constants.items() if name not in state]
    batch = _tensor(forward.input, [BATCH, *forward.input_shape])
    targets = {
        LABELS: [helper.make_tensor_value_info(aim, TensorProto.INT64, [BATCH])],
        INPUT: [],
    }.get(target, [_tensor(aim, [BATCH, *forward.output_shape])])
    grad = helper.make_graph(
        [*form.nodes, *writer.nodes],
        "grad",
        [
            *map(_tensor, state, shapes),
            batch,
            *targets,
            *(_tensor(name, [BATCH, *shape]) for name, shape in form.noise.items()),
        ],
        [*map(_tensor, [*gradients.values(), *form.buffers.values()], shapes), _tensor(value, [])],
        _used([*fixed, *writer.constants], [*form.nodes, *writer.nodes]),
    )
    nodes = inference_form(forward, form.buffers)
    infer = helper.make_graph(
        nodes,
        "infer",
        [*map(_tensor, state, shapes), batch],
        [_tensor(forward.output, [BATCH, *forward.output_shape])],
        _used(fixed, nodes),
    )
    return Graphs(_checked(grad), _checked(infer), parameters, list(form.buffers), list(form.noise.values()))


def _check_target(forward: Forward, target: Target) -> None:
    shape = forward.output_shape
    if target == LABELS and (len(shape) != 1 or shape[0] < 2):
        raise ConfigError(
            f"output {forward.output!r} has shape {['N', *shape]}; a classifier's is batch by classes, 2 at least. "
            "Choose another loss for a model of numbers, or of one yes or no (--loss binary-cross-entropy)"
        )
    if target == INPUT and shape != forward.input_shape:
        raise ConfigError(
            f"an autoencoder's output must be shaped like its input: {['N', *shape]} is not "
            f"{['N', *forward.input_shape]}"
        )


def _chosen(candidates: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the weights to train."""
    if not patterns:
        return list(candidates)
    for pattern in patterns:
        if not fnmatch.filter(candidates, pattern):
            raise ConfigError(f"no weight is called {pattern!r}; there are {', '.join(candidates) or 'none'}")
    return [name for name in candidates if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _names(graphs: Graphs) -> list[str]:
    return [*graphs.parameters, *graphs.buffers]


def _used(constants: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto]) -> list[onnx.TensorProto]:
    taken = {name for node in nodes for name in node.input}
    return [tensor for tensor in constants if tensor.name in taken]


def _tensor(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = make_model(graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConfigError(f"the model's shapes do not fit together: {error}") from error
    return model
