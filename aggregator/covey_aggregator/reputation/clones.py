"""Clones, by the likeness to the m-th nearest device.

Honest devices with data of their own are alike to a degree, and the degree varies little from device to device. Those
who send copies of one update, jittered or not, stand out by being too much alike, in numbers.
"""

from __future__ import annotations

import numpy as np

from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import Array, Mask

_WIDTH = 0.05
_HIGHEST = 0.985
_LONER = 0.5


def neighbours(measure: Mask, s: Settings) -> int:
    """Return m, by the number of those who are the measure: it is not for a wave of newcomers to change."""
    return min(max(s.fewest_neighbours, int(s.neighbour * measure.sum())), len(measure) - 1)


def nearest(cosines: Array, measure: Mask, s: Settings) -> Array:
    """Return n_i, the m-th largest C_ij of each device."""
    place = len(cosines) - neighbours(measure, s)
    return np.asarray(np.partition(cosines, place, axis=1)[:, place])


def clones(near: Array, measure: Mask, s: Settings) -> Array:
    """Say how far each device is a clone, from 0 to 1.

    Args:
        near: n_i.
        measure: The devices that say what is usual.
        s: The rule's parameters.
    """
    usual = near[measure & (near > _LONER * np.quantile(near[measure], 0.75))]  # who sends noise is no measure either
    if len(usual) == 0:
        return np.zeros(len(near))
    low, quarter = np.quantile(usual, [0.05, 0.25])  # clones sit on top: only the lower half says what is usual
    if quarter >= s.alike:
        return np.zeros(len(near))
    limit = np.clip(quarter + s.clone_spread * (quarter - low) + _WIDTH, s.clone_floor, _HIGHEST)
    return np.asarray(np.clip((near - limit) / _WIDTH, 0, 1))


def clustering(cosines: Array, near: Array, members: Mask) -> float:
    """Return how much more alike the members are to their nearest than to one another in general, from 0 to 1.

    Args:
        cosines: C.
        near: n_i; their lower quarter counts, which clones do not reach.
        members: Of whom it is asked.
    """
    count = int(members.sum())
    if count < 2:
        return 1.0
    others = cosines[np.ix_(members, members)].sum(axis=1) / (count - 1)
    general = min(max(float(np.median(others)), 0.0), 1 - 1e-9)
    return min(max((float(np.quantile(near[members], 0.25)) - general) / (1 - general), 0.0), 1.0)
