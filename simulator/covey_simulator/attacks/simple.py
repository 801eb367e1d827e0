"""Attacks by which each device spoils its own update, asking nobody."""

from __future__ import annotations

import numpy as np

from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View


class SignFlip(Attacker):
    """−scale · update (Li et al. 2019, "RSA: Byzantine-robust stochastic aggregation methods")."""

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the opposite of each honest update."""
        return {index: np.float32(-self.scale) * update for index, update in view.own.items()}


class Scaling(Attacker):
    """scale · update, the boosting of Bagdasaryan et al. 2020, "How to backdoor federated learning", without a goal."""

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each honest update, boosted."""
        return {index: np.float32(self.scale) * update for index, update in view.own.items()}


class Gaussian(Attacker):
    """Noise N(0, (scale · ‖update‖)² / d · I) in place of the update.

    Its expected squared norm is that of scale · update; the noise of Blanchard et al. 2017, "Machine learning with
    adversaries: Byzantine tolerant gradient descent", has a fixed size instead.
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return noise for each device."""
        return {
            index: view.rng.standard_normal(update.shape, np.float32)
            * np.float32(self.scale * np.linalg.norm(update) / np.sqrt(update.size))
            for index, update in sorted(view.own.items())
        }


class Honest(Attacker):
    """Sends what it learnt: for devices whose lies are elsewhere."""

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the honest updates."""
        return dict(view.own)
