"""One attested round, from sketches to evidence and summable updates: the rule's parts in their order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from covey_aggregator.reputation import alignment, centre, clones, evidence, fellows, gate, norms
from covey_aggregator.reputation.alignment import Agreement
from covey_aggregator.reputation.evidence import Parts
from covey_aggregator.reputation.fellows import Fellowship
from covey_aggregator.reputation.history import Page
from covey_aggregator.reputation.record import Fleet, Record
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import TINY, Array, Mask, Sketches, typical
from covey_aggregator.reputation.states import NEWCOMERS, OUT, State

_FEWEST, _FEWEST_OF_FEW, _LEAST_CANDIDATES = 4, 3, 0.2
_FELLOWS_COUNT = 2  # rounds of fellowship from which on opposing one's fellows keeps an update out


@dataclass(frozen=True)
class Judged:
    """What a round says, in the order of its names.

    Attributes:
        records: The records with the round in them, before anybody moves.
        summable: Whose update may be summed as far as this round alone is concerned.
        gate: κ.
        fleet: What the fleet remembers.
    """

    records: tuple[Record, ...]
    summable: Mask
    gate: float
    fleet: Fleet


def is_established(records: Iterable[Record], s: Settings) -> bool:
    """Say whether enough of these are trusted to be the measure of all.

    Newcomers to an established fleet are not counted among all: however many they are, they do not unsettle it. Three
    are enough where they are half of everybody: of a handful of devices two can be replaced at once, and those who take
    their places have to be measured by somebody.
    """
    everybody = list(records)
    there = [record for record in everybody if record.founder or record.state not in NEWCOMERS]
    trusted = sum(record.state is State.TRUSTED for record in there)
    fewest = _FEWEST_OF_FEW if 2 * trusted >= len(everybody) else _FEWEST
    return trusted >= max(fewest, s.established * len(there))


def judge(
    sketches: Sketches, page: Page, records: Sequence[Record], fleet: Fleet, s: Settings, excused: Array | None = None
) -> Judged:
    """Judge a round.

    Args:
        sketches: At least ``s.smallest``.
        page: The cosines' averages with this round in them.
        records: What was known before, in the same order.
        fleet: Likewise.
        s: The rule's parameters.
        excused: How far each device is excused, from 0 to 1; None for nobody.
    """
    excused = np.zeros(len(records)) if excused is None else excused
    known = is_established(records, s)
    weights = np.array([record.weight(known, s) for record in records])
    measure = weights >= weights.max()
    # Who is excused for differing is no measure of others, as long as most of the measure is not.
    if 2 * (measure & (excused > 0)).sum() < measure.sum():
        measure &= excused <= 0
    usual = max(typical(sketches.norms[measure]), TINY * float(sketches.norms.max()), sys.float_info.min)
    relative = sketches.norms / usual
    cosines = page.cosines()
    ages = np.array([record.age + 1 for record in records])

    log_norms = s.memory * np.array([record.log_norm for record in records])
    log_norms += (1 - s.memory) * norms.logs(sketches.norms, usual)
    logs = log_norms / (1 - s.memory**ages)

    trusted = np.array([record.state is State.TRUSTED for record in records])
    out = np.array([record.state in OUT for record in records])
    near = clones.nearest(np.where(trusted[:, None] & out, 0.0, cosines), measure, s)
    clone = clones.clones(near, measure, s)

    found = fellows.cosines_with_fellows(page.past.astype(float), sketches.directions, measure, s)
    fellowship = Fellowship(
        np.array([record.fellowship for record in records]), np.array([record.tested for record in records])
    )
    fellowship = fellows.remembered(fellowship, found, page.met(), s)

    candidates = measure & (clone < 0.5) & (relative < s.band) & (relative > s.smallest_norm)
    if candidates.sum() < max(_FEWEST, _LEAST_CANDIDATES * measure.sum()):
        candidates = measure
    middle = centre.find(cosines, logs, candidates, weights, known=known, s=s)
    agreement = alignment.remembered(
        Agreement(np.array([r.agreement for r in records]), np.array([r.agreed for r in records])), middle, page
    )

    new_spread = alignment.spread(agreement, middle)
    spread = s.memory * fleet.spread + (1 - s.memory) * new_spread if fleet.rounds else new_spread
    peak = max(usual, fleet.peak)
    opened = gate.gate(
        norm_share=usual / peak,
        agreement=middle.usual,
        core_share=middle.share,
        clustering=clones.clustering(cosines, near, weights > 0),
        s=s,
    )
    z = alignment.disagreement(agreement, spread, int(middle.core.sum()), s)
    weighed = evidence.weigh(
        z=z,
        bar=alignment.bar(z[measure], ages, s) if known else np.full(len(records), np.inf),
        excess=middle.norm.excess(logs),
        logs=logs,
        clone=clone,
        isolated=fellows.isolation(fellowship, measure, sketches.buckets, s),
        relative_norms=relative,
        buckets=sketches.buckets,
        gate=opened,
        quarantined=out,
        excused=excused,
        s=s,
    )
    warm = fleet.rounds >= s.warm_up
    change = np.clip(weighed.change, -s.floor, s.ceiling) if warm else np.zeros(len(records))

    summable = ((1 - excused) * clone < 1) & (relative > s.smallest_norm)
    summable &= relative < evidence.largest_norm(sketches.buckets, s)
    summable &= (found > s.opposed) | (fellowship.rounds < _FELLOWS_COUNT)
    if known:
        summable &= np.array([r.founder or r.state not in NEWCOMERS or r.age >= s.sit_out for r in records])
    written = tuple(
        msgspec.structs.replace(
            record,
            evidence=_exact(record.evidence + change[i]),
            age=record.age + 1,
            stay=record.stay + 1,
            log_norm=_exact(log_norms[i]),
            fellowship=_exact(fellowship.total[i]),
            tested=int(fellowship.rounds[i]),
            agreement=_exact(agreement.total[i]),
            agreed=_exact(agreement.weight[i]),
            parts=Parts(
                alignment=float(weighed.alignment[i]),
                norm=float(weighed.norm[i]),
                clones=float(weighed.clones[i]),
                isolation=float(weighed.isolation[i]),
                excused=float(weighed.excused[i]),
            ),
        )
        for i, record in enumerate(records)
    )
    return Judged(written, summable, opened.openness, Fleet(rounds=fleet.rounds + 1, spread=_exact(spread), peak=peak))


def _exact(value: float) -> float:
    """Drop the last digits, in which linear algebra may differ from run to run: a book must not depend on that."""
    return round(float(value), 12)
