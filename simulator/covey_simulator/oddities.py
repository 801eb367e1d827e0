"""Honest devices that train differently. They are no attackers, and a defence that expels them is wrong.

- ``adversarial-training``: part of the samples is perturbed against the incoming model before each round's training
  (Goodfellow et al. 2015; Kurakin et al. 2017, "Adversarial machine learning at scale", whose mixture of clean and
  perturbed samples this is), beside devices that train plainly.
- ``one-class``: all samples are of one class, the device's most frequent one; it trades with others for them.
- ``few-samples``: a handful of samples, so that its updates are mostly noise.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from covey_agent.data import Dataset
from covey_agent.trainer import Cancel, Progress, Trainer, TrainResult
from covey_protocol.bundle import Bundle, Float32
from covey_protocol.plan import Plan
from covey_simulator.borrowed import BorrowedTrainer
from covey_simulator.roles import odd_devices
from covey_simulator.scenario import Scenario

if TYPE_CHECKING:
    from covey_simulator.adversarial import InputGradient


def rearranged(slices: Sequence[Dataset], scenario: Scenario) -> list[Dataset]:
    """Return the devices' samples with those of odd devices as the scenario has them. No sample is on two devices."""
    odd, rng = odd_devices(scenario), scenario.generator("oddities")
    if scenario.oddities.kind == "one-class":
        return _one_class(slices, odd, rng)
    if scenario.oddities.kind == "few-samples":
        assert scenario.oddities.samples is not None
        return [_some(part, scenario.oddities.samples, rng) if i in odd else part for i, part in enumerate(slices)]
    return list(slices)


class Diet:
    """What honest devices train on, round by round.

    Args:
        scenario: Says who is odd, and how.
        bundle: The model.
        slices: The devices' samples.
    """

    def __init__(self, scenario: Scenario, bundle: Bundle, slices: Sequence[Dataset]) -> None:
        self._how, self._bundle, self._slices = scenario.oddities, bundle, slices
        self.perturbing = odd_devices(scenario) if self._how.kind == "adversarial-training" else frozenset[int]()

    def of(self, index: int, weights: Float32) -> Dataset:
        """Return what a device trains on when this model comes in."""
        data = self._slices[index]
        if index not in self.perturbing:
            return data
        from covey_simulator.adversarial import perturbed  # noqa: PLC0415 - onnx is heavy, and seldom needed

        how = self._how
        assert how.share is not None and how.epsilon is not None and how.steps is not None
        rows = np.linspace(0, len(data) - 1, max(1, round(how.share * len(data)))).round().astype(int)
        chosen = Dataset(data.x[rows], data.y[rows])
        x = data.x.copy()
        gradient = functools.partial(self._gradient, weights)
        x[rows] = perturbed(chosen, gradient, how.epsilon, how.steps, self._span).x
        return Dataset(x, data.y)

    @functools.cached_property
    def _span(self) -> tuple[float, float]:
        return min(float(part.x.min()) for part in self._slices), max(float(part.x.max()) for part in self._slices)

    @functools.cached_property
    def _gradient(self) -> InputGradient:
        from covey_simulator.adversarial import InputGradient  # noqa: PLC0415

        return InputGradient(self._bundle)


class OddTrainer(BorrowedTrainer):
    """The trainer of a real agent whose device is odd: an honest one on its own diet.

    Args:
        inner: Does the work.
        diet: Of all devices.
        index: Which device this is.
    """

    def __init__(self, inner: Trainer, diet: Diet, index: int) -> None:
        super().__init__(inner)
        self._diet, self._index = diet, index

    def train(
        self,
        weights: Float32,
        data: Dataset,
        plan: Plan,
        *,
        seed: bytes,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
    ) -> TrainResult:
        """Train on what the diet gives; arguments and errors as for ``Trainer``."""
        given = self._diet.of(self._index, weights)
        return self._inner.train(weights, given, plan, seed=seed, cancel=cancel, progress=progress)


def _some(part: Dataset, count: int, rng: np.random.Generator) -> Dataset:
    rows = np.sort(rng.permutation(len(part))[:count])
    return Dataset(part.x[rows], part.y[rows])


def _one_class(slices: Sequence[Dataset], odd: frozenset[int], rng: np.random.Generator) -> list[Dataset]:
    """Let odd devices swap samples of other classes for samples of theirs; what nobody can swap is left out."""
    xs, ys = [part.x.copy() for part in slices], [part.y.copy() for part in slices]
    classes = {index: int(np.bincount(ys[index]).argmax()) for index in sorted(odd)}
    for index, own in classes.items():
        donors = [
            (other, row)
            for other in range(len(slices))
            if other != index and classes.get(other) != own
            for row in np.flatnonzero(ys[other] == own)
        ]
        rng.shuffle(donors)
        for row, (other, theirs) in zip(np.flatnonzero(ys[index] != own), donors, strict=False):
            for values in (xs, ys):
                mine = values[index][row].copy()
                values[index][row], values[other][theirs] = values[other][theirs], mine
    kept = [ys[index] == classes[index] if index in odd else np.ones(len(ys[index]), bool) for index in range(len(ys))]
    return [Dataset(x[rows], y[rows]) for x, y, rows in zip(xs, ys, kept, strict=True)]
