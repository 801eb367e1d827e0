"""Attackers who dress what they send until the reputation rule lets it pass."""

from __future__ import annotations

import math

import numpy as np

from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks.aware import Crowd, largest
from covey_simulator.attacks.backdoor import Trigger
from covey_simulator.attacks.shadow import Shadow
from covey_simulator.attacks.view import Attacker, View, unit

RULINGS = 7
FORESIGHT = 6  # rounds; after the two in which the rule counts no evidence, four of its memory
MOST_OF_THEM = 0.9


class HiddenBackdoor(Attacker):
    """(median norm) · (c · ĥ + √(1 − c²) · (blend · b̂ + √(1 − blend²) · r̂)): a backdoor dressed as an honest update.

    ĥ is the honest direction and c the honest devices' median cosine with it. b̂ is what a backdoored training adds to
    an honest one and r̂ what makes the device's own honest update different from others', both at right angles to ĥ:
    agreement and norm are usual, and r̂ keeps the attackers from being alike. The idea of constraining a backdoor to
    what a detector takes for normal is in Bagdasaryan et al. 2020 ("constrain and scale").
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each device's dressed backdoor."""
        target, share, blend = self.attack.target, self.attack.share, self.attack.blend
        assert target is not None and share is not None and blend is not None
        crowd, trigger = Crowd.of(view), Trigger(*view.span)
        along = unit(crowd.mean)
        c = float(np.median([unit(row) @ along for row in view.crowd]))
        sent = {}
        for index, update in view.own.items():
            own = update.astype(np.float64)
            trained = view.train(index, trigger.poisoned(view.data(index), target, share)).astype(np.float64)
            door, rest = (unit(part - (part @ along) * along) for part in (trained - own, own))
            aside = unit(blend * door + math.sqrt(1 - blend**2) * rest)
            sent[index] = (crowd.norm * (c * along + math.sqrt(1 - c**2) * aside)).astype(np.float32)
        return sent


class RuleSearch(Attacker):
    """(1 − a) · x − a · scale · (median norm) · ĥ with the largest a that the rule lets pass.

    The attackers hold every candidate against their own copy of the server's book (``Shadow``), also for the rounds to
    come, because the rule remembers: all but a tenth of them must be accepted each time, with evidence under
    reach · (evidence that makes a suspect).

    Args:
        attack: What to do, and from which round on.
        malicious: All malicious devices.
    """

    def __init__(self, attack: Attack, malicious: frozenset[int]) -> None:
        super().__init__(attack, malicious)
        self._shadow = Shadow()

    def updates(self, view: View) -> dict[int, Float32]:
        """Return what they send, and note in honest rounds too what the rule makes of them."""
        self._shadow.open(view)
        sent = super().updates(view)
        if sent:
            self._shadow.ask(view, sent)
        return sent

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the worst that passes."""
        crowd = Crowd.of(view)
        harm = -self.scale * crowd.norm * unit(crowd.mean)

        def blended(a: float) -> dict[int, Float32]:
            return {index: ((1 - a) * update + a * harm).astype(np.float32) for index, update in view.own.items()}

        return blended(largest(lambda a: self._passes(view, blended(a)), 1.0, steps=RULINGS)) if view.own else {}

    def _passes(self, view: View, sent: dict[int, Float32]) -> bool:
        assert self.attack.reach is not None
        limit = self.attack.reach * self._shadow.settings.suspect_at
        for ruling in self._shadow.foresee(view, sent, FORESIGHT):
            verdicts = [ruling.verdicts[str(index)] for index in sent]
            fine = sum(verdict.accepted and verdict.evidence <= limit for verdict in verdicts)
            if fine < MOST_OF_THEM * len(verdicts):
                return False
        return True
