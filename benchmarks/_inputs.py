"""The inputs that both sides of a comparison make for themselves, the same in every environment."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

CLIP = 5.0
MEAN_SPREAD = 0.01


def updates(count: int, dimension: int) -> list[NDArray[np.float32]]:
    """Return ``count`` updates of twice the clip's norm, so that clipping is at work, as it mostly is in training."""
    rng = np.random.default_rng(20)
    vectors = [rng.standard_normal(dimension, dtype=np.float32) for _ in range(count)]
    return [vector * np.float32(2 * CLIP / np.sqrt(dimension)) for vector in vectors]


def group_means(groups: int, dimension: int) -> list[NDArray[np.float32]]:
    """Return the rows that a trimmed mean works on."""
    rng = np.random.default_rng(21)
    return [rng.standard_normal(dimension, dtype=np.float32) * np.float32(MEAN_SPREAD) for _ in range(groups)]


def fingerprint(vectors: list[NDArray[np.float32]]) -> str:
    """Return a digest of vectors, to hold the two sides' inputs against each other."""
    digest = hashlib.sha256()
    for vector in vectors:
        digest.update(vector.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
