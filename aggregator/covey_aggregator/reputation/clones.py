"""Clones and loners, by the likeness to the m-th nearest device.

Honest devices with data of their own are alike to a degree, and the degree varies little from device to device. Those
who send copies of one update, jittered or not, stand out by being too much alike, in numbers; those who send noise by
being like nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import Array, Mask

_CLONE_WIDTH, _LONER_WIDTH = 0.05, 0.1


@dataclass(frozen=True)
class Likeness:
    """How like its m-th nearest each device is, and what that says.

    Attributes:
        nearest: n_i, the m-th largest C_ij.
        clone: 0 to 1.
        loner: 0 to 1.
    """

    nearest: Array
    clone: Array
    loner: Array


def likeness(cosines: Array, measure: Mask, s: Settings) -> Likeness:
    """Tell clones and loners.

    Args:
        cosines: C.
        measure: The devices that say what is usual.
        s: The rule's parameters.
    """
    size = len(cosines)
    m = min(max(s.fewest_neighbours, int(s.neighbour * size)), size - 1)
    nearest = np.partition(cosines, size - m, axis=1)[:, size - m]
    lonely = 0.5 * float(np.quantile(nearest[measure], 0.75))
    usual = nearest[measure & (nearest > lonely)]
    if len(usual) == 0:
        return Likeness(nearest, np.zeros(size), np.zeros(size))
    low, quarter = np.quantile(usual, [0.05, 0.25])  # clones sit on top: only the lower half says what is usual
    limit = np.clip(quarter + s.clone_spread * (quarter - low) + 0.05, s.clone_floor, 0.985)
    clone = np.clip((nearest - limit) / _CLONE_WIDTH, 0, 1) * (quarter < s.alike)
    return Likeness(nearest, clone, np.clip((lonely - nearest) / _LONER_WIDTH, 0, 1))
