"""Alignment: how much less than is usual a device agrees with the centre, in the fleet's own spreads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from covey_aggregator.reputation.centre import Centre
from covey_aggregator.reputation.history import Page
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import Array

_MOST = 3.0
_UNSURE = 5
_TAIL = 0.9
_YOUNG = 2
_WORST, _BEST = -1.5, 2.0


class Agreement(NamedTuple):
    """Each device's agreement with the centre over what is usual, remembered.

    Attributes:
        total: Weighted sum over rounds.
        weight: The weights' sum; total over weight is the ratio.
    """

    total: Array
    weight: Array

    def ratio(self) -> Array:
        """Return q_i / q̄, averaged."""
        return self.total / self.weight


def remembered(before: Agreement, centre: Centre, page: Page) -> Agreement:
    """Take a round's agreement in, as far as the pairs' averages do not remember for themselves.

    Where everybody attests in every round the averages of pairs are long enough, and what was before hardly counts.
    Where few do, two devices seldom meet, their average is one round's noise, and each device's own average over rounds
    takes its place.

    Args:
        before: Up to the last round.
        centre: This round's.
        page: Tells how often pairs have met.
    """
    rate = page.weights() @ centre.core / np.maximum(centre.core.sum() - centre.core, 1)
    new = np.clip(centre.agreement / centre.usual, -_MOST, _MOST)
    return Agreement((1 - rate) * before.total + rate * new, (1 - rate) * before.weight + rate)


def spread(agreement: Agreement, centre: Centre) -> float:
    """Return how widely honest devices agree, from the upper half of the core: no attacker is found up there."""
    return float(np.quantile(agreement.ratio()[centre.core], 0.84)) - 1


def disagreement(agreement: Agreement, spread: float, members: int, s: Settings) -> Array:
    """Return z_i: how many of the fleet's spreads a device agrees less with the centre than is usual.

    Args:
        agreement: Of each device, remembered.
        spread: The fleet's.
        members: Of the centre: the fewer there are, the less sure is the spread.
        s: The rule's parameters.
    """
    width = float(np.clip(spread * (1 + (_UNSURE / members) ** 2), 0.2, 1))
    below = 1 - np.clip(agreement.ratio(), _WORST, _BEST)
    return np.asarray(below / (width * max(1.0, width / s.spread_typical)))


def bar(trusted: Array, ages: Array, s: Settings) -> Array:
    """Return, for each device, the disagreement that hardly a trusted one reaches, now that honest devices disagree.

    Args:
        trusted: z of those who are the measure of an established fleet.
        ages: Attested rounds of each device: an average of few is less sure.
        s: The rule's parameters.
    """
    return np.maximum(s.alignment_from, float(np.quantile(trusted, _TAIL)) + s.outstanding * (1 + _YOUNG / ages))
