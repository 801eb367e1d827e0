"""Attacks that hide within the spread of the honest updates, or turn their mean around.

They send one update for all malicious devices. μ and σ are mean and standard deviation of the honest updates,
coordinate by coordinate; the papers also give versions that estimate them from the attackers' own honest updates.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View, unit

Rows = npt.NDArray[np.float64]
SEARCH_STEPS = 60


class ALittleIsEnough(Attacker):
    """μ − scale · z · σ, z so small that enough honest updates lie further out (Baruch, Baruch and Goldberg 2019).

    "A little is enough: circumventing defenses for distributed learning": with n devices, m of them malicious,
    s = ⌊n/2 + 1⌋ − m honest ones are needed for a majority, and z = Φ⁻¹((n − m − s) / (n − m)).
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the mean, moved by z standard deviations."""
        crowd = view.crowd
        z = little_z(len(view.honest) + len(view.own), len(view.own))
        return view.all_send(crowd.mean(axis=0) - self.scale * z * crowd.std(axis=0))


def little_z(n: int, m: int) -> float:
    """Return ALIE's z for n devices of which m are malicious.

    Attackers who are a majority already need no supporter; z then is what at least one honest device lies beyond.
    """
    honest = n - m
    if honest < 2:
        return 0.0
    supporters = min(max(math.floor(n / 2 + 1) - m, 1), honest - 1)
    return NormalDist().inv_cdf((honest - supporters) / honest)


class InnerProduct(Attacker):
    """−scale · μ, whose inner product with the true mean is negative (Xie, Koyejo and Gupta 2019).

    "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation"; scale is the paper's ε.
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the mean, turned around."""
        return view.all_send(-self.scale * view.crowd.mean(axis=0))


class _Furthest(Attacker):
    """μ + γ · p with the largest γ that still looks like one of the crowd (Shejwalkar and Houmansadr 2021).

    "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for federated learning". The deviation
    p is −μ/‖μ‖ (unit), −σ (std) or −sign(μ) (sign). The paper finds γ by steps that halve; both constraints are convex
    in γ and hold at 0, so bisection below a γ that is surely too large finds the same.
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return the furthest update that keeps the constraint."""
        crowd = view.crowd
        mean, push = crowd.mean(axis=0), self.deviation(crowd)
        length = float(np.linalg.norm(push))
        if length == 0:
            return view.all_send(mean)
        between = squared_distances(crowd)
        bound = self.bound(between)
        # Further than this from the mean even a sum of squared distances has left every bound.
        low, high = 0.0, 3 * math.sqrt(float(between.max())) / length
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            distances = ((crowd - (mean + middle * push)) ** 2).sum(axis=1)
            low, high = (middle, high) if self.far(distances) <= bound else (low, middle)
        return view.all_send(mean + low * push)

    def deviation(self, crowd: Rows) -> npt.NDArray[np.float64]:
        """Return p."""
        mean = crowd.mean(axis=0)
        ways = {"unit": unit(mean), "sign": np.sign(mean), "std": crowd.std(axis=0)}
        assert self.attack.deviation is not None
        away: npt.NDArray[np.float64] = -ways[self.attack.deviation]
        return away

    @abstractmethod
    def bound(self, between: Rows) -> float:
        """Return what honest updates show, from the squared distances between them."""

    @abstractmethod
    def far(self, distances: npt.NDArray[np.float64]) -> float:
        """Return what must not exceed the bound, from the squared distances to honest updates."""


class MinMax(_Furthest):
    """The largest distance to an honest update is at most the largest between honest updates."""

    def bound(self, between: Rows) -> float:
        """Return the largest squared distance."""
        return float(between.max())

    def far(self, distances: npt.NDArray[np.float64]) -> float:
        """Return the largest squared distance."""
        return float(distances.max())


class MinSum(_Furthest):
    """The sum of squared distances to honest updates is at most the largest such sum of an honest update."""

    def bound(self, between: Rows) -> float:
        """Return the largest sum of squared distances."""
        return float(between.sum(axis=1).max())

    def far(self, distances: npt.NDArray[np.float64]) -> float:
        """Return the sum of squared distances."""
        return float(distances.sum())


def squared_distances(rows: Rows) -> Rows:
    """Return the squared distance of each pair of rows."""
    squares = (rows**2).sum(axis=1)
    distances: Rows = np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0)
    return distances
