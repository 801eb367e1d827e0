"""Pools: the largest or the mean of each window."""

from __future__ import annotations

import math

import numpy as np

from covey_modelkit.gradients.registry import Call, Gradients, gradient
from covey_modelkit.gradients.windows import Windows, windows_of


def _windows(call: Call) -> Windows:
    sizes, counts = call.sizes(call.shape(0), 1)[1:], call.sizes(call.output_shape, 1)[1:]
    return windows_of(call.node, sizes, counts, call.attribute("kernel_shape", []))


@gradient("MaxPool")
def _max_pool(call: Call) -> Gradients:
    """Give each window's gradient to the element that was the largest, the first of several."""
    if call.attribute("storage_order", 0):
        raise call.refuse("stores its columns first")
    windows = _windows(call)
    places = call.saved("indices")
    if places is None:
        value, places = call.writer.fresh(f"again.{call.output}"), call.writer.fresh(f"indices.{call.output}")
        call.writer.copy(call.node, [value, places])
    flat = call.reshape(call.gradient, [-1]), call.reshape(places, [-1])
    size = call.emit("Size", call.input(0))
    zeros = call.emit("ConstantOfShape", call.emit("Reshape", size, call.integers([1])))
    # Onto the same element two windows may add; otherwise storing is enough.
    how = "none" if windows.apart else "add"
    found = call.emit("ScatterElements", zeros, flat[1], flat[0], axis=0, reduction=how)
    return {0: call.like_input(found)}


@gradient("AveragePool")
def _average_pool(call: Call) -> Gradients:
    """Give each window's gradient in equal parts to its elements: a transposed convolution by ones."""
    windows = _windows(call)
    share = call.emit("Div", call.gradient, call.writer.constant(_shares(call, windows), np.float32))
    alone = call.reshape(share, [-1, 1, *windows.counts])
    ones = call.writer.constant(np.ones((1, 1, *windows.kernel)), np.float32)
    spread = call.emit(
        "ConvTranspose",
        alone,
        ones,
        kernel_shape=windows.kernel,
        strides=windows.strides,
        dilations=windows.dilations,
        pads=[*windows.before, *(max(0, width) for width in windows.after)],
        output_padding=[max(0, -width) for width in windows.after],
    )
    return {0: call.like_input(spread)}


def _shares(call: Call, windows: Windows) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return by how many each window's sum was divided."""
    padded = bool(call.attribute("count_include_pad", 0))
    result = np.ones((1,) * len(windows.sizes))
    for axis, (size, count) in enumerate(zip(windows.sizes, windows.counts, strict=True)):
        starts = np.arange(count) * windows.strides[axis] - windows.before[axis]
        places = starts[:, None] + np.arange(windows.kernel[axis]) * windows.dilations[axis]
        low, high = (-windows.before[axis], size + _behind(call, windows, axis)) if padded else (0, size)
        counted = ((places >= low) & (places < high)).sum(axis=1)
        result = result * counted.reshape([-1 if other == axis else 1 for other in range(len(windows.sizes))])
    return result


def _behind(call: Call, windows: Windows, axis: int) -> int:
    """Return how many added elements behind the tensor count as part of it."""
    pads = call.attribute("pads", None)
    if pads is not None and call.attribute("auto_pad", "NOTSET") == "NOTSET":
        return int(pads[len(windows.sizes) + axis])
    return max(0, windows.after[axis]) if call.attribute("auto_pad", "NOTSET").startswith("SAME") else 0


@gradient("GlobalAveragePool")
def _global_average_pool(call: Call) -> Gradients:
    sizes = call.sizes(call.shape(0), 1)[1:]
    share = call.emit("Div", call.gradient, call.number(float(math.prod(sizes))))
    return {0: call.emit("Expand", share, call.emit("Shape", call.input(0)))}
