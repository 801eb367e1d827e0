"""Geometric median by the smoothed Weiszfeld algorithm (Pillutla, Kakade, Harchaoui 2022, algorithm 2)."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from covey_aggregator.rules.influence import Influence, weighted_median
from covey_aggregator.rules.median import median
from covey_aggregator.rules.rows import Row, Rows, centred_gram, squared_distances, weighted_sum


class GeometricMedian(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="geometric-median"
):
    """The point with the smallest sum of distances to the rows; of two rows it is the mean.

    Attributes:
        smoothing: Distances below this share of the typical one count as that long, so that a row is no pole. The
            typical distance is the median of the rows' distances from the coordinate-wise median.
        tolerance: Stop when a step would be shorter than this share of the typical distance.
        iterations: Stop after as many steps in any case.
    """

    smoothing: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-6
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-6
    iterations: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Return the geometric median; ``spoilt`` is not used."""
        counts = np.ones(len(rows)) if influence is None else influence
        centre = median(rows, influence)
        gram = centred_gram(rows, centre)
        typical = weighted_median(np.sqrt(gram.diagonal()), counts)
        if typical == 0:  # more than half of the rows are the centre, and no point is closer to all
            return centre
        point = np.zeros(len(rows))  # as weights of the rows; what they lack of one is the centre's, at first all
        for _ in range(self.iterations):
            pull = counts / np.maximum(np.sqrt(squared_distances(gram, point)), self.smoothing * typical)
            step = pull / pull.sum() - point
            point += step
            if step @ gram @ step <= (self.tolerance * typical) ** 2:
                break
        return weighted_sum(rows, point)

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return how many spoilt groups cannot move it arbitrarily far: all but a majority."""
        return (groups - 1) // 2
