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
MAX_WEIGHT_DECAY = 1.0
MAX_PROXIMAL = 100.0
OPTIMISERS = ("sgd", "adam")

# `./run bench leakage` shows what label counts a regression on attested sketches finds, by this number.
BALANCE = 1.25


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to train locally.

    Args:
        epochs: Passes over the local data; ignored where ``steps`` is set.
        steps: Exactly this many batches, over as many passes as it takes; 0 goes by ``epochs``.
        batch_size: Samples a step; the last batch of a pass may be smaller and is used all the same.
        learning_rate: Step size of gradient descent.
        momentum: Share of the last step that the next one keeps, 0 to below 1; it starts at rest in each round. Adam's
            first decay rate.
        balance: A sample of a class with n samples on the device is drawn with a chance proportional to n^-balance: 0
            takes every sample once a pass, 1 sees all classes equally often, more prefers rare ones. Only labels are
            balanced.
        optimiser: ``sgd`` (with momentum) or ``adam`` (decay decoupled, as in AdamW).
        weight_decay: Share of each weight that a step takes off, times the learning rate.
        proximal: FedProx's μ: how strongly weights are drawn back to the round's model; 0 lets them go.
        beta2: Adam's second decay rate; nothing else looks at it.

    Raises:
        ValueError: A number lies outside its range; the message names the field.
    """

    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    balance: float = BALANCE
    optimiser: str = "sgd"
    weight_decay: float = 0.0
    proximal: float = 0.0
    beta2: float = 0.999

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
            ("optimiser", self.optimiser, self.optimiser in OPTIMISERS, " or ".join(OPTIMISERS)),
            (
                "weight_decay",
                self.weight_decay,
                0.0 <= self.weight_decay <= MAX_WEIGHT_DECAY,
                f"0 to {MAX_WEIGHT_DECAY:g}",
            ),
            ("proximal", self.proximal, 0.0 <= self.proximal <= MAX_PROXIMAL, f"0 to {MAX_PROXIMAL:g}"),
            ("beta2", self.beta2, 0.0 <= self.beta2 < 1.0, "at least 0, below 1"),
        ):
            if not holds:
                raise ValueError(f"plan: {field} is {value!r}, must be {rule}")

    def steps_for(self, samples: int) -> int:
        """Count the steps that this plan takes on a device with ``samples`` samples."""
        return self.steps or self.epochs * -(-samples // self.batch_size)
