"""The attackers' own copy of the server's book: they know the rule and see every update, so they can keep one too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from covey_aggregator.reputation import Reputation, Ruling, Settings
from covey_protocol.bundle import Float32
from covey_protocol.sketch import default_k
from covey_simulator.attacks.view import View


class Shadow:
    """A book of reputations, written from sketches that the attackers draw themselves.

    What they cannot know is the round's own sketch matrix, which is drawn after all updates are fixed; another one of
    the same size says nearly the same.

    Args:
        settings: The rule's parameters.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._book = Reputation(self.settings)
        self._round, self._seed = 0, 0
        self._ruling: Ruling | None = None

    def open(self, view: View) -> None:
        """Begin a round: the ruling expected in the last one is taken for what happened."""
        if view.round == self._round:
            return
        if self._ruling is not None:
            self._book.settle(self._ruling)
        self._round, self._seed, self._ruling = view.round, int(view.rng.integers(2**32)), None
        for index in (*view.honest, *view.own):
            if str(index) not in self._book:
                self._book.admit(str(index))

    def ask(self, view: View, sent: Mapping[int, Float32]) -> Ruling:
        """Return what the rule would say if the malicious devices sent these updates; the last answer is settled."""
        self._ruling = self._book.ruling(self._sketches(view, sent, 0))
        return self._ruling

    def foresee(self, view: View, sent: Mapping[int, Float32], rounds: int) -> Iterator[Ruling]:
        """Yield what it would say in this round and in the next, if everybody went on sending the same."""
        future = Reputation(self.settings, self._book.encode())
        for ahead in range(rounds):
            yield (ruling := future.ruling(self._sketches(view, sent, ahead)))
            future.settle(ruling)

    def _sketches(self, view: View, sent: Mapping[int, Float32], ahead: int) -> dict[str, npt.NDArray[Any]]:
        updates = {**view.honest, **sent}
        names = sorted(updates)
        rows = sketched(np.stack([updates[i] for i in names]), np.random.default_rng([self._seed, ahead]))
        return {str(index): row for index, row in zip(names, rows, strict=True)}


def sketched(rows: npt.NDArray[np.floating], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return balanced CountSketches of some rows, as many numbers as a fleet would choose."""
    dimension = rows.shape[1]
    order, signs = rng.permutation(dimension), rng.choice([-1.0, 1.0], dimension)
    starts = np.linspace(0, dimension, default_k(dimension), endpoint=False).astype(int)
    return np.add.reduceat((rows * signs)[:, order], starts, axis=1)
