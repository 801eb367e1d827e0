"""The training plan: what one device does with a model in one round.

A plan comes from the aggregator, so every range is checked on construction, whether the plan is built in
code or decoded from a message; msgspec turns the ``ValueError`` into its ``ValidationError`` while decoding.
"""

from __future__ import annotations

import msgspec

MAX_EPOCHS = 1_000
MAX_STEPS = 1_000_000
MAX_BATCH = 65_536
MAX_LEARNING_RATE = 100.0
MAX_BALANCE = 2.0

# `./run bench leakage` shows what label counts a regression on attested sketches finds, by this number.
BALANCE = 1.25


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to train locally.

    Args:
        epochs: Passes over the local data; ignored where ``steps`` is set.
        steps: Exactly this many batches, over as many passes as it takes; 0 goes by ``epochs``.
        batch_size: Samples a step; the last batch of a pass may be smaller and is used all the same.
        learning_rate: Step size of gradient descent.
        momentum: Share of the last step that the next one keeps, 0 to below 1; it starts at rest in each round.
        balance: A sample of a class with n samples on the device is drawn with a chance proportional to n^-balance: 0
            takes every sample once a pass, 1 sees all classes equally often, more prefers rare ones.

    Raises:
        ValueError: A number lies outside its range; the message names the field.
    """

    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    balance: float = BALANCE

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        for field, value, holds, rule in (
            ("epochs", self.epochs, 1 <= self.epochs <= MAX_EPOCHS, f"1 to {MAX_EPOCHS}"),
            ("steps", self.steps, 0 <= self.steps <= MAX_STEPS, f"0 to {MAX_STEPS}"),
            ("batch_size", self.batch_size, 1 <= self.batch_size <= MAX_BATCH, f"1 to {MAX_BATCH}"),
            (
                "learning_rate",
                self.learning_rate,
                0.0 < self.learning_rate <= MAX_LEARNING_RATE,
                f"above 0, at most {MAX_LEARNING_RATE:g}",
            ),
            ("momentum", self.momentum, 0.0 <= self.momentum < 1.0, "at least 0, below 1"),
            ("balance", self.balance, 0.0 <= self.balance <= MAX_BALANCE, f"0 to {MAX_BALANCE:g}"),
        ):
            if not holds:
                raise ValueError(f"plan: {field} is {value!r}, must be {rule}")

    def steps_for(self, samples: int) -> int:
        """Count the steps that this plan takes on a device with ``samples`` samples."""
        return self.steps or self.epochs * -(-samples // self.batch_size)
