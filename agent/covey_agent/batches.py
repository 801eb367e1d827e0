"""Which samples go into each step of local training.

What a device trains on shows in its update, and so, a little, in every sum and sketch of it. The count of its labels
shows most: an update is nearly a mixture of what each class alone would give, weighted by how often the class was seen.
So by default classes are not seen as often as they occur: a sample of a class with n samples is drawn with a chance
proportional to n^-balance. At 1 every class that the device has is seen equally often and only which ones it has still
shows; a little above 1, common classes are seen somewhat less than rare ones, which cancels what their greater variety
gives away. It serves learning, too: devices whose labels differ pull the model apart less (compare Li et al. 2022,
"Federated learning on non-IID data silos", on label skew), and honest updates that agree make poisoned ones stand out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from covey_protocol.bundle import Int64

Weights = npt.NDArray[np.float64]


def chances(labels: Int64, balance: float) -> Weights:
    """Return each sample's chance in one draw: proportional to n^-balance, n the size of its class; they sum to 1."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Weights = np.power(counts[places].astype(np.float64), -balance)
    chance: Weights = weights / weights.sum()
    return chance


def batches(labels: Int64, batch_size: int, total: int, balance: float, rng: np.random.Generator) -> Iterator[Int64]:
    """Yield the rows of batches, pass by pass; the last batch of a pass is as small as it is.

    Args:
        labels: Of all samples.
        batch_size: Samples a step.
        total: How many batches.
        balance: How far classes are evened out; 0 takes every sample once a pass.
        rng: Decides the order.
    """
    chance = chances(labels, balance) if balance else None
    while total > 0:
        rows = _even(chance, rng) if chance is not None else rng.permutation(len(labels))
        for start in range(0, len(rows), batch_size)[:total]:
            yield rows[start : start + batch_size]
            total -= 1


def _even(chance: Weights, rng: np.random.Generator) -> Int64:
    """Return one pass of as many rows as there are samples, drawn by chance and in random order.

    Systematic sampling (Madow 1949): a sample whose expected number is e comes ⌊e⌋ or ⌈e⌉ times, never more or fewer,
    so that a pass is not made any noisier than it has to be.
    """
    size = len(chance)
    order = rng.permutation(size)
    marks = (np.arange(size) + rng.random()) / size
    bounds = np.cumsum(chance[order])
    bounds[-1] = 1.0  # rounding leaves it a little off
    rows = order[np.searchsorted(bounds, marks, side="right")]
    return rng.permutation(rows)
