"""Coordinate-wise trimmed mean (Yin et al. 2018, definition 2)."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

from covey_aggregator.rules.contamination import left_out
from covey_aggregator.rules.influence import Influence, masses, whole_groups
from covey_aggregator.rules.rows import THREADS, TILE, Row, Rows, over_columns, tiles, transpose


class TrimmedMean(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="trimmed-mean"
):
    """The mean of every column without its largest and smallest values.

    Attributes:
        beta: Share of the groups to cut on each side; None cuts as many as are expected to be spoilt. Either way it is
            at least one from three groups on, of which the median is left.
    """

    beta: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] | None = None

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Return the trimmed mean of every column."""
        if influence is None:
            return trimmed_mean(rows, self.withstands(len(rows), spoilt))
        return weighted_trimmed_mean(rows, self.withstands(whole_groups(influence), spoilt), influence)

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return how many rows are cut on each side; as many spoilt groups leave every coordinate in range."""
        return left_out(groups, spoilt) if self.beta is None else trimmed_count(groups, self.beta)


def trimmed_count(groups: int, beta: float) -> int:
    """Return how many rows a share makes on each side: ⌈β·G⌉, at least one from three groups on, and never all."""
    return left_out(groups, math.ceil(beta * groups))


def trimmed_mean(rows: Rows, cut: int, threads: int = THREADS) -> Row:
    """Return the mean of every column without its ``cut`` largest and smallest values.

    The work goes tile by tile, so that memory beyond the rows is O(G · 2,048) a thread; the result depends on neither.
    """
    count = len(rows)
    result = np.empty(len(rows[0]), np.float32)

    def trim(start: int, end: int) -> None:
        buffer = np.empty((min(TILE, end - start), count), np.float32)
        for columns in tiles(start, end):
            tile = buffer[: columns.stop - columns.start]
            transpose(rows, columns, tile)
            tile.sort(axis=1)
            sums = np.einsum("ij->i", tile[:, cut : count - cut], dtype=np.float64)
            result[columns] = sums / (count - 2 * cut)

    over_columns(len(result), trim, threads)
    return result


def weighted_trimmed_mean(rows: Rows, cut: float, influence: Influence) -> Row:
    """Return the weighted mean of every column without its ``cut`` largest and smallest weight.

    A row at the edge counts with what is left of its weight, so the result moves smoothly with influence; where all
    are 1 it is the trimmed mean.
    """
    count, total = len(rows), float(influence.sum())
    result = np.empty(len(rows[0]), np.float32)

    def trim(start: int, end: int) -> None:
        buffer = np.empty((min(TILE, end - start), count), np.float32)
        for columns in tiles(start, end):
            tile = buffer[: columns.stop - columns.start]
            transpose(rows, columns, tile)
            order = np.argsort(tile, axis=1, kind="stable")
            kept = masses(influence[order], cut, total - cut)
            result[columns] = (kept * np.take_along_axis(tile, order, axis=1)).sum(axis=1) / kept.sum(axis=1)

    over_columns(len(result), trim)
    return result
