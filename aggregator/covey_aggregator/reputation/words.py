"""Reputation in plain words."""

from __future__ import annotations

from covey_aggregator.reputation.evidence import Parts
from covey_aggregator.reputation.record import Record
from covey_aggregator.reputation.states import State

_AGAINST = {
    "alignment": "its updates point away from what the others learn",
    "norm": "its updates are of an unusual size",
    "clones": "its updates are copies of other devices'",
    "isolation": "its updates are like nobody's, or no longer like those of its fellows",
    "disputes": "its peers contradict what it reported",
    "pulls": "it teaches one label to samples of all kinds",
    "refusals": "it falls silent where it owes an answer, more often than elsewhere",
}
_STATES = {
    State.PROBATION: "on probation",
    State.TRUSTED: "trusted",
    State.SUSPECT: "suspect: its updates are left out until the evidence fades",
    State.QUARANTINED: "in quarantine: its updates are never summed",
    State.PAROLE: "on parole: let out of quarantine, and back at the first doubt",
    State.BANNED: "banned: it is proven to have lied",
}
_NOTABLE = 0.2


def against(parts: Parts) -> str:
    """Say what counted against a device, the heaviest first; nothing if nothing did."""
    found = sorted(((getattr(parts, part), text) for part, text in _AGAINST.items()), key=lambda entry: -entry[0])
    return "; ".join(text for weight, text in found if weight >= _NOTABLE)


def explain(name: str, record: Record) -> str:
    """Say how a device stands and why."""
    sentence = f"{name} is {_STATES[record.state]}"
    if record.since:
        sentence += f", since attested round {record.since}"
    if record.reason:
        sentence += f" ({record.reason})"
    sentence += f". It was judged in {record.age} attested rounds; evidence against it: {record.evidence:.1f}."
    if last := against(record.parts):
        sentence += f" In the last of them {last}."
    if record.parts.excused >= _NOTABLE:
        sentence += " Its updates are those of its own labels: how else they differ does not count against it."
    return sentence
