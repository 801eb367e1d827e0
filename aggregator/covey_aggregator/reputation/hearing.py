"""A round's hearing: from sketches, disputes and silences to a ruling."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from covey_aggregator.reputation import moves, refusals, words
from covey_aggregator.reputation.history import Cosines
from covey_aggregator.reputation.judge import is_established, judge
from covey_aggregator.reputation.record import Fleet, Record
from covey_aggregator.reputation.ruling import Draft, Hearing, Ruling, Verdict
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.sketches import read
from covey_aggregator.reputation.states import DOUBTED, EXPELLED, OUT, PAROLED, State, moved

_LEAST_CONTAMINATION = 0.01
_UNSUMMED = OUT | {State.SUSPECT}


def hold(hearing: Hearing, records: Mapping[str, Record], fleet: Fleet, cosines: Cosines, s: Settings) -> Ruling:
    """Judge a round by the book as it stands, without changing it.

    Too few sketches say nothing. Nor do those of newcomers among themselves, when an established fleet exists that is
    not there to measure them by, as in a round without the lot of attestation: then newcomers are not summed, and
    nobody grows older, better or worse by it.

    Args:
        hearing: What was seen in the round.
        records: All records.
        fleet: What the fleet remembers.
        cosines: Likewise.
        s: The rule's parameters.
    """
    present = [name for name in sorted(hearing.names) if name in records and records[name].state is not State.BANNED]
    seen = [name for name in present if name in hearing.sketches and name not in hearing.disputed]
    known = [records[name] for name in seen]
    judged, page, norms = None, None, np.zeros(0)
    measured = is_established(known, s) or not is_established((r for r in records.values() if r.state not in OUT), s)
    if len(seen) >= s.smallest and measured:
        sketches = read(hearing.sketches, seen)
        page, norms = cosines.after(seen, sketches.directions), sketches.norms
        excused = np.array([hearing.excused.get(name, 0.0) for name in seen])
        judged = judge(sketches, page, known, fleet, s, excused)
    after = {name: records[name] for name in present}
    if judged is not None:
        fleet = judged.fleet
        after |= {
            name: _probed(records[name], record, hearing.probed.get(name, 0.0))
            for name, record in zip(seen, judged.records, strict=True)
        }
    after = {name: _answered(records[name], record, hearing, name, s) for name, record in after.items()}
    events = moves.events(after, records, s)
    after = {name: _moved(name, record, events.get(name), fleet.rounds) for name, record in after.items()}

    good = judged.summable if judged is not None else [measured or r.founder or r.state is State.TRUSTED for r in known]
    summable = {name for name, fine in zip(seen, good, strict=True) if fine and after[name].state not in _UNSUMMED}
    accepted = frozenset(summable if hearing.enforce else seen)
    sizes = [size for name, size in zip(seen, norms, strict=False) if name in accepted]
    verdicts = {
        name: Verdict(
            before=records[name].state,
            after=after[name].state,
            event=events.get(name),
            accepted=name in accepted,
            evidence=after[name].evidence,
            change=after[name].evidence - records[name].evidence,
            parts=after[name].parts,
        )
        for name in present
    }
    return Ruling(
        round=fleet.rounds,
        accepted=accepted,
        verdicts=verdicts,
        reference_norm=float(np.median(sizes)) if sizes else None,
        contamination=_contamination([after[name] for name in accepted], s),
        gate=judged.gate if judged is not None else 0.0,
        established=is_established(known, s),
        hearing=hearing,
        draft=Draft(records=after, fleet=fleet, page=page),
    )


def _probed(before: Record, after: Record, pull: float) -> Record:
    """Take what probes say into a record.

    A pull is not made good by agreement with the others: to agree is how a backdoor is brought in.
    """
    evidence = max(after.evidence, before.evidence + pull) if pull > 0 else after.evidence
    return msgspec.structs.replace(after, evidence=evidence, parts=msgspec.structs.replace(after.parts, pulls=pull))


def _answered(before: Record, record: Record, hearing: Hearing, name: str, s: Settings) -> Record:
    """Take a dispute, a silence or an answer into a record, and keep its evidence within bounds."""
    parts = msgspec.structs.replace(
        record.parts,
        disputes=s.dispute_weight if name in hearing.disputed else 0.0,
        refusals=s.refusal_weight * refusals.weight(record.liveness) if name in hearing.refused else 0.0,
    )
    evidence, silence = record.evidence + parts.disputes + parts.refusals, record.silence + parts.refusals
    if name in hearing.sketches and name not in hearing.refused:
        back = min(silence, s.refusal_weight * refusals.credit(record.liveness))
        forgiven = max(before.evidence - record.evidence, 0.0)  # by the round itself; the larger of the two counts
        evidence, silence = evidence - max(back - forgiven, 0.0), silence - back
    evidence = min(max(evidence, 0.0), s.worst)
    return msgspec.structs.replace(record, parts=parts, evidence=evidence, silence=min(silence, evidence))


def _moved(name: str, record: Record, event: str | None, rounds: int) -> Record:
    """Move a record along the table."""
    if event is None:
        return record
    return msgspec.structs.replace(
        record,
        state=moved(name, record.state, event),
        stay=0,
        since=rounds,
        paroles=record.paroles + (event == PAROLED),
        reason=words.against(record.parts) if event in {EXPELLED, DOUBTED} else "",
    )


def _contamination(accepted: list[Record], s: Settings) -> float:
    """Return the share of hostile devices to expect among the accepted, by the evidence that they carry."""
    if not accepted:
        return _LEAST_CONTAMINATION
    return max(_LEAST_CONTAMINATION, float(np.mean([1 - record.score(s) for record in accepted])))
