"""Falling silent where an answer is owed, weighed against how often the device falls silent anywhere.

A refuser says nothing when it should send its sketch, its signature or its shares; so does a device on a bad link.
Each answer and each silence is therefore weighed by how much likelier it is for a refuser, who is silent every other
time, than for this device on its record: ln(½ / p) for a silence, where p is its own rate of loss in all other stages,
and ln(½ / (1 − p)) for an answer, which takes back what silences have added.
A link that loses half of everything thus says nothing at all, and no link is a crime.
"""

from __future__ import annotations

import math

import msgspec

_MEMORY = 0.95
_PRIOR_LOST, _PRIOR = 0.5, 10.0  # as if a device had been seen ten times, and lost one in twenty
_MOST = 2.5


class Liveness(msgspec.Struct, kw_only=True, frozen=True):
    """How often a device has answered elsewhere: where silence serves nobody.

    Attributes:
        asked: How often it was to answer; fading.
        lost: How often it did not.
    """

    asked: float = 0.0
    lost: float = 0.0

    def after(self, asked: int, lost: int) -> Liveness:
        """Return it with one more round's answers."""
        return Liveness(asked=_MEMORY * self.asked + asked, lost=_MEMORY * self.lost + lost)

    @property
    def loss(self) -> float:
        """The rate of loss, from 0 to 1."""
        return (self.lost + _PRIOR_LOST) / (self.asked + _PRIOR)

    @property
    def score(self) -> float:
        """1 for a device that always answers, 0 for one that never does."""
        return 1 - min(1.0, self.lost / self.asked) if self.asked else 1.0


def credit(liveness: Liveness) -> float:
    """Return how much an answer says for a device with this record; it takes back no more than silences have added."""
    return max(math.log(2 * (1 - liveness.loss)), 0.0) if liveness.loss < 1 else 0.0


def weight(liveness: Liveness) -> float:
    """Return how much a silence says against a device with this record."""
    return min(max(math.log(0.5 / liveness.loss), 0.0), _MOST)
