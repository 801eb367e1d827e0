"""states.py and moves.py: along the table, and never too many at once."""

from __future__ import annotations

import pytest

from covey_aggregator.reputation import NEWCOMERS, OUT, TABLE, Settings, State, moves, states
from covey_aggregator.reputation.record import Record
from covey_protocol.errors import StateError

S = Settings()


def test_every_state_is_reached_and_nothing_leads_out_of_a_ban() -> None:
    assert set(TABLE) == set(State)
    assert {target for row in TABLE.values() for target in row.values()} == set(State)
    assert TABLE[State.BANNED] == {}
    assert all(TABLE[state][states.BANNED] is State.BANNED for state in State if state is not State.BANNED)


def test_an_event_without_a_row_names_device_event_and_state() -> None:
    with pytest.raises(StateError, match="device d-1: vouched has no place in state quarantined"):
        states.moved("d-1", State.QUARANTINED, states.VOUCHED)


def test_newcomers_and_outcasts() -> None:
    assert {State.PROBATION, State.PAROLE} == NEWCOMERS and {State.QUARANTINED, State.BANNED} == OUT


@pytest.mark.parametrize(
    ("record", "event"),
    [
        (Record(age=5, evidence=0.9), states.VOUCHED),
        (Record(age=4, evidence=0.0), None),
        (Record(age=9, evidence=1.0), None),
        (Record(evidence=2.0), states.DOUBTED),
        (Record(state=State.TRUSTED, evidence=1.9), None),
        (Record(state=State.TRUSTED, evidence=2.0), states.DOUBTED),
        (Record(state=State.SUSPECT, evidence=0.5), None),
        (Record(state=State.SUSPECT, evidence=0.4), states.CLEARED),
        (Record(state=State.SUSPECT, evidence=5.0), states.EXPELLED),
        (Record(state=State.TRUSTED, evidence=5.0), states.EXPELLED),
        (Record(state=State.QUARANTINED, evidence=0.0, stay=10), states.PAROLED),
        (Record(state=State.QUARANTINED, evidence=0.1, stay=99), None),
        (Record(state=State.QUARANTINED, evidence=0.0, stay=9), None),
        (Record(state=State.QUARANTINED, evidence=0.0, stay=19, paroles=1), None),
        (Record(state=State.QUARANTINED, evidence=0.0, stay=20, paroles=1), states.PAROLED),
        (Record(state=State.QUARANTINED, evidence=0.0, stay=99, held=True), None),
        (Record(state=State.PAROLE, evidence=2.0), states.EXPELLED),
        (Record(state=State.PAROLE, evidence=0.5, stay=4, age=50), None),
        (Record(state=State.PAROLE, evidence=0.5, stay=5, age=50), states.VOUCHED),
        (Record(state=State.BANNED, evidence=0.0, stay=99), None),
    ],
)
def test_what_evidence_asks_for(record: Record, event: str | None) -> None:
    assert moves.wish(record, S) == event
    assert event is None or event in TABLE[record.state]


def bad(count: int, *, founder: bool = True) -> dict[str, Record]:
    return {f"d-{n:03}": Record(evidence=5 + n / 100, founder=founder) for n in range(count)}


def test_the_worst_are_expelled_first_and_the_rest_wait_as_suspects() -> None:
    after = bad(40)
    found = moves.events(after, after, S)
    assert {name for name, event in found.items() if event == states.EXPELLED} == {f"d-{n:03}" for n in range(34, 40)}
    assert set(found.values()) == {states.EXPELLED, states.DOUBTED} and len(found) == 40


def test_no_more_than_half_of_the_founders_are_ever_in_quarantine() -> None:
    everybody = {f"q-{n}": Record(state=State.QUARANTINED) for n in range(19)} | bad(21)
    assert list(moves.events(bad(21), everybody, S).values()).count(states.EXPELLED) == 1


def test_a_wave_of_newcomers_is_not_safe_for_its_number() -> None:
    everybody = {f"q-{n}": Record(state=State.QUARANTINED) for n in range(5)}
    everybody |= {f"f-{n}": Record() for n in range(5)} | bad(40, founder=False)
    assert list(moves.events(bad(40, founder=False), everybody, S).values()).count(states.EXPELLED) == 6


def test_who_is_a_suspect_already_just_waits() -> None:
    after = {name: Record(state=State.SUSPECT, evidence=9.0) for name in bad(20)}
    assert set(moves.events(after, after, S).values()) == {states.EXPELLED}
    assert len(moves.events(after, after, S)) == 3
