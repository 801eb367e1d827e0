"""Multi-Krum (Blanchard et al. 2017), with the neighbours of Allouah et al. 2023."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from covey_aggregator.rules.contamination import left_out
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

    def __call__(self, rows: Rows, spoilt: int) -> Row:
        """Return the mean of the rows chosen; of equal scores the earlier row's counts as smaller."""
        count = len(rows)
        out = self.withstands(count, spoilt)
        gram = centred_gram(rows, median(rows))
        squares = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
        scores = np.sort(squares, axis=1)[:, 1 : count - out].sum(axis=1)  # the smallest is the row's own
        chosen = np.argsort(scores, kind="stable")[: count - out]
        weights = np.zeros(count)
        weights[chosen] = 1 / len(chosen)
        return weighted_sum(rows, weights)

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return f, within its bounds."""
        return left_out(groups, spoilt if self.f is None else self.f)
