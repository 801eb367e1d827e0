"""What attested sketches tell of a device's label counts: three attacks on what an aggregator has seen.

The aggregator knows each round's model, plan, clip and matrix P, and has labelled samples of its own. An update is
nearly a mixture of the updates that each class alone would give, so it can look for the mixture:

- ``classes``: least squares on the sketches of the class updates, round upon round;
- ``shadows``: it simulates devices with known counts, and learns by ridge regression what counts their sketches mean;
- ``trees``: on top of both, gradient-boosted trees that need not believe in mixtures (the count of a class against all
  estimates of the same device).

Each has its regularisation chosen by the truth, which flatters the attacker. The measure is the correlation between
estimated and true label shares over all honest devices and classes, each device's mean taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_protocol.plan import Plan
from covey_protocol.ring import Metrics, RingScale, clip_factor, encode
from covey_protocol.sketch import SketchMatrix

Table = NDArray[np.float64]
RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
CLASS_SAMPLES = 40


@dataclass(frozen=True, eq=False)
class Seen:
    """One attested round as the aggregator saw it.

    Attributes:
        weights, scale: Its model and ring.
        seed, k: P.
        sketches: Of the devices, in their order, shape (devices, k); rows of devices that did not attest are NaN.
    """

    weights: NDArray[np.float32]
    scale: RingScale
    seed: bytes
    k: int
    sketches: Table


class Attacker:
    """An aggregator that wants to know what labels its devices hold.

    Args:
        trainer: Trains like the devices.
        public: Labelled samples of its own.
        plan: The task's plan.
        shadows: Samples of simulated devices.
    """

    def __init__(self, trainer: Trainer, public: Dataset, plan: Plan, shadows: Sequence[Dataset]) -> None:
        self._trainer, self._plan, self._shadows = trainer, plan, shadows
        labels = range(trainer.bundle.manifest.classes)
        rows = [np.flatnonzero(public.y == label)[:CLASS_SAMPLES] for label in labels]
        self._classes = [Dataset(public.x[chosen], public.y[chosen]) for chosen in rows]
        self.shares = shares(shadows, len(labels))
        self._of_classes: list[Table] = []
        self._of_shadows: list[Table] = []
        self._of_devices: list[Table] = []

    def watch(self, seen: Seen) -> None:
        """Take one round in: all sketches are brought to a common length, for rounds of small steps to count too."""
        unit = 1 / max(float(np.nanmedian(np.linalg.norm(seen.sketches, axis=1))), 1e-12)
        self._of_devices.append(seen.sketches * unit)
        self._of_classes.append(self._sketches(seen, self._classes) * unit)
        self._of_shadows.append(self._sketches(seen, self._shadows) * unit)

    def _sketches(self, seen: Seen, devices: Sequence[Dataset]) -> Table:
        matrix = SketchMatrix(seen.seed, len(seen.weights), seen.k)
        vectors = []
        for number, data in enumerate(devices):
            seed = number.to_bytes(32, "big")
            update = self._trainer.train(seen.weights, data, self._plan, seed=seed).update
            factor, _ = clip_factor(update, seen.scale.clip)
            silent = Metrics(loss=0, accuracy=0, samples=0, norm=0)
            vectors.append(encode(update, silent, seen.scale, seed, factor)[: len(seen.weights)])
        return matrix.of(vectors).view(np.int16).astype(np.float64) * seen.scale.step

    def correlations(self, truth: Table, rounds: int | None = None) -> dict[str, float]:
        """Return what each attack finds after the first so many attested rounds, or all of them."""
        part = slice(0, rounds)
        devices, shadows = np.concatenate(self._of_devices[part], 1), np.concatenate(self._of_shadows[part], 1)
        there = ~np.isnan(devices)
        design = np.concatenate([table.T for table in self._of_classes[part]])
        by_class = {ridge: _mixtures(design, devices, there, ridge) for ridge in RIDGES}
        by_shadow = {ridge: _regressed(shadows, self.shares, devices, there, ridge) for ridge in RIDGES}
        return {
            "classes": max(correlation(found, truth) for found in by_class.values()),
            "shadows": max(correlation(found, truth) for found in by_shadow.values()),
            "trees": self._trees(design, shadows, devices, there, truth),
        }

    def _trees(self, design: Table, shadows: Table, devices: Table, there: NDArray[np.bool_], truth: Table) -> float:
        from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - a second to import

        everything = np.ones(shadows.shape, bool)
        best = -1.0
        for ridge in (1e-2, 0.1, 1.0):
            known, wanted = (
                _mixtures(design, table, mask, ridge) for table, mask in ((shadows, everything), (devices, there))
            )
            model: Any = HistGradientBoostingRegressor(max_iter=150, max_depth=4, random_state=0)
            model.fit(_features(known), self.shares.ravel())
            best = max(best, correlation(model.predict(_features(wanted)).reshape(truth.shape), truth))
        return best


def shares(slices: Sequence[Dataset], classes: int) -> Table:
    """Return label shares, shape (devices, classes)."""
    return np.stack([np.bincount(data.y, minlength=classes) / len(data) for data in slices])


def correlation(found: Table, truth: Table) -> float:
    """Return the correlation over all devices and classes, each device's mean taken off."""
    one, other = (table - table.mean(axis=1, keepdims=True) for table in (found, truth))
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _ridge(design: Table, target: Table, ridge: float) -> Table:
    square = design.T @ design
    size = len(square)
    solved: Table = np.linalg.solve(square + ridge * np.trace(square) / size * np.eye(size), design.T @ target)
    return solved


def _mixtures(design: Table, sketches: Table, there: NDArray[np.bool_], ridge: float) -> Table:
    """Return each device's mixture of classes; equations of rounds in which it did not attest are left out."""
    rows = [_ridge(design[mask], values[mask], ridge) for values, mask in zip(sketches, there, strict=True)]
    found: Table = np.stack(rows)
    centred: Table = found - found.mean(axis=1, keepdims=True)
    return centred


def _regressed(shadows: Table, known: Table, devices: Table, there: NDArray[np.bool_], ridge: float) -> Table:
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    result = np.zeros((len(devices), known.shape[1]))
    for number, mask in enumerate(patterns):
        mean = shadows[:, mask].mean(axis=0)
        learnt = _ridge(shadows[:, mask] - mean, known - known.mean(axis=0), ridge)
        rows = which == number
        result[rows] = (devices[rows][:, mask] - mean) @ learnt
    return result


def _features(mixtures: Table) -> Table:
    """Return one row for each device and class: its estimate, and all of the device's in order."""
    ordered = np.sort(mixtures, axis=1)
    classes = mixtures.shape[1]
    return np.concatenate([mixtures.reshape(-1, 1), np.repeat(ordered, classes, axis=0)], axis=1)
