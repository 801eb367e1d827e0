"""Coordinate-wise trimmed mean (Yin et al. 2018, definition 2)."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

TILE = 4096  # columns: a tile of transposed rows stays in the cache while it is sorted
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
        Shape (d,). The work goes tile by tile, so that memory beyond the rows is O(G · 4,096) a thread; the
        result depends on neither.
    """
    count, dimension = rows.shape
    cut = trimmed_count(count, beta)
    result = np.empty(dimension, np.float32)

    def trim(start: int) -> None:
        tile = np.ascontiguousarray(rows[:, start : start + TILE].T)
        tile.sort(axis=1)
        result[start : start + TILE] = tile[:, cut : count - cut].mean(axis=1, dtype=np.float64)

    starts = range(0, dimension, TILE)
    if threads < 2 or len(starts) < 2 * threads:  # too little to be worth starting them
        for start in starts:
            trim(start)
    else:
        with ThreadPoolExecutor(threads, "covey-trim") as pool:
            for _ in pool.map(trim, starts):
                pass
    return result
