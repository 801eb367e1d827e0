"""Least squares under x ≥ 0, for many devices at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RIDGE = 1e-3  # of each variable's own weight: directions that sketches cannot tell apart share what they explain
SWEEPS = 300
_ENOUGH = 1e-4


def solve(squares: Array, products: Array, start: Array | None = None) -> Array:
    """Return argmin over x ≥ 0 of ½·xᵀAx − bᵀx for each device, by going round the coordinates (Hildreth 1957).

    Args:
        squares: A = FᵀF, shape (n, p, p), positive semidefinite.
        products: b = Fᵀs, shape (n, p).
        start: Where to begin, such as the last round's result.
    """
    scale = np.sqrt(np.maximum(np.einsum("ipp->ip", squares), np.finfo(float).tiny))
    a = squares / (scale[:, :, None] * scale[:, None, :])
    b = products / scale
    x = np.zeros_like(b) if start is None else start * scale
    slope = b - np.einsum("ipq,iq->ip", a, x) - RIDGE * x
    for _ in range(SWEEPS):
        largest = 0.0
        for p in range(x.shape[1]):
            step = np.maximum(x[:, p] + slope[:, p] / (1 + RIDGE), 0) - x[:, p]
            if step.any():
                x[:, p] += step
                slope -= a[:, :, p] * step[:, None]
                slope[:, p] -= RIDGE * step
                largest = max(largest, float(np.abs(step).max()))
        if largest < _ENOUGH * max(1.0, float(np.abs(x).max())):
            break
    result: Array = x / scale
    return result
