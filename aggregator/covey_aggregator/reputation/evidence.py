"""Evidence: what one round says of each device, in parts that can be shown.

Positive counts against a device. Alignment, norm and isolation pass the gate; clones, absurd norms, disputes and
refusals count always.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from covey_aggregator.reputation.centre import Centre
from covey_aggregator.reputation.clones import Likeness
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import Array, Mask

_NOTABLE_LOG = 0.25  # a norm within 28% of the usual one is nobody's fault, however narrow the reference
_MOST_EXCESS = 3.0
_BEST_ALIGNMENT = -1.5
_SHUT = 0.1  # forgiven while the gate is shut


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What each look at a device adds to its evidence; ``drift`` is what every round forgives.

    Attributes:
        alignment: Disagreement with the centre; negative where it agrees.
        norm: Updates larger than those of its like, or next to nothing.
        clones: Too much like others, in numbers.
        isolation: Like nobody.
        disputes: Contradicted by peers, with no proof who lied.
        refusals: Silent when it had to answer, more often than it is elsewhere.
    """

    alignment: float = 0.0
    norm: float = 0.0
    clones: float = 0.0
    isolation: float = 0.0
    disputes: float = 0.0
    refusals: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """A round's evidence, by device.

    Attributes:
        change: x_i, before it is clipped to what one round may change.
        alignment: Its part, as the gate let it pass; likewise the others.
        norm: See ``Parts``.
        clones: See ``Parts``.
        isolation: See ``Parts``.
    """

    change: Array
    alignment: Array
    norm: Array
    clones: Array
    isolation: Array


def largest_norm(buckets: int, s: Settings) -> float:
    """Return how many times the usual norm is too large, allowing for what a sketch of so many buckets gets wrong."""
    return s.band * (1 + 1.5 / float(np.sqrt(buckets)))


def disagreement(centre: Centre, spread: float, s: Settings) -> Array:
    """Return z_i: how many of the fleet's spreads a device agrees less with the centre than is usual."""
    width = float(np.clip(spread, 0.2, 1))
    relative = 1 - np.clip(centre.agreement / centre.usual, -1.5, 2)
    return np.asarray(relative / (width * max(1.0, width / s.spread_typical)))


def weigh(
    *,
    z: Array,
    excess: Array,
    logs: Array,
    likeness: Likeness,
    relative_norms: Array,
    buckets: int,
    gate: float,
    quarantined: Mask,
    s: Settings,
) -> Evidence:
    """Add up what a round says.

    Args:
        z: ``disagreement``.
        excess: Scales by which norms lie above the reference.
        logs: L_i.
        likeness: Clones and loners.
        relative_norms: This round's norms over the usual one.
        buckets: k.
        gate: κ.
        quarantined: Who takes no forgiveness from a shut gate.
        s: The rule's parameters.
    """
    alignment = np.maximum(z - s.alignment_from, _BEST_ALIGNMENT)
    norm = s.norm_weight * np.clip(excess - 1, 0, _MOST_EXCESS) * (logs > _NOTABLE_LOG)
    isolation = s.isolation_weight * likeness.loner
    soft = alignment + norm + isolation - s.drift
    soft = np.where(soft > 0, gate * soft - _SHUT * (1 - gate), np.where(quarantined, gate * soft, soft))
    clones = s.clone_weight * likeness.clone
    change = soft + clones
    change = np.where(likeness.clone >= 1, np.maximum(change, 1.5), change)
    hard = np.where(relative_norms < s.smallest_norm, 1.5, 0.0)
    hard = np.where(relative_norms > largest_norm(buckets, s), 2.0, hard)
    absurd = hard > 0
    return Evidence(
        change=np.where(absurd, np.maximum(change, hard), change),
        alignment=gate * alignment,
        norm=np.where(absurd, np.maximum(hard, gate * norm), gate * norm),
        clones=clones,
        isolation=gate * isolation,
    )
