"""Coordinate-wise median (Yin et al. 2018, definition 1)."""

from __future__ import annotations

import msgspec

from covey_aggregator.rules.influence import Influence, middle
from covey_aggregator.rules.rows import Row, Rows
from covey_aggregator.rules.trimmed_mean import trimmed_mean, weighted_trimmed_mean


class Median(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="median"):
    """The median of every column; of two rows it is the mean."""

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Return the median of every column; ``spoilt`` is not used."""
        return median(rows, influence)

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return how many spoilt groups leave every coordinate within the others' range: all but a majority."""
        return (groups - 1) // 2


def median(rows: Rows, influence: Influence | None = None) -> Row:
    """Return the median of every column: a trimmed mean of which one row is left, or two."""
    if influence is None:
        return trimmed_mean(rows, (len(rows) - 1) // 2)
    return weighted_trimmed_mean(rows, middle(influence), influence)
