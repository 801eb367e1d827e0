"""A trainer that has another one do the work."""

from __future__ import annotations

from covey_agent.data import Dataset
from covey_agent.trainer import Cancel, Trainer
from covey_protocol.bundle import Float32


class BorrowedTrainer(Trainer):
    """Base of trainers that differ from an honest one in what ``train`` gives; all else is the honest one's.

    Args:
        inner: Does the work; one may serve several devices.
    """

    def __init__(self, inner: Trainer) -> None:
        # Trainer's own constructor is left out on purpose: the sessions are those of ``inner``, and all public methods
        # are answered here or by who inherits.
        self.bundle = inner.bundle
        self._inner = inner

    def self_test(self) -> None:
        """Replay the bundle's reference trace."""
        self._inner.self_test()

    def evaluate(self, weights: Float32, data: Dataset, *, cancel: Cancel | None = None) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy, honestly."""
        return self._inner.evaluate(weights, data, cancel=cancel)
