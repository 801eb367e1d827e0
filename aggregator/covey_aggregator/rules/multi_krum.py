"""Multi-Krum (Blanchard et al. 2017), with the neighbours of Allouah et al. 2023."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from covey_aggregator.rules.contamination import left_out
from covey_aggregator.rules.influence import Influence, masses, whole_groups
from covey_aggregator.rules.median import median
from covey_aggregator.rules.rows import Row, Rows, centred_gram, weighted_sum


class MultiKrum(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="multi-krum"
):
    """The mean of the G − f rows with the smallest sum of squared distances to their G − f − 1 nearest neighbours.

    Blanchard et al. count one neighbour less and ask for G ≥ 2f + 3; with one more, G ≥ 2f + 1 will do.

    Attributes:
        f: How many groups may be spoilt; None takes as many as are expected to be. Either way it is at least one from
            three groups on, and fewer than half. Of one or two rows it is the mean.
    """

    f: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Return the mean of the rows chosen; of equal scores the earlier row's counts as smaller."""
        counts = np.ones(len(rows)) if influence is None else influence
        kept = float(counts.sum()) - self.withstands(whole_groups(counts), spoilt)
        gram = centred_gram(rows, median(rows, influence))
        squares = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
        np.fill_diagonal(squares, -1)  # so that the first in every row is the row itself
        order = np.argsort(squares, axis=1, kind="stable")
        near = masses(counts[order], 0, kept)[:, 1:]
        scores = (near * np.take_along_axis(squares, order, axis=1)[:, 1:]).sum(axis=1)
        best = np.argsort(scores, kind="stable")
        chosen = np.zeros(len(rows))
        chosen[best] = masses(counts[best], 0, kept) / kept
        return weighted_sum(rows, chosen)

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return f, within its bounds."""
        return left_out(groups, spoilt if self.f is None else self.f)
