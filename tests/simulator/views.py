"""A view made of plain numbers, to hold attacks against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from covey_agent.data import Dataset
from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks import Attacker, View
from covey_simulator.attacks import attacker as mind_of

DIMENSION = 40
CLASSES = 4


def make_view(
    honest: int = 12, malicious: int = 4, *, number: int = 1, dimension: int = DIMENSION, seed: int = 0, **fields: Any
) -> View:
    """Return a round in which honest updates agree in part; devices 0 and on are honest, the malicious come last."""
    rng = np.random.default_rng([seed, number])
    common = rng.standard_normal(dimension)
    everybody = {
        index: (common + rng.standard_normal(dimension)).astype(np.float32) for index in range(honest + malicious)
    }

    def data(index: int) -> Dataset:
        own = np.random.default_rng([seed, index])
        return Dataset(own.random((20, 16)).astype(np.float32), own.integers(0, CLASSES, 20))

    def train(index: int, given: Dataset) -> Float32:
        """Return numbers that depend on every sample and label."""
        x, y = given.x.reshape(len(given), -1), given.y + 1.0
        sums = np.concatenate([x.sum(0), (x * y[:, None]).sum(0)])
        return (np.resize(sums, dimension) + everybody[index]).astype(np.float32)

    weights = rng.standard_normal(dimension).astype(np.float32)
    values: dict[str, Any] = {
        "round": number,
        "weights": weights,
        "history": (weights,),
        "honest": {index: everybody[index] for index in range(honest)},
        "own": {index: everybody[index] for index in range(honest, honest + malicious)},
        "train": train,
        "data": data,
        "classes": CLASSES,
        "input_gradient": lambda given: np.where(given.x > 0.5, 1.0, -1.0).astype(np.float32),
        "span": (0.0, 1.0),
        "clip": 100.0,
        "rng": np.random.default_rng([seed, number, 1]),
    }
    return View(**{**values, **fields})


def attacker(kind: Any, malicious: int = 4, honest: int = 12, **settings: Any) -> Attacker:
    """Return the mind of the view's malicious devices."""
    attack = Attack(kind=kind, fraction=malicious / (honest + malicious), **settings)
    return mind_of(attack, frozenset(range(honest, honest + malicious)))


def cosine(a: Any, b: Any) -> float:
    """Return the cosine of two updates."""
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
