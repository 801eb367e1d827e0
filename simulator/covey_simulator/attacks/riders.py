"""Free-riders: they want the model and send what costs them no training."""

from __future__ import annotations

import numpy as np

from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View


class FreeRider(Attacker):
    """Returns the model as it came: zeros (the plain free-rider of Fraboni, Vidal and Lorenzi 2021).

    "Free-rider attacks on model aggregation in federated learning".
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return zeros."""
        return view.all_send(np.zeros(view.weights.shape))


class NoiseRider(Attacker):
    """scale · σ · t^(−decay) · N(0, I), t the rounds of attack: the disguised free-rider of Fraboni et al. 2021.

    σ is the standard deviation of the first change of the global model that the attackers saw. Before there is one they
    send zeros. The paper's experiments have decays of 0.5 to 2.
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return noise for each device."""
        sigma = float((view.history[1] - view.history[0]).std()) if len(view.history) > 1 else 0.0
        assert self.attack.decay is not None
        since = view.round - self.attack.start_round + 1
        size = np.float32(self.scale * sigma * since**-self.attack.decay)
        return {index: size * view.rng.standard_normal(view.weights.shape, np.float32) for index in sorted(view.own)}


class StaleRider(Attacker):
    """scale · (G_t − G_(t−1)): the last change of the global model, replayed (zeros before there is one).

    The delta weights attack of Lin, Du and Liu 2019, "Free-riders in federated learning: attacks and defenses".
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return what the last round has changed."""
        before = view.history[-2] if len(view.history) > 1 else view.weights
        return view.all_send(np.float32(self.scale) * (view.weights - before))
