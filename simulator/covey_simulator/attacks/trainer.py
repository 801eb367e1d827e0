"""Hostile devices that run the real agent: they mask and sign like any other."""

from __future__ import annotations

from covey_agent.data import Dataset
from covey_agent.trainer import Cancel, Progress, Trainer, TrainResult
from covey_protocol.bundle import Float32
from covey_protocol.plan import Plan
from covey_simulator.attacks.coalition import Coalition
from covey_simulator.borrowed import BorrowedTrainer


class PoisoningTrainer(BorrowedTrainer):
    """Answers as an honest trainer does, but for the update, which its coalition chooses.

    Loss and accuracy, which the device reports, are those of the incoming model on its true data.

    Args:
        inner: The honest trainer; one may serve several poisoners.
        coalition: Chooses the update.
        index: Which of its devices this is.
    """

    def __init__(self, inner: Trainer, coalition: Coalition, index: int) -> None:
        super().__init__(inner)
        self._coalition, self._index = coalition, index

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
        """Evaluate, and ask the coalition for the update; arguments and errors as for ``Trainer``."""
        loss, accuracy = self._inner.evaluate(weights, data, cancel=cancel)
        update = self._coalition.update_of(self._index, weights)
        steps = plan.steps_for(len(data))
        if progress is not None:
            progress(steps, steps)
        return TrainResult(update, loss, accuracy, len(data), steps)
