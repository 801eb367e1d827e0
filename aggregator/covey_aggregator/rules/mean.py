"""The plain mean: no defence, for comparisons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean(rows: NDArray[np.float32], beta: float) -> NDArray[np.float32]:
    """Return the mean of the rows, shape (d,); ``beta`` is not used."""
    del beta
    return np.asarray(rows.mean(axis=0, dtype=np.float64), np.float32)
