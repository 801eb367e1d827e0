"""Recording the reference trace: five steps on one fixed batch, to be replayed by each device as a self-test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from covey_protocol.bundle import TRACE_STEPS, Float32, Int64, Trace
from covey_protocol.errors import ConfigError

BATCH = 8
MOMENTUM = 0.9
# The first rate that does not blow the loss up is taken: a diverging trace would magnify harmless rounding
# differences between processors until no tolerance could tell them from a fault.
LEARNING_RATES = (0.1, 0.01, 0.001, 0.0001)


def record_trace(
    step: bytes, infer: bytes, weights: Sequence[Float32], input_shape: Sequence[int], classes: int
) -> Trace:
    """Run the graphs and note what they say.

    Args:
        step: Bytes of the training step.
        infer: Bytes of the inference graph.
        weights: Initial parameters.
        input_shape: Of one sample.
        classes: Number of labels.

    Raises:
        ConfigError: The loss is not finite or grows at every learning rate.
    """
    x = np.random.default_rng(0).standard_normal((BATCH, *input_shape)).astype(np.float32)
    y = (np.arange(BATCH) % classes).astype(np.int64)
    stepper, inferrer = _session(step), _session(infer)
    for rate in LEARNING_RATES:
        losses, trained = _descend(stepper, weights, x, y, rate)
        logits = _run(inferrer, [*trained, x])[0]
        steady = np.isfinite(losses).all() and np.isfinite(logits).all() and max(losses) <= 1.5 * losses[0]
        if not steady:
            continue
        moved = [after.astype(np.float64) - before for after, before in zip(trained, weights, strict=True)]
        return Trace(
            batch=BATCH,
            x=x.astype("<f4").tobytes(),
            y=y.astype("<i8").tobytes(),
            learning_rate=rate,
            momentum=MOMENTUM,
            losses=losses,
            change=float(np.sqrt(sum(float(np.square(part).sum()) for part in moved))),
            logits=logits.astype("<f4").tobytes(),
        )
    raise ConfigError(
        f"training on random data does not converge at any learning rate down to {LEARNING_RATES[-1]}: "
        "scale the initial weights down"
    )


def _descend(
    session: ort.InferenceSession, weights: Sequence[Float32], x: Float32, y: Int64, rate: float
) -> tuple[list[float], list[Float32]]:
    parameters, velocities = list(weights), [np.zeros_like(weight) for weight in weights]
    losses = []
    for _ in range(TRACE_STEPS):
        scalars = [np.float32(rate), np.float32(MOMENTUM)]
        *state, loss = _run(session, [*parameters, *velocities, x, y, *map(np.asarray, scalars)])
        parameters, velocities = state[: len(weights)], state[len(weights) :]
        losses.append(float(loss))
    return losses, parameters


def _run(session: ort.InferenceSession, inputs: Sequence[npt.NDArray[np.generic]]) -> list[Float32]:
    names = [entry.name for entry in session.get_inputs()]
    try:
        outputs: list[Float32] = session.run(None, dict(zip(names, inputs, strict=True)))
    except Exception as error:  # onnxruntime's errors share no other base
        raise ConfigError(f"onnxruntime {ort.__version__} cannot run the model: {error}") from error
    return outputs


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"onnxruntime {ort.__version__} cannot load the model: {error}") from error
