"""A fleet that only sends sketches: honest devices share a direction and have noise of their own.

Honest update = strength · common direction + noise of the device + noise of the round. Whoever is hostile gets the
function that makes its sketch from what it would have sent honestly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from covey_aggregator.reputation import Reputation, Ruling, Settings, State

Sketch = NDArray[np.float64]
Attack = Callable[[Sketch, Sketch, np.random.Generator], Sketch]  # its honest sketch, the common direction, chance


class World:
    """Plays rounds against a book."""

    def __init__(
        self,
        devices: int = 40,
        *,
        hostile: Mapping[int, Attack] | None = None,
        k: int = 16,
        strength: float = 1.0,
        seed: int = 1,
        settings: Settings | None = None,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.k, self.strength = k, strength
        self.book = Reputation(settings)
        self.names = [f"d-{number:03}" for number in range(devices)]
        self.attacks = {self.names[number]: attack for number, attack in (hostile or {}).items()}
        for name in self.names:
            self.book.admit(name, token=f"token of {name}")

    @property
    def honest(self) -> list[str]:
        return [name for name in self.names if name not in self.attacks]

    def join(self, count: int, attack: Attack | None = None) -> list[str]:
        """Let newcomers in."""
        new = [f"d-{len(self.names) + number:03}" for number in range(count)]
        for name in new:
            self.book.admit(name, token=f"token of {name}")
            if attack is not None:
                self.attacks[name] = attack
        self.names += new
        return new

    def sketches(self, absent: Collection[str] = ()) -> dict[str, Sketch]:
        """Return one round's sketches; every round has a sketch matrix of its own, so nothing carries over."""
        common = self.rng.normal(size=self.k)
        common *= self.strength / np.linalg.norm(common)
        found = {}
        for name in self.names:
            noise = self.rng.normal(size=self.k) / np.sqrt(self.k)
            sketch = common + noise
            if name in self.attacks:
                sketch = self.attacks[name](sketch, common, self.rng)
            if name not in absent:
                found[name] = sketch
        return found

    def play(self, rounds: int = 1, absent: Collection[str] = ()) -> Ruling:
        """Play rounds to their end and return the last ruling."""
        for _ in range(rounds):
            ruling = self.book.settle(self.book.ruling(self.sketches(absent)))
        return ruling

    def states(self, names: Collection[str]) -> set[State]:
        return {self.book.standing(name).state for name in names}


def flipped(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    return -sketch


def huge(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    return 50 * sketch


def nothing(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    return 0 * sketch


def noise(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    drawn = rng.normal(size=len(sketch))
    return np.asarray(drawn * np.linalg.norm(sketch) / np.linalg.norm(drawn))


def copied(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    """One update for all, barely jittered, that nobody could tell by its direction."""
    length = float(np.linalg.norm(sketch))
    return np.asarray(common / np.linalg.norm(common) * length + 0.01 * rng.normal(size=len(sketch)))
