"""Coordinate-wise trimmed mean (Yin et al. 2018, definition 2)."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

TILE = 2048  # columns: a tile of transposed rows stays in the cache while it is sorted
THREADS = min(2, os.cpu_count() or 1)


def trimmed_count(groups: int, beta: float) -> int:
    """Return how many rows are cut on each side: ⌈β·G⌉, at least one from four groups on, and never all."""
    if groups < 3:
        return 0
    wanted = max(math.ceil(beta * groups), 1)
    return min(wanted, (groups - 1) // 2)


def trimmed_mean(rows: NDArray[np.float32], beta: float, threads: int = THREADS) -> NDArray[np.float32]:
    """Return the mean of every column without its largest and smallest values.

    Args:
        rows: Shape (G, d), one row a group.
        beta: Share to cut on each side. With three groups the median is left.
        threads: How many work at once, as numpy lets go of the interpreter while it sorts.

    Returns:
        Shape (d,). The work goes tile by tile, so that memory beyond the rows is O(G · 2,048) a thread; the
        result depends on neither.
    """
    count, dimension = rows.shape
    cut = trimmed_count(count, beta)
    result = np.empty(dimension, np.float32)

    def trim(start: int, end: int) -> None:
        buffer = np.empty((min(TILE, end - start), count), np.float32)
        for at in range(start, end, TILE):
            columns = slice(at, min(at + TILE, end))
            tile = buffer[: columns.stop - at]
            np.copyto(tile, rows[:, columns].T)
            tile.sort(axis=1)
            sums = np.einsum("ij->i", tile[:, cut : count - cut], dtype=np.float64)
            result[columns] = sums / (count - 2 * cut)

    stretch = -(-dimension // threads)
    if threads < 2 or stretch < 8 * TILE:  # too little to be worth a thread
        trim(0, dimension)
    else:
        with ThreadPoolExecutor(threads, "covey-trim") as pool:
            starts = range(0, dimension, stretch)
            for _ in pool.map(trim, starts, [min(start + stretch, dimension) for start in starts]):
                pass
    return result
