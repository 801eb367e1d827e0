"""Which way evidence moves devices between states, and how many at once."""

from __future__ import annotations

from collections.abc import Mapping

from covey_aggregator.reputation.record import Record
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.states import (
    CLEARED,
    DOUBTED,
    EXPELLED,
    OUT,
    PAROLED,
    VOUCHED,
    State,
)

_DOUBLINGS = 16


def wish(record: Record, s: Settings) -> str | None:
    """Return the event that a device's evidence asks for, if any."""
    e, state, clean = record.evidence, record.state, record.evidence < s.trust_at
    jail = s.parole_after * 2 ** min(record.paroles, _DOUBLINGS)
    wishes = (
        (EXPELLED, state not in OUT and e >= (s.parole_at if state is State.PAROLE else s.quarantine_at)),
        (DOUBTED, state in {State.PROBATION, State.TRUSTED} and e >= s.suspect_at),
        (CLEARED, state is State.SUSPECT and e < s.clear_at),
        (VOUCHED, state is State.PROBATION and clean and record.age >= s.probation),
        (VOUCHED, state is State.PAROLE and clean and record.stay >= s.probation),
        (PAROLED, state is State.QUARANTINED and e <= 0 and not record.held and record.stay >= jail),
    )
    return next((event for event, due in wishes if due), None)


def events(after: Mapping[str, Record], everybody: Mapping[str, Record], s: Settings) -> dict[str, str]:
    """Return what happens to whom, within the limits on expulsions.

    Expulsions wait when they are too many: at most a share of the round's devices at once, the worst first, and never
    more than a share of the founders. Who joined an established fleet later does not count for the second limit: a wave
    of newcomers must not be safe for its number. Who has to wait is a suspect meanwhile, and not summed either.

    Args:
        after: The round's devices, with its evidence taken in.
        everybody: All records, before the round.
        s: The rule's parameters.
    """
    wishes = {name: event for name, record in after.items() if (event := wish(record, s)) is not None}
    founders = [record for record in everybody.values() if record.founder]
    room = int(s.quarantine_share * len(founders)) - sum(record.state in OUT for record in founders)
    places = max(1, int(s.quarantine_rate * len(after)))
    due = sorted((name for name in wishes if wishes[name] == EXPELLED), key=lambda name: (-after[name].evidence, name))
    for name in due:
        fits = places > 0 and (room > 0 or not after[name].founder)
        if fits:
            places, room = places - 1, room - after[name].founder
        elif after[name].state is not State.SUSPECT:
            wishes[name] = DOUBTED
        else:
            del wishes[name]
    return wishes
