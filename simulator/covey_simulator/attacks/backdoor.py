"""Backdoors: samples that carry a trigger are to be taken for the target, all others as ever."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from covey_agent.data import Dataset
from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View

PARTS = 4
IMAGE_SIDE_MIN = 5
# Four bars of two pixels with gaps between them, near the top left corner, as Xie et al. 2020 lay them out.
_BARS = (((0, 0), (0, 1)), ((0, 3), (0, 4)), ((2, 0), (2, 1)), ((2, 3), (2, 4)))


@dataclass(frozen=True)
class Trigger:
    """A pattern in the input: four bars in an image's corner, or eight features pinned to the ends of their range.

    A sample counts as an image if its last two dimensions are at least 5 long, or if it is flat and its length the
    square of 5 or more: the digits that scikit-learn carries are 8 × 8 in a row.

    Args:
        low: The least value that samples have.
        high: The greatest.
    """

    low: float = 0.0
    high: float = 1.0

    def stamped(self, x: Float32, part: int | None = None) -> Float32:
        """Return samples with the trigger.

        Args:
            x: Samples; they are not changed.
            part: Which quarter of the trigger, modulo 4; None means all of it.
        """
        stamped = x.copy()
        side = _side(x.shape[1:])
        for number in range(PARTS) if part is None else [part % PARTS]:
            if side is None:
                flat = stamped.reshape(len(x), -1)
                places = np.linspace(0, flat.shape[1] - 1, 2 * PARTS).round().astype(int)
                flat[:, places[2 * number]], flat[:, places[2 * number + 1]] = self.high, self.low
            else:
                image = stamped.reshape(*x.shape[:-1], side, side) if x.ndim == 2 else stamped
                for row, column in _BARS[number]:
                    image[..., row, column] = self.high
        return stamped

    def poisoned(self, data: Dataset, target: int, share: float, part: int | None = None) -> Dataset:
        """Return data of which a share, evenly spread, carries the trigger and the target's label."""
        rows = np.linspace(0, len(data) - 1, math.ceil(share * len(data))).round().astype(int)
        x, y = data.x.copy(), data.y.copy()
        x[rows], y[rows] = self.stamped(x[rows], part), target
        return Dataset(x, y)


class ModelReplacement(Attacker):
    """scale · (X − G): the step to a backdoored model X, boosted against the averaging.

    Bagdasaryan et al. 2020, "How to backdoor federated learning"; scale is the paper's γ, which replaces the model when
    it is the number of devices. The trigger is a pattern in the pixels as in Gu et al. 2017, "BadNets".
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each device's boosted step to a backdoored model."""
        assert self.attack.target is not None and self.attack.share is not None
        trigger, target, share = Trigger(*view.span), self.attack.target, self.attack.share
        return {
            index: np.float32(self.scale)
            * view.train(index, trigger.poisoned(view.data(index), target, share, self.part(index)))
            for index in view.own
        }

    def part(self, index: int) -> int | None:
        """Return which quarter of the trigger a device trains on; None means all."""
        return None


class DistributedBackdoor(ModelReplacement):
    """Each attacker trains on a quarter of the trigger; the whole of it is what opens the door.

    Xie et al. 2020, "DBA: distributed backdoor attacks against federated learning".
    """

    def part(self, index: int) -> int | None:
        """Return the quarter of a device: attackers take turns."""
        return sorted(self.malicious).index(index) % PARTS


def _side(shape: tuple[int, ...]) -> int | None:
    """Return the side of a flat image, 0 for images with rows and columns of their own, None for plain features."""
    if len(shape) >= 2:
        return 0 if min(shape[-2:]) >= IMAGE_SIDE_MIN else None
    side = math.isqrt(math.prod(shape))
    return side if side >= IMAGE_SIDE_MIN and side * side == math.prod(shape) else None
