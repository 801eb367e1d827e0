"""Recording the reference trace: five steps on one fixed batch, to be replayed by each device as a self-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from covey_modelkit.forward import Forward
from covey_protocol import uniform
from covey_protocol.bundle import TRACE_STEPS, Float32, Trace
from covey_protocol.bundle_manifest import INPUT, LABELS
from covey_protocol.errors import ConfigError
from covey_protocol.optimiser import Optimiser
from covey_protocol.plan import Plan

BATCH = 8
MOMENTUM = 0.9
# The first rate that does not blow the loss up is taken: a diverging trace would magnify harmless rounding
# differences between processors until no tolerance could tell them from a fault.
LEARNING_RATES = (0.1, 0.01, 0.001, 0.0001)


def record_trace(
    grad: onnx.ModelProto,
    infer: onnx.ModelProto,
    stored: Sequence[Float32],
    trainable: int,
    forward: Forward,
    target: str,
    noise: Sequence[Sequence[int]],
    loss: str,
) -> Trace:
    """Run the graphs and note what they say.

    Args:
        grad: The graph of gradients.
        infer: The graph of inference.
        stored: Initial parameters, then buffers.
        trainable: How many of them are parameters.
        forward: Says what goes in and comes out.
        target: What the output is held against.
        noise: Shapes of random inputs, for one sample.
        loss: Its name.

    Raises:
        ConfigError: The loss is not finite or grows at every learning rate.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, *forward.input_shape)).astype(np.float32)
    y = _targets(rng, forward, target, loss)
    stepper, inferrer = _session(grad), _session(infer)
    weights = np.concatenate([array.reshape(-1) for array in stored])
    for rate in LEARNING_RATES:
        plan = Plan(learning_rate=rate, momentum=MOMENTUM)
        losses, trained = _descend(stepper, stored, trainable, [x, *y], noise, plan)
        (output,) = _run(inferrer, [*_cut(trained, stored), x])
        steady = np.isfinite(losses).all() and np.isfinite(output).all() and max(losses) <= 1.5 * losses[0]
        if not steady:
            continue
        return Trace(
            batch=BATCH,
            x=x.astype("<f4").tobytes(),
            y=b"".join(array.astype("<i8" if target == LABELS else "<f4").tobytes() for array in y),
            learning_rate=rate,
            momentum=MOMENTUM,
            losses=losses,
            change=float(np.linalg.norm(trained.astype(np.float64) - weights)),
            output=output.astype("<f4").tobytes(),
        )
    raise ConfigError(
        f"training on random data does not converge at any learning rate down to {LEARNING_RATES[-1]}: "
        "scale the initial weights down"
    )


def _targets(rng: np.random.Generator, forward: Forward, target: str, loss: str) -> list[npt.NDArray[Any]]:
    if target == LABELS:
        return [(np.arange(BATCH) % forward.output_shape[0]).astype(np.int64)]
    if target == INPUT:
        return []
    values = rng.standard_normal((BATCH, *forward.output_shape))
    return [(values > 0 if loss == "binary-cross-entropy" else values).astype(np.float32)]


def _descend(
    session: ort.InferenceSession,
    stored: Sequence[Float32],
    trainable: int,
    batch: Sequence[npt.NDArray[Any]],
    noise: Sequence[Sequence[int]],
    plan: Plan,
) -> tuple[list[float], Float32]:
    weights = np.concatenate([array.reshape(-1) for array in stored])
    optimiser = Optimiser(weights, sum(array.size for array in stored[:trainable]), plan)
    source, drawn = uniform.bits(0), [np.empty((BATCH, *shape), np.float32) for shape in noise]
    losses = []
    for _ in range(TRACE_STEPS):
        for numbers in drawn:
            uniform.fill(source, numbers)
        *slopes, loss = _run(session, [*_cut(weights, stored), *batch, *drawn])
        optimiser.step(np.concatenate([slope.reshape(-1) for slope in slopes]))
        losses.append(float(loss))
    return losses, weights


def _cut(flat: Float32, like: Sequence[Float32]) -> list[Float32]:
    parts = np.split(flat, np.cumsum([array.size for array in like])[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, like, strict=True)]


def _run(session: ort.InferenceSession, inputs: Sequence[npt.NDArray[Any]]) -> list[Float32]:
    names = [entry.name for entry in session.get_inputs()]
    try:
        outputs: list[Float32] = session.run(None, dict(zip(names, inputs, strict=True)))
    except Exception as error:  # onnxruntime's errors share no other base
        raise ConfigError(f"onnxruntime {ort.__version__} cannot run the model: {error}") from error
    return outputs


def _session(graph: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"onnxruntime {ort.__version__} cannot load the model: {error}") from error
