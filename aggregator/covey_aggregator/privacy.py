"""A task's privacy: the noise that its settings come to, what its rounds have cost each device, and what they will.

What counts in the end is each device's own ledger, which refuses when its budget is spent. What is reckoned here is for
display and for refusing tasks that cannot keep what they promise. It never tells less than the ledgers of devices that
have been in this fleet's rounds alone, but for rounds whose record was lost with a journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from covey_aggregator.records import RoundRecord
from covey_protocol import accounting
from covey_protocol.accounting import Spending
from covey_protocol.errors import ConfigError
from covey_protocol.noise import Noise, calibrate
from covey_protocol.policy import Policy
from covey_protocol.thresholds import ROSTER_MAX

DELTA = 1e-5
_BEFORE_MASKING = ("too-few-joined", "too-few-dealt")


class Privacy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What noise devices add; without one of the first two, none.

    Attributes:
        noise_multiplier: What the noise of a sum's honest members is to the largest update.
        epsilon: What all rounds together may cost one device. Alone, the noise follows from it; beside a multiplier it
            is a ceiling.
        delta: The probability that goes with it.
        rounds: How many rounds a device's budget is to last; 0 for the task's. More leaves room for attempts that fail
            after updates were masked.
        a_min: Smallest set that is summed, where it exceeds the formula's. The more members are sure to be in a sum,
            the less noise each has to add.
    """

    noise_multiplier: Annotated[float, msgspec.Meta(gt=0, le=1000)] | None = None
    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = DELTA
    rounds: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    a_min: Annotated[int, msgspec.Meta(ge=0, le=ROSTER_MAX)] = 0

    @property
    def on(self) -> bool:
        """Whether there is noise at all."""
        return self.noise_multiplier is not None or self.epsilon is not None

    def lasting(self, rounds: int) -> int:
        """Return how many rounds of a task's the budget has to last.

        Raises:
            ConfigError: Fewer than the task has.
        """
        if self.rounds and self.rounds < rounds:
            raise ConfigError(f"privacy.rounds: a budget for {self.rounds} rounds, and the task has {rounds}")
        return self.rounds or rounds

    def noise(self, *, rounds: int, group_size: int, dimension: int, sketch: int) -> Noise | None:
        """Return the noise of each round in groups of a size, None without any.

        Args:
            rounds: The task's.
            group_size: Members of a group.
            dimension: Parameters of the model.
            sketch: Numbers in a sketch, 0 for none.

        Raises:
            ConfigError: It cannot be had; the message says by how much.
        """
        if not self.on:
            if self != Privacy(delta=self.delta):
                raise ConfigError("privacy: names neither noise_multiplier nor epsilon")
            return None
        if self.a_min > group_size:
            raise ConfigError(f"privacy.a_min {self.a_min}: groups have {group_size} members")
        ring = {"n_max": group_size, "dimension": dimension, "a_min": self.a_min, "sketch": sketch}
        lasting = self.lasting(rounds)
        try:
            multiplier = self.noise_multiplier
            if multiplier is None:
                assert self.epsilon is not None
                multiplier = accounting.multiplier_for(self.epsilon, self.delta, lasting, **ring)
            noise = calibrate(multiplier, **ring)
        except ConfigError as error:
            raise ConfigError(f"privacy: {error}") from error
        cost = accounting.round_cost(noise, sketched=bool(sketch))
        spends = accounting.epsilon(lasting * cost, self.delta)
        if self.epsilon is not None and spends > self.epsilon:
            within = accounting.rounds_within(cost, self.epsilon, self.delta)
            needed = accounting.multiplier_for(self.epsilon, self.delta, lasting, **ring)
            raise ConfigError(
                f"privacy: noise_multiplier {multiplier:g} spends epsilon {spends:.3g} in {lasting} rounds, and "
                f"{self.epsilon:g} is allowed: that is enough for {within} rounds, or takes a multiplier of {needed:g}"
            )
        return noise


def check_policy(noise: Noise | None, policy: Policy, *, rounds: int, sketch: int) -> None:
    """Refuse a task that devices would refuse, now or before its last round.

    Args:
        noise: Of each of its rounds.
        policy: The operator's.
        rounds: How many.
        sketch: Numbers in a sketch.

    Raises:
        ConfigError: Naming the floor or the budget.
    """
    multiplier = noise.multiplier if noise is not None else 0.0
    if multiplier < policy.noise_min:
        raise ConfigError(f"noise of {multiplier:g}: the policy's noise_min is {policy.noise_min:g}")
    if not policy.epsilon_max:
        return
    if noise is None:
        raise ConfigError(f"no noise: the policy's epsilon_max is {policy.epsilon_max:g}; set privacy.epsilon")
    cost = accounting.round_cost(noise, sketched=bool(sketch))
    within = accounting.rounds_within(cost, policy.epsilon_max, policy.delta)
    if within < rounds:
        spends = accounting.epsilon(rounds * cost, policy.delta)
        raise ConfigError(
            f"{rounds} rounds spend epsilon {spends:.3g} at delta {policy.delta:g}, and the policy's epsilon_max is "
            f"{policy.epsilon_max:g}: devices would stop after {within} rounds"
        )


def spent(records: Iterable[RoundRecord]) -> dict[str, Spending]:
    """Return what rounds have cost every device that joined one and may have masked an update."""
    found: dict[str, Spending] = {}
    for record in records:
        cost = accounting.everything()
        if record.noise is not None:
            cost = accounting.round_cost(record.noise, sketched=bool(record.sketch))
        for detail in record.details:
            if detail.cause in _BEFORE_MASKING:
                continue
            for name in detail.members:
                found[name] = found.get(name, accounting.nothing()) + cost
    return found


def together(parts: Iterable[Mapping[str, Spending]]) -> dict[str, Spending]:
    """Return what several tasks have cost every device."""
    found: dict[str, Spending] = {}
    for part in parts:
        for name, cost in part.items():
            found[name] = found.get(name, accounting.nothing()) + cost
    return found
