"""Operators that bring tensors to a common scale, and Dropout, which like them trains otherwise than it infers."""

from __future__ import annotations

from collections.abc import Sequence

from covey_modelkit.gradients.registry import Call, Gradients, gradient


@gradient("Softmax")
def _softmax(call: Call) -> Gradients:
    axis = call.attribute("axis", -1)
    weighted = call.emit("Mul", call.gradient, call.output)
    total = call.sum(weighted, [axis], keep=True)
    return {0: call.emit("Sub", weighted, call.emit("Mul", call.output, total))}


@gradient("LogSoftmax")
def _log_softmax(call: Call) -> Gradients:
    total = call.sum(call.gradient, [call.attribute("axis", -1)], keep=True)
    return {0: call.emit("Sub", call.gradient, call.emit("Mul", call.emit("Exp", call.output), total))}


@gradient("Dropout")
def _dropout(call: Call) -> Gradients:
    mask = call.saved("mask")
    return {0: call.gradient if mask is None else call.emit("Mul", call.gradient, mask)}


@gradient("BatchNormalization")
def _batch_normalization(call: Call) -> Gradients:
    shape = call.shape(0)
    axes = [axis for axis in range(len(shape)) if axis != 1]
    (channels,) = call.sizes((shape[1],))
    wide = [1, channels, *[1] * (len(shape) - 2)]
    centred, scatter = call.saved("centred"), call.saved("inverse deviation")
    trains = centred is not None and scatter is not None
    if centred is None or scatter is None:
        centred, scatter = _fixed(call, wide)
    found, slope = {}, call.gradient
    product = call.emit("Mul", slope, centred) if trains or 1 in call.wanted else ""
    if 1 in call.wanted:
        along = call.emit("Mul", product, scatter) if not trains else product
        total = call.sum(along, axes, keep=True)
        total = call.emit("Mul", total, scatter) if trains else total
        found[1] = call.reshape(total, [channels])
    if 2 in call.wanted:
        found[2] = call.sum(slope, axes, keep=False)
    if 0 in call.wanted:
        if trains:
            # The batch's own mean and deviation follow every sample, which takes two components off the gradient
            # (Ioffe and Szegedy 2015, section 3).
            lean = call.emit("Mul", call.mean(product, axes), call.emit("Mul", scatter, scatter))
            slope = call.emit("Sub", slope, call.mean(slope, axes))
            slope = call.emit("Sub", slope, call.emit("Mul", centred, lean))
        factor = call.emit("Mul", call.reshape(call.input(1), wide), scatter)
        found[0] = call.emit("Mul", slope, factor)
    return found


def _fixed(call: Call, wide: Sequence[int]) -> tuple[str, str]:
    """Return x − mean and 1/deviation by the running statistics, as inference has them."""
    centred = call.emit("Sub", call.input(0), call.reshape(call.input(3), wide))
    variance = call.emit("Add", call.reshape(call.input(4), wide), call.number(call.attribute("epsilon", 1e-5)))
    return centred, call.emit("Reciprocal", call.emit("Sqrt", variance))


@gradient("LayerNormalization")
def _layer_normalization(call: Call) -> Gradients:
    rank = len(call.shape(0))
    first = call.attribute("axis", -1) % rank
    axes = list(range(first, rank))
    mean, scatter = call.saved("mean"), call.saved("inverse deviation")
    if mean is None or scatter is None:
        mean = call.mean(call.input(0), axes)
        centred = call.emit("Sub", call.input(0), mean)
        variance = call.mean(call.emit("Mul", centred, centred), axes)
        padded = call.emit("Add", variance, call.number(call.attribute("epsilon", 1e-5)))
        scatter = call.emit("Reciprocal", call.emit("Sqrt", padded))
    else:
        centred = call.emit("Sub", call.input(0), mean)
    normal = call.emit("Mul", centred, scatter)
    found, slope = {}, call.gradient
    if 1 in call.wanted:
        found[1] = call.unbroadcast(call.emit("Mul", slope, normal), 1, call.shape(0))
    if 2 in call.wanted:
        found[2] = call.unbroadcast(slope, 2, call.shape(0))
    if 0 in call.wanted:
        slope = call.emit("Mul", slope, call.input(1))
        lean = call.mean(call.emit("Mul", slope, normal), axes)
        rest = call.emit("Sub", slope, call.mean(slope, axes))
        found[0] = call.emit("Mul", call.emit("Sub", rest, call.emit("Mul", normal, lean)), scatter)
    return found
