"""What a device has spent of its data's privacy, over all rounds of all tasks.

It belongs to the data, as the other marks do: no new task, policy or aggregator key sets it back. A round is paid for
before its masked vector leaves the device, whether or not a sum ever comes about, and a sketch before it is told.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import numpy as np

from covey_protocol import accounting
from covey_protocol.accounting import ORDERS, Spending
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError, RefusedError
from covey_protocol.policy import Policy
from covey_protocol.thresholds import ROSTER_MAX, colluders

_SPENT, _ROUNDS = "privacy/spent", "privacy/rounds"
_NUMBER = "<f8"
_MOST_HONEST = ROSTER_MAX - colluders(ROSTER_MAX)


class PrivacyLedger:
    """The part of a device's ledger that counts privacy.

    Args:
        rows: The ledger's, which this one reads and writes.
        masked: Returns in how many rounds the device has masked an update.
        forgotten: Returns how many joins it has forgotten.

    Raises:
        LocalError: What is stored is damaged.
    """

    def __init__(
        self, rows: MutableMapping[str, bytes], masked: Callable[[], int], forgotten: Callable[[], int]
    ) -> None:
        self._rows, self._masked, self._forgotten = rows, masked, forgotten
        stored = rows.get(_SPENT)
        self._spent = accounting.nothing()
        if stored is not None:
            if len(stored) != 8 * len(ORDERS):
                raise LocalError("the stored privacy budget is damaged", cause="store")
            self._spent = np.frombuffer(stored, _NUMBER).astype(np.float64)
            if not (self._spent >= 0).all():
                raise LocalError("the stored privacy budget is damaged", cause="store")

    @property
    def rounds(self) -> int:
        """In how many rounds with noise an update was masked."""
        return int(self._rows.get(_ROUNDS, b"0"))

    @property
    def bare(self) -> int:
        """In how many rounds without noise an update was masked; one of them is more than any budget."""
        return self._masked() - self.rounds

    def spent(self, policy: Policy) -> Spending:
        """Return what was spent.

        A join that was forgotten, because the disk was put back, counts as a round with a sketch and with the least
        noise that the policy allows; without such a floor as more than any budget.
        """
        spent = accounting.everything() if self.bare > 0 else self._spent
        if self._forgotten():
            spent = spent + self._forgotten() * accounting.least_noise_cost(policy.noise_min, _MOST_HONEST)
        return spent

    def epsilon(self, policy: Policy) -> float:
        """Return ε so far at the policy's δ."""
        return accounting.epsilon(self.spent(policy), policy.delta)

    def snapshot(self, policy: Policy) -> dict[str, float | int | None]:
        """Return what people are shown; an ε of None is not bounded."""
        spent = self.epsilon(policy)
        return {
            "epsilon": round(spent, 6) if np.isfinite(spent) else None,
            "delta": policy.delta,
            "max": policy.epsilon_max or None,
            "rounds": self.rounds,
            "without_noise": self.bare,
        }

    def check(self, cost: Spending, policy: Policy) -> None:
        """Refuse what the budget does not allow.

        Raises:
            RefusedError: It is spent; the message says how far.
        """
        if not policy.epsilon_max:
            return
        after = accounting.epsilon(self.spent(policy) + cost, policy.delta)
        if after <= policy.epsilon_max:
            return
        spent = self.epsilon(policy)
        why = f"one more round would make it {after:.3g}"
        if self.bare > 0:
            why = f"it was in {self.bare} rounds without noise"
        elif not np.isfinite(spent):
            why = f"its disk was put back, and {self._forgotten()} joins are forgotten"
        raise RefusedError(
            f"the privacy budget is spent: epsilon is {spent:.3g} of {policy.epsilon_max:g} at delta "
            f"{policy.delta:g}, and {why}",
            cause="privacy-budget",
        )

    def pay(self, cost: Spending, policy: Policy) -> list[Remember]:
        """Spend what the round that is about to be masked for costs; errors as ``check``."""
        self.check(cost, policy)
        return [self._add(cost), self._mark(_ROUNDS, str(self.rounds + 1).encode())]

    def pay_more(self, cost: Spending, policy: Policy) -> list[Remember]:
        """Spend what a sketch costs beside its round; errors as ``check``."""
        self.check(cost, policy)
        return [self._add(cost)]

    def _add(self, cost: Spending) -> Remember:
        self._spent = self._spent + cost
        return self._mark(_SPENT, self._spent.astype(_NUMBER).tobytes())

    def _mark(self, key: str, value: bytes) -> Remember:
        self._rows[key] = value
        return Remember(key, value)
