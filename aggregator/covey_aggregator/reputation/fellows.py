"""Fellowship: whether a device goes on resembling those whom it resembled before.

Every honest device has fellows, whose data are like its own, and keeps them: their updates point the same way while the
model learns, and also when it has learnt and the fleet as a whole no longer agrees on anything. So each round tests a
prediction. The fellows are chosen by past rounds alone, and only the new round's sketches are compared: whoever sends
noise has no fellows that last, and whoever turns against what it sent before, by turns or for good, turns against its
own fellows first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_aggregator.reputation.clones import neighbours
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import TINY, Array, Mask

_WIDTH = 0.1


class Fellowship(NamedTuple):
    """F, each device's moving average of fellowship.

    Attributes:
        total: Before its youth is corrected.
        rounds: How many rounds are in it.
    """

    total: Array
    rounds: NDArray[np.int64]

    def average(self, s: Settings) -> Array:
        """Return F_i; 0 for who has none yet."""
        return np.where(self.rounds > 0, self.total / self._whole(s), 0.0)

    def error(self, buckets: int, s: Settings) -> Array:
        """Return its standard error for a device without fellows: one round's cosine then varies by 1/√k."""
        memory = s.fellow_memory
        share = (1 - memory) / (1 + memory) * (1 + memory**self.rounds) / self._whole(s)  # Σw² of the average's weights
        return np.asarray(np.sqrt(share / buckets))

    def _whole(self, s: Settings) -> Array:
        return np.asarray(1.0 - s.fellow_memory ** np.maximum(self.rounds, 1))


def cosines_with_fellows(past: Array, directions: Array, measure: Mask, s: Settings) -> Array:
    """Return f_i: each update's cosine with the sum of its fellows', weighted by their likeness; 0 for who has none.

    Args:
        past: M before this round, its diagonal zero. It is not corrected for youth: among equals, those known for
            longer are the fellows.
        directions: This round's u_i.
        measure: Who may be a fellow of others.
        s: The rule's parameters.
    """
    likeness = np.where(measure[None, :], np.maximum(past, 0), 0.0)
    place = len(past) - neighbours(measure, s)
    likeness[likeness < np.partition(likeness, place, axis=1)[:, place, None]] = 0
    sums = likeness @ directions
    return np.asarray((directions * sums).sum(axis=1) / np.maximum(np.linalg.norm(sums, axis=1), TINY))


def remembered(before: Fellowship, found: Array, tested: Mask, s: Settings) -> Fellowship:
    """Take a round in, for those with a past to be tested by."""
    total = s.fellow_memory * before.total + (1 - s.fellow_memory) * found
    return Fellowship(np.where(tested, total, before.total), before.rounds + tested)


def isolation(fellowship: Fellowship, measure: Mask, buckets: int, s: Settings) -> Array:
    """Say how far each device is like nobody, from 0 to 1.

    Args:
        fellowship: With this round in it.
        measure: The devices that say what is usual.
        buckets: k.
        s: The rule's parameters.
    """
    average, known = fellowship.average(s), fellowship.rounds > 0
    if not (measure & known).any():
        return np.zeros(len(average))
    limit = s.fellow_share * float(np.median(average[measure & known]))
    short = limit - average - s.fellow_error * fellowship.error(buckets, s)
    return np.where(known, np.clip(short / _WIDTH, 0, 1), 0.0)
