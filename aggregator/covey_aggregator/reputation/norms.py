"""Norms against what is usual: a location and a scale that large norms cannot move."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from covey_aggregator.reputation.sketches import TINY, Array

LOWEST, HIGHEST = -3.0, 2.0  # of the logarithm of a norm: one absurd round must not dominate the average
_SMALLEST_SCALE = 0.2


class NormReference(NamedTuple):
    """What the logarithms of honest norms look like.

    Attributes:
        location: Their median, extrapolated from below.
        scale: Their standard deviation, from below too.
    """

    location: float
    scale: float

    def excess(self, logs: Array) -> Array:
        """Return how many scales each lies above the location."""
        return (logs - self.location) / self.scale


def logs(norms: Array, usual: float) -> Array:
    """Return ln(r/med), clipped."""
    return np.clip(np.log(np.maximum(norms, TINY * usual) / usual), LOWEST, HIGHEST)


def reference(logs: Array) -> NormReference:
    """Return location and scale from the 10% and 35% quantiles, as of a normal distribution."""
    low, high = np.quantile(logs, [0.1, 0.35])
    scale = max((high - low) / 0.9, _SMALLEST_SCALE)  # the two quantiles of a normal lie 0.9 σ apart,
    return NormReference(float(high + 0.39 * scale), float(scale))  # and the upper one 0.39 σ under the median
