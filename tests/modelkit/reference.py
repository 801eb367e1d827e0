"""Operators in float64 and plain loops, where ONNX's reference implementation is in float32 or gets geometry wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from tests.modelkit.helpers import Array


def pads_of(sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int], pads: Any, auto: str) -> list[int]:
    """ONNX's padding of each axis, begins and then ends."""
    if auto in ("NOTSET", ""):
        return list(pads or [0] * (2 * len(sizes)))
    if auto == "VALID":
        return [0] * (2 * len(sizes))
    totals = [
        max(0, (-(-size // stride) - 1) * stride + most - size)
        for size, stride, most in zip(sizes, strides, reach, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*small, *large] if auto == "SAME_UPPER" else [*large, *small]


def patches(x: Array, kernel: Any, strides: Any, dilations: Any, pads: Any, auto: str, fill: float, ceil: int) -> Array:
    """Every window of x: batch, channels, windows along each axis, elements along each axis."""
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    reach = [(width - 1) * step + 1 for width, step in zip(kernel, dilations, strict=True)]
    widths = pads_of(x.shape[2:], reach, strides, pads, auto)
    begins, ends = widths[:rank], widths[rank:]
    counts = []
    for axis, size in enumerate(x.shape[2:]):
        room = size + begins[axis] + ends[axis] - reach[axis]
        count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
        if ceil and (count - 1) * strides[axis] >= size + begins[axis]:
            count -= 1  # a window that starts in the padding behind is none
        counts.append(count)
    after = [
        max(end, (count - 1) * stride + most - size - begin)
        for end, count, stride, most, size, begin in zip(ends, counts, strides, reach, x.shape[2:], begins, strict=True)
    ]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begins, after, strict=True)], constant_values=fill)
    made = np.empty((*x.shape[:2], *counts, *kernel))
    for window in itertools.product(*map(range, counts)):
        for place in itertools.product(*map(range, kernel)):
            at: Any = tuple(w * s + p * d for w, s, p, d in zip(window, strides, place, dilations, strict=True))
            inside: Any = (slice(None), slice(None), *window, *place)
            made[inside] = padded[(slice(None), slice(None), *at)]
    return made


class Conv(OpRun):
    op_domain = ""

    def _run(self, x: Array, w: Array, b: Any = None, **attributes: Any) -> tuple[Array]:
        groups, rank = attributes.get("group") or 1, x.ndim - 2
        made = patches(
            x,
            w.shape[2:],
            attributes.get("strides"),
            attributes.get("dilations"),
            attributes.get("pads"),
            attributes.get("auto_pad") or "NOTSET",
            0.0,
            0,
        )
        inner, outer = w.shape[1], w.shape[0] // groups
        parts = []
        for group in range(groups):
            mine = made[:, group * inner : (group + 1) * inner]
            axes = [1, *range(2 + rank, 2 + 2 * rank)]
            part = np.tensordot(mine, w[group * outer : (group + 1) * outer], (axes, [1, *range(2, 2 + rank)]))
            parts.append(np.moveaxis(part, -1, 1))
        y = np.concatenate(parts, axis=1)
        return (y if b is None else y + b.reshape(1, -1, *[1] * rank),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x: Array, w: Array, b: Any = None, **attributes: Any) -> tuple[Array]:
        rank, groups = x.ndim - 2, attributes.get("group") or 1
        strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
        pads, extra = attributes.get("pads") or [0] * 2 * rank, attributes.get("output_padding") or [0] * rank
        inner, outer = w.shape[0] // groups, w.shape[1]
        full = [
            (size - 1) * stride + (width - 1) * step + 1 + more
            for size, stride, width, step, more in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)
        ]
        y = np.zeros((len(x), outer * groups, *full))
        for group, place in itertools.product(range(groups), itertools.product(*map(range, x.shape[2:]))):
            for tap in itertools.product(*map(range, w.shape[2:])):
                at: Any = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations, strict=True))
                channels = slice(group * inner, (group + 1) * inner)
                source: Any = (slice(None), channels, *place)
                weight: Any = (channels, slice(None), *tap)
                value = x[source] @ w[weight]
                target: Any = (slice(None), slice(group * outer, (group + 1) * outer), *at)
                y[target] += value
        kept = tuple(slice(pads[axis], full[axis] - pads[rank + axis]) for axis in range(rank))
        inner_part: Any = (slice(None), slice(None), *kept)
        y = y[inner_part]
        return (y if b is None else y + b.reshape(1, -1, *[1] * rank),)


def _pooled(x: Array, attributes: dict[str, Any], fill: float) -> Array:
    names = ("kernel_shape", "strides", "dilations", "pads")
    kernel, strides, dilations, pads = (attributes.get(name) for name in names)
    auto, ceil = attributes.get("auto_pad") or "NOTSET", attributes.get("ceil_mode") or 0
    made = patches(x, kernel, strides, dilations, pads, auto, fill, ceil)
    return made.reshape(*made.shape[: x.ndim], -1)


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (_pooled(x, attributes, -math.inf).max(axis=-1),)


class AveragePool(OpRun):
    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        made = _pooled(x, attributes, math.nan)
        if attributes.get("count_include_pad"):
            return (np.nansum(made, axis=-1) / made.shape[-1],)
        return (np.nanmean(made, axis=-1),)


class Erf(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf)(x),)


class Cast(OpRun):
    op_domain = ""

    def _run(self, x: Array, **_attributes: Any) -> tuple[Array]:
        return (x.astype(np.float64),)


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool, Erf, Cast]
