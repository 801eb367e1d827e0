"""Attacks by devices that send nearly the same: Sybils, and those who make somebody look like one."""

from __future__ import annotations

import math

import numpy as np

from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks.view import Attacker, View, unit


class Clones(Attacker):
    """u + jitter · ‖u‖ · e for each device: one poisoned update u, copied; e is random and of length 1.

    Fung, Yoon and Beschastnikh 2020, "The limitations of federated learning in Sybil settings" (FoolsGold), whose
    Sybils share one goal; the jitter is what they add against being compared. Two copies then have a cosine of about
    1 / (1 + jitter²).

    Args:
        attack: What to do, and from which round on.
        malicious: All malicious devices.
        inner: Makes the poisoned update; the first device's is copied.
    """

    def __init__(self, attack: Attack, malicious: frozenset[int], inner: Attacker) -> None:
        super().__init__(attack, malicious)
        self._inner = inner

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the copies."""
        if not view.own:
            return {}
        made = self._inner.updates(view)
        return {index: jittered(made[min(made)], self.attack.jitter or 0.0, view.rng) for index in sorted(view.own)}


class SybilWave(Clones):
    """Clones that join together, at start_round (Douceur 2002, "The Sybil attack").

    Whoever runs the fleet keeps them out until then.
    """


class Framing(Attacker):
    """√(1 − j²) · ‖v‖ · (v/‖v‖) + j · ‖v‖ · e: the malicious devices crowd around an honest victim's update v.

    Made to turn a check for clones against its users; j is the jitter. With manner ``copy`` e is random, each device's
    own: the victim looks like one of many copies. With ``push`` e is the same for all, against the honest mean and at a
    right angle to v: the crowd around the victim pulls away from everybody else. The victim is the honest device whose
    update is closest to the others': whoever is most trusted is worth most to frame.
    """

    _victim: int | None = None

    def poison(self, view: View) -> dict[int, Float32]:
        """Return updates all around the victim's."""
        if not view.honest:
            return dict(view.own)
        if self._victim not in view.honest:
            mean = unit(view.crowd.mean(axis=0))
            self._victim = max(sorted(view.honest), key=lambda index: float(unit(view.honest[index]) @ mean))
        assert self._victim is not None
        update = view.honest[self._victim].astype(np.float64)
        length, away = float(np.linalg.norm(update)), unit(update)
        jitter = min(self.attack.jitter or 0.0, 1.0)
        against = -view.crowd.mean(axis=0)
        push = unit(against - (against @ away) * away)
        sent = {}
        for index in sorted(view.own):
            aside = push if self.attack.manner == "push" else unit(view.rng.standard_normal(update.shape))
            sent[index] = (length * (math.sqrt(1 - jitter**2) * away + jitter * aside)).astype(np.float32)
        return sent


def jittered(update: Float32, jitter: float, rng: np.random.Generator) -> Float32:
    """Return an update plus a random one that is ``jitter`` times as long."""
    noise = unit(rng.standard_normal(update.shape)) * jitter * float(np.linalg.norm(update))
    return (update + noise).astype(np.float32)
