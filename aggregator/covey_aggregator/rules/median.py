"""Coordinate-wise median (Yin et al. 2018, definition 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def median(rows: NDArray[np.float32], beta: float) -> NDArray[np.float32]:
    """Return the median of every column, shape (d,); ``beta`` is not used."""
    del beta
    return np.asarray(np.median(rows, axis=0), np.float32)
