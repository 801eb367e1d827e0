"""Centred clipping (Karimireddy, He, Jaggi 2021, algorithm 2), started at the coordinate-wise median."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from covey_aggregator.rules.influence import Influence, weighted_median
from covey_aggregator.rules.median import median
from covey_aggregator.rules.rows import Row, Rows, centred_gram, squared_distances, weighted_sum


class CentredClipping(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="centred-clipping"
):
    """Steps from a centre by the mean of the rows' differences from it, each clipped to a radius; of two rows the mean.

    The paper starts at the last round's result, which suits momentum; ours starts at this round's coordinate-wise
    median, so that no state carries over and what an attacker reached once is not where the next round starts.

    Attributes:
        radius: Largest length of a difference; None takes the median of the rows' distances from the start, which
            neither grows nor shrinks beyond those of honest groups while they are the majority.
        iterations: How many steps. Each moves the result by at most f/G radii for f spoilt groups.
    """

    radius: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    iterations: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Return the centre after the last step; ``spoilt`` is not used."""
        counts = np.ones(len(rows)) if influence is None else influence
        start = median(rows, influence)
        gram = centred_gram(rows, start)
        radius = weighted_median(np.sqrt(gram.diagonal()), counts) if self.radius is None else self.radius
        point = np.zeros(len(rows))  # as weights of the rows' differences from the start
        for _ in range(self.iterations):
            distances = np.sqrt(squared_distances(gram, point))
            shares = counts / counts.sum() * radius / np.maximum(distances, max(radius, 1e-300))
            point += shares - shares.sum() * point
        return weighted_sum(rows, point, start)

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return how many spoilt groups cannot move it arbitrarily far: all but a majority."""
        return (groups - 1) // 2
