"""Rows, one a group, and how rules walk over them: in tiles of columns, so that nothing of their size is copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Row: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.float32] | Sequence[Row]  # shape (G, d), or G vectors of length d
Square: TypeAlias = NDArray[np.float64]

TILE = 2048  # columns: a tile of transposed rows stays in the cache while it is sorted
THREADS = min(2, os.cpu_count() or 1)


def over_columns(dimension: int, work: Callable[[int, int], None], threads: int = THREADS) -> None:
    """Call ``work(start, end)`` until all columns are done, on threads where there are enough columns to be worth it.

    Threads help because numpy lets go of the interpreter while it sorts and adds.
    """
    stretch = -(-dimension // threads)
    if threads < 2 or stretch < 8 * TILE:
        work(0, dimension)
        return
    with ThreadPoolExecutor(threads, "covey-rule") as pool:
        starts = range(0, dimension, stretch)
        for _ in pool.map(work, starts, [min(start + stretch, dimension) for start in starts]):
            pass


def tiles(start: int, end: int) -> Iterator[slice]:
    """Yield the columns from ``start`` to ``end`` in slices of ``TILE``."""
    for at in range(start, end, TILE):
        yield slice(at, min(at + TILE, end))


def transpose(rows: Rows, columns: slice, target: NDArray[np.float32]) -> None:
    """Copy a tile into ``target``, shape (columns, G)."""
    # From one array numpy does this in one go. Of separate vectors it wants to see one short block at a time.
    block = rows[:, columns] if isinstance(rows, np.ndarray) else np.stack([row[columns] for row in rows])
    np.copyto(target, block.T)


def centred_gram(rows: Rows, centre: Row) -> Square:
    """Return all inner products of the rows' differences from ``centre``, shape (G, G).

    Distances between rows, and to any point that is combined of rows and centre, follow from this alone, so that an
    iteration costs O(G²) however long the rows are. The centre must be robust: distances are differences of these
    numbers, and the digits of those between honest groups would be lost if one far row had moved the centre.
    """
    total = np.zeros((len(rows), len(rows)))
    block = np.empty((len(rows), TILE))
    for columns in tiles(0, len(centre)):
        part = block[:, : columns.stop - columns.start]
        for target, row in zip(part, rows, strict=True):
            np.subtract(row[columns], centre[columns], out=target, dtype=np.float64)
        total += part @ part.T
    return total


def squared_distances(gram: Square, weights: Square) -> Square:
    """Return the rows' squared distances from the point ``centre + Σ weights_i · (row_i − centre)``."""
    product = gram @ weights
    squares: Square = gram.diagonal() - 2 * product + weights @ product
    return np.maximum(squares, 0)  # rounding may leave less than nothing


def weighted_sum(rows: Rows, weights: Square, centre: Row | None = None) -> Row:
    """Return ``Σ weights_i · row_i``, plus the centre times what the weights lack of one, if there is a centre."""
    terms = [(weight, row) for weight, row in zip(weights, rows, strict=True) if weight]
    if centre is not None:
        terms.append((1 - weights.sum(), centre))
    result = np.empty(len(rows[0]), np.float32)

    def add(start: int, end: int) -> None:
        for columns in tiles(start, end):
            part = np.zeros(columns.stop - columns.start)
            for weight, row in terms:
                part += np.multiply(row[columns], weight, dtype=np.float64)
            result[columns] = part

    over_columns(len(result), add)
    return result
