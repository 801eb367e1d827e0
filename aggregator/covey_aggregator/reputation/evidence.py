"""Evidence: what one round says of each device, in parts that can be shown.

Positive counts against a device. Alignment and norm pass the gate; clones, isolation, absurd norms, disputes and
refusals count always.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from covey_aggregator.reputation.gate import Gate
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import Array, Mask

_NOTABLE_LOG = 0.25  # a norm within 28% of the usual one is nobody's fault, however narrow the reference
_MOST_EXCESS = 3.0
_BEST_ALIGNMENT = -1.5
_SHUT = 0.1  # forgiven while the gate is shut
_CLONE, _NOTHING, _HUGE = 1.5, 1.5, 2.0  # what these count at least, whatever else there is to say for the device


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What each look at a device adds to its evidence; ``drift`` is what every round forgives.

    Attributes:
        alignment: Disagreement with the centre; negative where it agrees.
        norm: Updates larger than those of its like, or next to nothing.
        clones: Too much like others, in numbers.
        isolation: Like nobody, or no longer like its fellows.
        disputes: Contradicted by peers, with no proof who lied.
        refusals: Silent when it had to answer, more often than it is elsewhere.
        pulls: Teaches samples of all kinds one label (``covey_aggregator.probes``).
        excused: What alignment, norm and clones would have added, had its updates not been those of its own labels; it
            is not in them any more.
    """

    alignment: float = 0.0
    norm: float = 0.0
    clones: float = 0.0
    isolation: float = 0.0
    disputes: float = 0.0
    refusals: float = 0.0
    pulls: float = 0.0
    excused: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """A round's evidence, by device.

    Attributes:
        change: x_i, before it is clipped to what one round may change.
        alignment: Its part, as the gate let it pass; likewise the others.
        norm: See ``Parts``.
        clones: See ``Parts``.
        isolation: See ``Parts``.
        excused: See ``Parts``.
    """

    change: Array
    alignment: Array
    norm: Array
    clones: Array
    isolation: Array
    excused: Array


def largest_norm(buckets: int, s: Settings) -> float:
    """Return how many times the usual norm is too large, allowing for what a sketch of so many buckets gets wrong."""
    return s.band * (1 + 1.5 / float(np.sqrt(buckets)))


def weigh(
    *,
    z: Array,
    bar: Array,
    excess: Array,
    logs: Array,
    clone: Array,
    isolated: Array,
    relative_norms: Array,
    buckets: int,
    gate: Gate,
    quarantined: Mask,
    excused: Array,
    s: Settings,
) -> Evidence:
    """Add up what a round says.

    Args:
        z: Disagreement with the centre, in spreads.
        bar: What of it counts in spite of a shut gate; infinite where nothing does.
        excess: Scales by which norms lie above the reference.
        logs: L_i.
        clone: From 0 to 1.
        isolated: From 0 to 1.
        relative_norms: This round's norms over the usual one.
        buckets: k.
        gate: How far it is open.
        quarantined: Who takes no forgiveness from a shut gate.
        excused: What share of alignment, norm and clones does not count against a device, from 0 to 1. Norms that are
            absurd count as ever.
        s: The rule's parameters.
    """
    alignment = np.maximum(z - s.alignment_from, _BEST_ALIGNMENT)
    outstanding = gate.late * np.maximum(z - bar - s.drift, 0)
    norm = gate.norms * s.norm_weight * np.clip(excess - 1, 0, _MOST_EXCESS) * (logs > _NOTABLE_LOG)
    spared = excused * (gate.openness * (np.maximum(alignment, 0) + norm) + outstanding + s.clone_weight * clone)
    alignment = np.where(alignment > 0, (1 - excused) * alignment, alignment)
    outstanding, norm, clone = (1 - excused) * outstanding, (1 - excused) * norm, (1 - excused) * clone
    gated, shut = alignment + norm - s.drift, 1 - gate.openness
    kept = np.where(quarantined, gate.openness * gated, gated)
    gated = np.where(gated > 0, gate.openness * gated - _SHUT * shut, kept)
    clones, isolation = s.clone_weight * clone, s.isolation_weight * isolated
    change = np.maximum(gated, -s.floor) + outstanding + isolation + clones
    hard = np.where(clone >= 1, _CLONE, 0.0)
    hard = np.where(relative_norms < s.smallest_norm, _NOTHING, hard)
    hard = np.where(relative_norms > largest_norm(buckets, s), _HUGE, hard)
    absurd = np.where(clone >= 1, 0.0, hard)
    return Evidence(
        change=np.where(hard > 0, np.maximum(change, hard), change),
        alignment=gate.openness * alignment + outstanding,
        norm=np.maximum(gate.openness * norm, absurd),
        clones=clones,
        isolation=isolation,
        excused=spared,
    )
