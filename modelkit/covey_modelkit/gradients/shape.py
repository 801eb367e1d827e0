"""Operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from covey_modelkit.gradients.registry import Call, Gradients, gradient


@gradient("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(call: Call) -> Gradients:
    return {0: call.like_input(call.gradient)}


@gradient("Transpose")
def _transpose(call: Call) -> Gradients:
    rank = len(call.shape(0))
    axes = call.attribute("perm", list(range(rank))[::-1])
    return {0: call.emit("Transpose", call.gradient, perm=[int(axis) for axis in np.argsort(axes)])}


@gradient("Expand")
def _expand(call: Call) -> Gradients:
    return {0: call.unbroadcast(call.gradient, 0)}


@gradient("Concat")
def _concat(call: Call) -> Gradients:
    axis = call.attribute("axis", 0) % len(call.output_shape)
    ends = np.cumsum([call.sizes((call.shape(position)[axis],))[0] for position in range(len(call.node.input))])
    found = {}
    for position in call.wanted:
        start = int(ends[position - 1]) if position else 0
        found[position] = _slice(call, call.gradient, start, int(ends[position]), axis)
    return found


@gradient("Split")
def _split(call: Call) -> Gradients:
    axis = call.attribute("axis", 0) % len(call.shape(0))
    parts = []
    for position, slope in enumerate(call.gradients):
        name = call.node.output[position]
        parts.append(slope if slope is not None else call.emit("Mul", name, call.number(0)))
    return {0: call.emit("Concat", *parts, axis=axis)}


@gradient("Slice")
def _slice_rule(call: Call) -> Gradients:
    shape = call.shape(0)
    starts, ends = (call.value(position, "bounds").tolist() for position in (1, 2))
    axes = call.value(3, "axes").tolist() if call.input(3) else list(range(len(starts)))
    steps = call.value(4, "steps").tolist() if call.input(4) else [1] * len(starts)
    found = call.gradient
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 1 and start == 0 and end >= np.iinfo(np.int32).max:
            continue  # all of it, as exporters write for axes that they leave alone
        (size,) = call.sizes((shape[axis % len(shape)],))
        # Below −size, an end that counts down means: to the first element.
        rows = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        found = _placed(call, found, rows, size, axis % len(shape))
    return {0: found}


@gradient("Gather")
def _gather(call: Call) -> Gradients:
    if 1 in call.wanted:
        raise call.refuse("has indices that are themselves learnt")
    shape = call.shape(0)
    axis = call.attribute("axis", 0) % len(shape)
    indices = call.writer.value(call.input(1))
    if indices is not None and indices.ndim <= 1:
        (size,) = call.sizes((shape[axis],))
        rows = (indices.reshape(-1) % size).tolist()
        if len(set(rows)) == len(rows):
            whole = call.gradient if indices.ndim else call.emit("Unsqueeze", call.gradient, call.integers([axis]))
            return {0: _placed(call, whole, rows, size, axis)}
    if axis != 0:
        raise call.refuse("takes some elements twice, or computes which, along another than the first axis")
    zeros = call.emit("ConstantOfShape", call.integers(call.sizes(shape)))
    places = call.emit("Unsqueeze", call.input(1), call.integers([-1]))
    return {0: call.emit("ScatterND", zeros, places, call.gradient, reduction="add")}


@gradient("Pad")
def _pad(call: Call) -> Gradients:
    if call.attribute("mode", "constant") != "constant":
        raise call.refuse("pads by something else than a constant")
    shape, pads = call.shape(0), call.value(1, "widths").tolist()
    axes = [int(axis) % len(shape) for axis in call.value(3, "axes")] if call.input(3) else range(len(shape))
    found, half = call.gradient, len(pads) // 2
    for axis, before, after in zip(axes, pads[:half], pads[half:], strict=True):
        if before or after:
            if min(before, after) < 0:
                raise call.refuse("cuts by negative widths; use Slice")
            (size,) = call.sizes((shape[axis],))
            found = _slice(call, found, before, before + size, axis)
    return {0: found}


def _slice(call: Call, tensor: str, start: int, end: int, axis: int) -> str:
    return call.emit("Slice", tensor, *(call.integers([number]) for number in (start, end, axis)))


def _placed(call: Call, gradient: str, rows: Sequence[int], size: int, axis: int) -> str:
    """Put slices along an axis to where they were taken from, zeros elsewhere."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        widths = call.integers([rows[0], size - rows[0] - len(rows)])
        return call.emit("Pad", gradient, widths, "", call.integers([axis]))
    # One slice of zeros is appended, and taken wherever nothing came from.
    padded = call.emit("Pad", gradient, call.integers([0, 1]), "", call.integers([axis]))
    sources = np.full(size, len(rows))
    sources[list(rows)] = np.arange(len(rows))
    return call.emit("Gather", padded, call.integers(sources.tolist()), axis=axis)
