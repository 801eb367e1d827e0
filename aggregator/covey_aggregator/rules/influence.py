"""What groups count for: masses along a sorted order, and medians by them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Influence: TypeAlias = NDArray[np.float64]  # shape (G,): above 0, and 1 for the group that counts most

_HAIR = 1e-6
_ROUNDING = 1e-9


def whole_groups(influence: Influence) -> int:
    """Return how many groups of full weight all of them amount to, rounded down; at least one."""
    return max(1, int(influence.sum() + _ROUNDING))


def masses(weights: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Lay weights end to end along the last axis, and return how much of each lies between ``low`` and ``high``."""
    ends = np.cumsum(weights, axis=-1)
    inside: NDArray[np.float64] = np.clip(ends, low, high) - np.clip(ends - weights, low, high)
    return inside


def middle(influence: Influence) -> float:
    """Return what to cut on each side so that only the median is left: of an even number the two in the middle."""
    return float(influence.sum()) / 2 * (1 - _HAIR)


def weighted_median(values: NDArray[np.float64], influence: Influence) -> float:
    """Return the value with half of the weight below it and half above; between two such values, their mean."""
    order = np.argsort(values, kind="stable")
    cut = middle(influence)
    inside = masses(influence[order], cut, float(influence.sum()) - cut)
    return float(inside @ values[order] / inside.sum())
