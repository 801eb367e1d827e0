"""Ways of looking at the same sketches for backdoors, none of which acts: scores by device, higher is worse.

They are compared by the area under the ROC curve: the chance that an attacker's score is above an honest device's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from covey_agent.data import Dataset
from covey_aggregator.probes import Gradients, Probes
from covey_protocol.bundle import Bundle, Float32
from covey_protocol.sketch import SketchMatrix
from covey_simulator.adversarial import InputGradient
from covey_simulator.engine.conductor import Step
from covey_simulator.engine.parts import in_units

Array = NDArray[np.float64]

WINDOW = 10
"""Rounds back from now that an inverted trigger is held against."""

_STEPS, _RATE, _GOAL = 150, 0.1, 0.9


@dataclass(frozen=True, eq=False)
class _Round:
    weights: Float32
    seed: bytes
    sketches: dict[str, Array]


@dataclass(eq=False)
class Record:
    """What an aggregator has seen: models, seeds and sketches of every attested round."""

    weights: Float32
    rounds: list[_Round] = field(default_factory=list)

    def watch(self, step: Step) -> None:
        """Note a round."""
        if step.outcome.sketches:
            (seed,) = step.outcome.seeds.values()
            sketches = in_units(step.outcome.sketches, step.outcome.scale)
            self.rounds.append(_Round(self.weights, seed, {name: np.asarray(s) for name, s in sketches.items()}))
        self.weights = step.weights


def spectral(record: Record, names: list[str], until: int) -> Array:
    """Score by the fleet's leading residual: cosines averaged over rounds, less the mean direction's part.

    Tran et al. 2018, "Spectral signatures in backdoor attacks", where only the cosines within each round are known.
    """
    total, counts = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for seen in record.rounds[:until]:
        there = [place for place, name in enumerate(names) if name in seen.sketches]
        rows = np.array([seen.sketches[names[place]] for place in there])
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        rows -= rows.mean(axis=0)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        total[np.ix_(there, there)] += rows @ rows.T
        counts[np.ix_(there, there)] += 1
    gram = total / np.maximum(counts, 1)
    np.fill_diagonal(gram, 0)
    _, vectors = np.linalg.eigh(gram)
    score: Array = np.abs(vectors[:, -1])
    return score


def pulls(record: Record, names: list[str], until: int, gradients: Gradients) -> tuple[Array, int]:
    """Score by the pull to the class that the most devices pull to; see ``covey_aggregator.probes``."""
    probes = Probes(gradients)
    for seen in record.rounds[:until]:
        probes.look(seen.weights, {seen.seed: seen.sketches})
    strengths = probes.strengths()
    table = np.array([strengths.get(name, np.zeros(gradients.classes)) for name in names])
    target = int(np.argmax((table > probes.settings.notable).mean(axis=0)))
    return table[:, target], target


def inverted(
    record: Record, names: list[str], until: int, bundle: Bundle, held_out: Dataset, gradients: Gradients
) -> tuple[Array, float, int]:
    """Score by how far updates of the last rounds teach the trigger that the present model answers to most easily.

    The trigger is inverted as by Wang et al. 2019, "Neural Cleanse": for every class the smallest mask and pattern that
    turn held-out samples into it. Then sketches of past rounds are held against its gradient in the models of then.

    Returns:
        The scores, the anomaly index of the class with the smallest mask, and the class.
    """
    weights = record.rounds[until - 1].weights
    slope = InputGradient(bundle)
    found = [_invert(slope, gradients, weights, held_out, label) for label in range(gradients.classes)]
    sizes = np.array([float(mask.sum()) for mask, _ in found])
    spread = 1.4826 * float(np.median(np.abs(sizes - np.median(sizes)))) + 1e-9
    target = int(np.argmin(sizes))
    mask, pattern = found[target]
    rows = held_out.y != target
    stamped = ((1 - mask) * held_out.x[rows] + mask * pattern).astype(np.float32)
    score, weight = np.zeros(len(names)), np.zeros(len(names))
    for seen in record.rounds[max(0, until - WINDOW) : until]:
        direction = gradients.down(seen.weights, stamped, target)
        (probe,) = SketchMatrix(seen.seed, len(direction), _buckets(seen)).of_directions([direction])
        for place, name in enumerate(names):
            if name in seen.sketches:
                sketch = seen.sketches[name]
                score[place] += float(sketch @ probe) / max(float(np.linalg.norm(sketch)), 1e-12)
                weight[place] += float(np.linalg.norm(direction))
    return score / np.maximum(weight, 1e-12), float((np.median(sizes) - sizes[target]) / spread), target


def _buckets(seen: _Round) -> int:
    return len(next(iter(seen.sketches.values())))


def _invert(
    slope: InputGradient, gradients: Gradients, weights: Float32, held_out: Dataset, label: int
) -> tuple[Array, Array]:
    """Return the smallest mask, and its pattern, that turn nine of ten samples of other classes into one."""
    x = held_out.x[held_out.y != label].astype(np.float64)
    low, high = float(held_out.x.min()), float(held_out.x.max())
    wanted = np.full(len(x), label, np.int64)
    rng = np.random.default_rng(label)
    logits = np.stack([np.full(x.shape[1:], -2.0), rng.normal(0, 0.5, x.shape[1:])])
    mean, square = np.zeros_like(logits), np.zeros_like(logits)
    price, best = 0.03, None
    for step in range(1, _STEPS + 1):
        mask, part = 1 / (1 + np.exp(-logits))
        pattern = low + (high - low) * part
        batch = Dataset(((1 - mask) * x + mask * pattern).astype(np.float32), wanted)
        success = gradients.share(weights, batch.x, label)
        if success >= _GOAL and (best is None or mask.sum() < best[0].sum()):
            best = mask, pattern
        price *= 1.1 if success >= _GOAL else 1 / 1.1
        by_input = slope(weights, batch) / len(x)
        pushed = np.stack(
            [
                ((by_input * (pattern - x)).sum(axis=0) + price) * mask * (1 - mask),
                (by_input * mask).sum(axis=0) * (high - low) * part * (1 - part),
            ]
        )
        mean, square = 0.9 * mean + 0.1 * pushed, 0.99 * square + 0.01 * pushed**2
        logits = logits - _RATE * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return best if best is not None else (np.ones(x.shape[1:]), pattern)


def area(scores: Array, hostile: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve."""
    above = scores[hostile][:, None] - scores[~hostile][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
