"""Attacks that live by their timing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks.view import Attacker, View, median_norm, unit


class OnOff(Attacker):
    """An inner attack for on_rounds, honesty for off_rounds, and so on (Sun, Han and Liu 2008).

    "Defense of trust management vulnerabilities in distributed networks": on-off attackers buy back with good behaviour
    what they lost with bad.

    Args:
        attack: What to do, and from which round on.
        malicious: All malicious devices.
        inner: Chooses the updates in rounds of attack.
    """

    def __init__(self, attack: Attack, malicious: frozenset[int], inner: Attacker) -> None:
        super().__init__(attack, malicious)
        self._inner = inner

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the inner attack's updates or honest ones."""
        on, off = self.attack.on_rounds, self.attack.off_rounds
        assert on is not None and off is not None
        attacking = (view.round - self.attack.start_round) % (on + off) < on
        return self._inner.updates(view) if attacking else dict(view.own)


class SlowPoison(Attacker):
    """update + min(rate · t, scale) · m · d: a drift that grows too slowly to be noticed, t the rounds of attack.

    m is the median norm of the honest updates; d, of length 1, is the same in all rounds: against the honest mean of
    the first one. With rate ≥ scale the drift is constant. The idea of ramping a poison up under a detector's tolerance
    is the "boiling frog" of Rubinstein et al. 2009, "ANTIDOTE: understanding and defending against poisoning of anomaly
    detectors".
    """

    _direction: npt.NDArray[np.float64] | None = None

    def poison(self, view: View) -> dict[int, Float32]:
        """Return honest updates, pushed a little."""
        if self._direction is None:
            self._direction = -unit(view.crowd.mean(axis=0))
        assert self.attack.rate is not None
        since = view.round - self.attack.start_round + 1
        drift = min(self.attack.rate * since, self.scale) * median_norm(view.crowd) * self._direction
        return {index: (update + drift).astype(np.float32) for index, update in view.own.items()}
