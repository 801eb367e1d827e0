"""Devices that teach a small model of digits what its held-out samples teach, rightly or wrongly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_aggregator.probes import Gradients, Probes, Settings
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import mlp
from covey_protocol.bundle import Bundle
from covey_protocol.plan import Plan
from covey_protocol.sketch import SketchMatrix

CLASSES = 10


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)


def small_bundle() -> Bundle:
    return build_bundle(mlp([64], CLASSES, (16,)), name="digits")


class Classroom:
    """Every device holds two labels; some teach a share of everything under one label as well."""

    def __init__(
        self, devices: int = 40, wrong: Mapping[int, int] | None = None, labels: int = 2, noise: float = 0.5
    ) -> None:
        self.rng, self.noise = np.random.default_rng(5), noise
        self.bundle = small_bundle()
        x, y = digits()
        plan = Plan(steps=30, batch_size=50, learning_rate=0.3, momentum=0.0)
        start = self.bundle.weights
        trained = Trainer(self.bundle).train(start, Dataset(x[400:1400], y[400:1400]), plan, seed=bytes(32))
        self.weights = start + trained.update
        self.gradients = Gradients(self.bundle, x[:400], y[:400])
        self.names = [f"d-{number:02}" for number in range(devices)]
        self.labels = [[(number + more) % CLASSES for more in range(labels)] for number in range(devices)]
        self.wrong = dict(wrong or {})
        self.directions = self.gradients(self.weights)

    def update(self, number: int, share: float) -> NDArray[np.float32]:
        """Return what a device teaches in a round."""
        mixture = np.zeros(3 * CLASSES)
        for label in self.labels[number]:
            mixture[[label, CLASSES + label]] = self.rng.uniform(0.3, 1.0, 2)
        if number in self.wrong:
            mixture[2 * CLASSES + self.wrong[number]] = share * mixture.sum()
        update = mixture @ self.directions
        update += self.noise * np.linalg.norm(update) / np.sqrt(len(update)) * self.rng.normal(size=len(update))
        return update.astype(np.float32)

    def sketches(
        self, seed: bytes, *, share: float = 0.4, scale: float = 1.0, absent: Collection[int] = ()
    ) -> dict[str, NDArray[np.float64]]:
        """Return a round's sketches."""
        matrix = SketchMatrix(seed, self.bundle.dimension, 16)
        there = [number for number in range(len(self.names)) if number not in absent]
        rows = matrix.of_directions([np.float32(scale) * self.update(number, share) for number in there])
        return {self.names[number]: row for number, row in zip(there, rows, strict=True)}

    def attend(self, probes: Probes, rounds: int, *, share: float = 0.4, scale: float = 1.0) -> None:
        """Play rounds, each with a sketch matrix of its own."""
        for _ in range(rounds):
            seed = self.rng.bytes(32)
            probes.look(self.weights, {seed: self.sketches(seed, share=share, scale=scale)})

    def probes(self, **settings: Any) -> Probes:
        """Return a new book."""
        return Probes(self.gradients, Settings(**settings))
