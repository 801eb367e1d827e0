"""Attackers who know the reputation rule to the last number, and aim at its parts.

They are written for ``covey_aggregator.reputation``; what is named z₀, q̄, κ and so on is so named on its page in
``docs/robustness.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covey_aggregator.reputation import Settings
from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks.view import Attacker, View, median_norm, unit

Vector = npt.NDArray[np.float64]
SEARCH_STEPS = 40
INFLATION = 2.0  # under the rule's band of 2.5
DOORKEEPERS_NORM = 0.25


@dataclass(frozen=True)
class Crowd:
    """What the rule will measure of the honest updates, without a sketch's error.

    Attributes:
        mean: The mean of their directions, not of length 1.
        usual: q̄, the median agreement with the others.
        spread: (Q84 − q̄) / q̄.
        norm: Their median norm.
    """

    mean: Vector
    usual: float
    spread: float
    norm: float

    @staticmethod
    def of(view: View) -> Crowd:
        """Measure a round's honest updates."""
        rows = view.crowd
        directions = np.stack([unit(row) for row in rows])
        mean: Vector = directions.mean(axis=0)
        count = len(rows)
        agreement = (directions @ mean * count - 1) / max(count - 1, 1)
        usual = max(float(np.median(agreement)), 0.01)
        return Crowd(mean, usual, (float(np.quantile(agreement, 0.84)) - usual) / usual, median_norm(rows))


class NormSkew(Attacker):
    """scale · (median norm) · x/‖x‖: tiny updates that agree with everybody.

    They are above the smallest norm that is accepted, and pull the norm reference down: the next clip follows the norms
    of the accepted, and honest devices come to lie scales above the location L₀.
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return honest directions at a small length."""
        length = self.scale * median_norm(view.crowd)
        return {index: (length * unit(update)).astype(np.float32) for index, update in view.own.items()}


class GateClosing(Attacker):
    """Closes the gate κ, under which disagreement counts for nothing, and lets others through it.

    For on_rounds all send honest directions at twice the median norm: the largest median norm that the rule remembers
    is raised. Then every other attacker keeps a quarter of the median norm, which pulls the usual norm down against it,
    and the rest send the inner attack, no longer than the median norm.

    Args:
        attack: What to do, and from which round on.
        malicious: All malicious devices.
        inner: Chooses what goes through.
    """

    def __init__(self, attack: Attack, malicious: frozenset[int], inner: Attacker) -> None:
        super().__init__(attack, malicious)
        self._inner = inner
        self._keepers = frozenset(sorted(malicious)[::2])

    def poison(self, view: View) -> dict[int, Float32]:
        """Return long honest updates, or short ones and the inner attack's."""
        assert self.attack.on_rounds is not None
        usual = median_norm(view.crowd)
        if view.round < self.attack.start_round + self.attack.on_rounds:
            return {i: (INFLATION * usual * unit(update)).astype(np.float32) for i, update in view.own.items()}
        sent = self._inner.updates(view)
        for index in sent:
            length = float(np.linalg.norm(sent[index]))
            if index in self._keepers:
                sent[index] = (DOORKEEPERS_NORM * usual * unit(view.own[index])).astype(np.float32)
            elif length > usual:
                sent[index] = (sent[index] * (usual / length)).astype(np.float32)
        return sent


class DecayRider(Attacker):
    """(median norm) · unit(x/‖x‖ − c · ĥ), ĥ the honest direction, c as large as what is forgiven every round allows.

    Evidence for disagreement is z − z₀, and every round forgives the drift. So z may be z₀ + drift for ever; reach is
    how much of that is used.
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return updates that disagree as much as is forgiven."""
        crowd, assumed = Crowd.of(view), self.attack.reach
        assert assumed is not None
        least = agreement_forgiven(crowd.spread, assumed, Settings()) * crowd.usual
        against = unit(crowd.mean)
        sent = {}
        for index, update in view.own.items():
            own = unit(update)

            def agrees(c: float, own: Vector = own) -> bool:
                return float(unit(own - c * against) @ crowd.mean) >= least

            sent[index] = (crowd.norm * unit(own - largest(agrees, 10.0) * against)).astype(np.float32)
        return sent


def agreement_forgiven(spread: float, reach: float, s: Settings) -> float:
    """Return the agreement, as a share of q̄, at which z is reach · (z₀ + drift), or that of updates not summed."""
    width = min(max(spread, 0.2), 1.0)
    z = reach * (s.alignment_from + s.drift)
    return max(1 - z * width * max(1.0, width / s.spread_typical), s.opposed)


def largest(holds: Callable[[float], bool], most: float, *, steps: int = SEARCH_STEPS) -> float:
    """Return, by bisection, nearly the largest number up to ``most`` for which something holds; 0 if for none."""
    if holds(most):
        return most
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
