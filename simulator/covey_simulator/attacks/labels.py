"""Attacks on labels: the client is everybody's, its data is not."""

from __future__ import annotations

import numpy as np

from covey_agent.data import Dataset
from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View


class LabelFlip(Attacker):
    """Trains on the labels C − 1 − y (Fang et al. 2020, "Local model poisoning attacks to Byzantine-robust FL")."""

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each device's update on its mirrored labels."""
        return {index: view.train(index, mirrored(view.data(index), view.classes)) for index in view.own}


class TargetedLabelFlip(Attacker):
    """Trains on samples of one class under another's label.

    Tolpegin et al. 2020, "Data poisoning attacks against federated learning systems".
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each device's update on its relabelled samples."""
        source, target = self.attack.source, self.attack.target
        assert source is not None and target is not None
        return {index: view.train(index, relabelled(view.data(index), source, target)) for index in view.own}


def mirrored(data: Dataset, classes: int) -> Dataset:
    """Return samples whose label y has become classes − 1 − y."""
    return Dataset(data.x, classes - 1 - data.y)


def relabelled(data: Dataset, source: int, target: int) -> Dataset:
    """Return samples of which those of class ``source`` are labelled ``target``."""
    return Dataset(data.x, np.where(data.y == source, target, data.y))
