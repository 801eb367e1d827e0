"""The centre: the devices that agree with one another, against whom all are measured.

Once there are trusted devices it starts from all of them and drops who disagrees. A search for the tightest half would
leave out honest devices with unusual data and, when little is left to learn, settle on one cluster of them. Only a
fleet that nobody knows yet starts from the half with the highest median cosine.

Attackers who jitter one update are closer to one another than honest devices are and may be found first, though they
are fewer. So where the search ends with less than half of the candidates, it is made again among the others, and the
larger of the two is the centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from covey_aggregator.reputation import norms
from covey_aggregator.reputation.norms import NormReference
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import Array, Mask

_STEPS = 8
_FEWEST = 3
_LEAST_AGREEMENT = 0.01


@dataclass(frozen=True)
class Centre:
    """Who agrees, and how much.

    Attributes:
        core: The members.
        agreement: q_i, the mean cosine with the core's other members.
        usual: q̄, the median of it in the core.
        norm: What the core's norms look like.
        share: How much of the candidates the core is.
    """

    core: Mask
    agreement: Array
    usual: float
    norm: NormReference
    share: float


def find(cosines: Array, logs: Array, candidates: Mask, weights: Array, *, known: bool, s: Settings) -> Centre:
    """Find the centre.

    Args:
        cosines: C.
        logs: L_i, averages of the logarithms of relative norms.
        candidates: Who may belong to it.
        weights: What each device counts for the median cosine.
        known: Whether the candidates are an established fleet.
        s: The rule's parameters.
    """
    core = _settled(cosines, logs, candidates, weights, known, s)
    if 2 * core.sum() < candidates.sum():
        other = _settled(cosines, logs, candidates & ~core, weights, known, s)
        core = other if other.sum() > core.sum() else core
    agreement = _agreement(cosines, core)
    usual = max(float(np.median(agreement[core])), _LEAST_AGREEMENT)
    share = float(core.sum() / candidates.sum())
    return Centre(core, agreement, usual, norms.reference(logs[core]), share)


def _settled(cosines: Array, logs: Array, candidates: Mask, weights: Array, known: bool, s: Settings) -> Mask:
    """Return those of the candidates who agree with one another."""
    core = candidates if known else _closest_half(cosines, candidates, weights)
    for _ in range(_STEPS):
        agreement = _agreement(cosines, core)
        limit = s.agreement * float(np.median(agreement[core]))
        excess = norms.reference(logs[core]).excess(logs)
        following = candidates & (agreement >= limit) & (excess < s.norm_reach)
        if following.sum() < _FEWEST or np.array_equal(following, core):
            break
        core = following
    return core


def _agreement(cosines: Array, core: Mask) -> Array:
    return np.asarray(cosines @ core / np.maximum(core.sum() - core, 1))


def _closest_half(cosines: Array, candidates: Mask, weights: Array) -> Mask:
    """Return the half of the candidates with the highest weighted median cosine."""
    others = cosines - np.eye(len(cosines))
    order = np.argsort(others, axis=1, kind="stable")
    passed = np.cumsum((weights + 1e-9)[order], axis=1)
    middle = np.argmax(passed >= 0.5 * passed[:, -1:], axis=1)
    medians = np.take_along_axis(others, np.take_along_axis(order, middle[:, None], 1), 1)[:, 0]
    ids = np.flatnonzero(candidates)
    best = ids[np.argsort(-medians[ids], kind="stable")][: max(_FEWEST, -(-len(ids) // 2))]
    half = np.zeros(len(cosines), bool)
    half[best] = True
    return half
