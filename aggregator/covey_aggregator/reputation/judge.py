"""One attested round, from sketches to evidence and accepted devices: the rule's parts in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covey_aggregator.reputation import centre, clones, evidence, gate, norms
from covey_aggregator.reputation.evidence import Parts
from covey_aggregator.reputation.history import Page
from covey_aggregator.reputation.record import Fleet, Record
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import TINY, Array, Mask, Sketches, typical
from covey_aggregator.reputation.states import NEWCOMERS, OUT, State

_FEWEST_CANDIDATES, _LEAST_CANDIDATES = 4, 0.2
_OPPOSITION_COUNTS = 0.5  # the openness of the gate from which on opposing the centre keeps an update out


@dataclass(frozen=True)
class Judged:
    """What a round says, in the order of its names.

    Attributes:
        change: What it adds to the evidence, clipped.
        parts: Where that comes from.
        log_norms: The new averages, as kept.
        summable: Whose update may be summed as far as this round alone is concerned.
        usual_norm: The median norm of those who are the measure.
        gate: κ.
        fleet: What the fleet remembers.
    """

    change: Array
    parts: tuple[Parts, ...]
    log_norms: Array
    summable: Mask
    usual_norm: float
    gate: float
    fleet: Fleet


def is_established(records: Sequence[Record], s: Settings) -> bool:
    """Say whether enough of these are trusted to be the measure of all."""
    return sum(record.state is State.TRUSTED for record in records) >= max(1.0, s.established * len(records))


def judge(sketches: Sketches, page: Page, records: Sequence[Record], fleet: Fleet, s: Settings) -> Judged:
    """Judge a round.

    Args:
        sketches: At least ``s.smallest``.
        page: The cosines' averages with this round in them.
        records: What was known before, in the same order.
        fleet: Likewise.
        s: The rule's parameters.
    """
    known = is_established(records, s)
    weights = np.array([record.weight(known, s) for record in records])
    measure = weights >= weights.max()
    usual = max(typical(sketches.norms[measure]), TINY * float(sketches.norms.max()), np.finfo(float).tiny)
    relative = sketches.norms / usual
    cosines = page.cosines()

    ages = np.array([record.age + 1 for record in records])
    kept = s.memory * np.array([record.log_norm for record in records])
    log_norms = kept + (1 - s.memory) * norms.logs(sketches.norms, usual)
    logs = log_norms / (1 - s.memory**ages)

    like = clones.likeness(cosines, measure, s)
    candidates = measure & (like.clone < 0.5) & (relative < s.band) & (relative > s.smallest_norm)
    if candidates.sum() < max(_FEWEST_CANDIDATES, _LEAST_CANDIDATES * len(records)):
        candidates = weights > 0 if weights.any() else np.ones(len(records), bool)
    middle = centre.find(cosines, logs, candidates, weights, known=known, s=s)

    spread = middle.spread if fleet.rounds == 0 else s.memory * fleet.spread + (1 - s.memory) * middle.spread
    peak = max(usual, fleet.peak) if fleet.rounds else usual
    openness = gate.openness(usual / peak, middle.usual, middle.share, s)
    found = evidence.weigh(
        z=evidence.disagreement(middle, spread, s),
        excess=middle.norm.excess(logs),
        logs=logs,
        likeness=like,
        relative_norms=relative,
        buckets=sketches.buckets,
        gate=openness,
        quarantined=np.array([record.state in OUT for record in records]),
        s=s,
    )
    summable = (like.clone < 1) & (relative > s.smallest_norm)
    summable &= relative < evidence.largest_norm(sketches.buckets, s)
    if openness >= _OPPOSITION_COUNTS:
        summable &= _along(sketches.directions, middle.core) > s.opposed
    if known:
        summable &= np.array([r.state not in NEWCOMERS or r.age + 1 > s.sit_out for r in records])
    warm = fleet.rounds >= s.warm_up
    return Judged(
        change=np.clip(found.change, -s.floor, s.ceiling) if warm else np.zeros(len(records)),
        parts=tuple(
            Parts(alignment=float(a), norm=float(n), clones=float(c), isolation=float(i))
            for a, n, c, i in zip(found.alignment, found.norm, found.clones, found.isolation, strict=True)
        ),
        log_norms=log_norms,
        summable=summable,
        usual_norm=usual,
        gate=openness,
        fleet=Fleet(rounds=fleet.rounds + 1, spread=spread, peak=peak),
    )


def _along(directions: Array, core: Mask) -> Array:
    """Return each update's cosine with the mean direction of the core."""
    mean = directions[core].mean(axis=0)
    return np.asarray(directions @ mean / max(float(np.linalg.norm(mean)), TINY))
