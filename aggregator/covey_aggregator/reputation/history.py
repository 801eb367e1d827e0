"""What the fleet remembers of past rounds: how alike any two devices' updates have been.

Every attested round has a sketch matrix of its own, so sketches of different rounds cannot be compared; the cosines
within a round can, and their moving average over rounds is what tells a steady poisoner from an honest device with
unusual data. A pair's average moves, and its memory fades, only in rounds in which both attested: absences change
nothing.

Memory is 5 bytes a pair, 5 MB for the 1,000 devices of a full shard. Shards are judged apart, so it grows linearly in
the number of shards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_aggregator.reputation.sketches import TINY, Array, Mask

_MOST = 255  # rounds counted; the correction for a young average is gone long before


class Cosines:
    """M, the moving averages of pairwise cosines, by names.

    Args:
        memory: λ, the share of the past.
        kept: What ``encode`` returned, with its names.
    """

    def __init__(self, memory: float, kept: tuple[Sequence[str], bytes, bytes] | None = None) -> None:
        self._memory = memory
        self._slots: dict[str, int] = {}
        self._averages = np.zeros((0, 0), np.float32)
        self._rounds = np.zeros((0, 0), np.uint8)
        if kept is not None:
            names, averages, rounds = kept
            size, upper = len(names), np.triu_indices(len(names), 1)
            self._slots = {name: slot for slot, name in enumerate(names)}
            self._averages, self._rounds = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint8)
            for matrix, flat in (
                (self._averages, np.frombuffer(averages, "<f4")),
                (self._rounds, np.frombuffer(rounds, "u1")),
            ):
                matrix[upper] = flat
                matrix.T[upper] = flat

    def after(self, names: Sequence[str], directions: Array) -> Page:
        """Return the averages among the named as one more round would leave them, without keeping them."""
        size = len(names)
        known = np.array([position for position, name in enumerate(names) if name in self._slots], int)
        slots = [self._slots[names[position]] for position in known]
        averages, rounds = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint8)
        averages[np.ix_(known, known)] = self._averages[np.ix_(slots, slots)]
        rounds[np.ix_(known, known)] = self._rounds[np.ix_(slots, slots)]
        past = averages.copy()
        averages *= np.float32(self._memory)
        averages += ((1 - self._memory) * directions @ directions.T).astype(np.float32)
        rounds += rounds < _MOST
        for matrix in (averages, rounds):  # nobody is a pair
            np.fill_diagonal(matrix, 0)
        return Page(tuple(names), past, averages, rounds, self._memory)

    def keep(self, page: Page) -> None:
        """Take a round into the averages."""
        self._grow([name for name in page.names if name not in self._slots])
        slots = [self._slots[name] for name in page.names]
        self._averages[np.ix_(slots, slots)] = page.averages
        self._rounds[np.ix_(slots, slots)] = page.rounds

    def forget(self, names: Collection[str]) -> None:
        """Drop devices, and give their memory back."""
        left = [name for name in self._slots if name not in names]
        slots = [self._slots[name] for name in left]
        self._averages = self._averages[np.ix_(slots, slots)].copy()
        self._rounds = self._rounds[np.ix_(slots, slots)].copy()
        self._slots = {name: slot for slot, name in enumerate(left)}

    def rename(self, old: str, new: str) -> None:
        """Let a device's past follow it to another name."""
        if old in self._slots:
            self.forget([new])
            self._slots[new] = self._slots.pop(old)

    def encode(self) -> tuple[list[str], bytes, bytes]:
        """Return names, averages and rounds; the matrices are symmetric, so half of each is enough."""
        names = sorted(self._slots)
        slots = [self._slots[name] for name in names]
        upper = np.triu_indices(len(names), 1)
        averages = self._averages[np.ix_(slots, slots)][upper].astype("<f4").tobytes()
        return names, averages, self._rounds[np.ix_(slots, slots)][upper].tobytes()

    def _grow(self, newcomers: Sequence[str]) -> None:
        before, size = len(self._slots), len(self._slots) + len(newcomers)
        for name, kind in (("_averages", np.float32), ("_rounds", np.uint8)):
            grown: NDArray[Any] = np.zeros((size, size), kind)
            grown[:before, :before] = getattr(self, name)
            setattr(self, name, grown)
        for slot, name in enumerate(newcomers, before):
            self._slots[name] = slot


class Page:
    """The averages among the devices of one round."""

    def __init__(self, names: tuple[str, ...], past: Any, averages: Any, rounds: Any, memory: float) -> None:
        self.names = names
        self.past: NDArray[np.float32] = past
        self.averages: NDArray[np.float32] = averages
        self.rounds: NDArray[np.uint8] = rounds
        self._memory = memory

    def cosines(self) -> Array:
        """Return C: the averages, corrected for their youth; a device's cosine with itself is left at zero."""
        return self.averages / np.maximum(self.weights(), TINY)

    def met(self) -> Mask:
        """Say who has met anybody of these before this round."""
        return np.asarray((self.rounds > 1).any(axis=1))

    def weights(self) -> Array:
        """Return how much of each pair's average its rounds are: towards 1 for those that have met often."""
        return np.asarray(1.0 - self._memory**self.rounds)
