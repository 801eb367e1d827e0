"""What a device checks of a model before it trains on it (``docs/protocol.md``, rule 9).

A server that may publish any model can fish for one member's data through an honest sum: weights crafted so that only
that member's samples leave a trace. Two bounds narrow this down, and neither needs anything but what the device knows:

- *Step*: a round combines updates of norm at most ``clip``, so the model cannot move further than that in a round; or,
  with noise, than the noise of the fewest honest members moves it besides.
- *Loss*: a model that was made to be informative rather than good shows in a loss that explodes on the device's data.

What remains possible is a slow walk within these bounds; ``docs/threat-model.md`` says so.
"""

from __future__ import annotations

import math

from covey_protocol.errors import RefusedError
from covey_protocol.model import Weights
from covey_protocol.ring import distance

STEP_SLACK = 2.0
"""How many clips a model may move in a round: a trimmed mean works by coordinate and may be longer than any update."""

LOSS_SLACK = 4.0
"""How many times the loss of blind guessing, or of the best model so far where that was worse, a model may have."""


class ModelGuard:
    """One device's memory of a task's models.

    Args:
        classes: Labels of the task; blind guessing costs ln(classes) nats. Where there are none (0), nothing is known
            of what guessing costs, and the first loss stands for it.
    """

    def __init__(self, classes: int) -> None:
        self._blind = math.log(max(2, classes)) if classes else math.nan
        self._best = math.inf

    def check_step(self, last: Weights, new: Weights, reach: float, rounds: int) -> None:
        """Check how far a model has moved since the last one this device had.

        Args:
            last: The model before, shape (d,).
            new: The one to check, shape (d,).
            reach: How far one round may move it: the bound on the norm of one device's update, and what noise adds.
            rounds: How many rounds lie between the two.

        Raises:
            RefusedError: Further than that many rounds allow.
        """
        moved = distance(new, last)
        allowed = STEP_SLACK * reach * max(1, rounds)
        if not moved <= allowed:
            raise RefusedError(
                f"the model moved by {moved:.3g} in {max(1, rounds)} rounds of reach {reach:g}; "
                f"at most {allowed:.3g} is plausible",
                cause="model-step",
            )

    def check_loss(self, loss: float) -> None:
        """Check the incoming model's loss on this device's data, before anything is sent about it.

        Raises:
            RefusedError: It has exploded.
        """
        if math.isnan(self._blind) and math.isfinite(loss):
            self._blind = loss
        usual = self._best if math.isfinite(self._best) else self._blind
        allowed = LOSS_SLACK * max(self._blind, usual)
        if not loss <= allowed:
            raise RefusedError(
                f"the model's loss on this device's data is {loss:.3g}; {usual:.3g} is usual", cause="model-loss"
            )
        self._best = min(self._best, loss)
