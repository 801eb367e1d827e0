"""The states a device's reputation can be in, as a transition table.

Evidence moves a device along all rows but three: ``banned`` needs a cryptographic proof, ``detained`` and ``released``
an operator with a reason. Nothing leads out of a ban: a proof does not become less true.
"""

from __future__ import annotations

from enum import StrEnum

from covey_protocol.errors import StateError

VOUCHED = "vouched"
DOUBTED = "doubted"
CLEARED = "cleared"
EXPELLED = "expelled"
PAROLED = "paroled"
DETAINED = "detained"
RELEASED = "released"
BANNED = "banned"


class State(StrEnum):
    """What the aggregator thinks of a device."""

    PROBATION = "probation"
    TRUSTED = "trusted"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    PAROLE = "parole"
    BANNED = "banned"


_ALWAYS = {EXPELLED: State.QUARANTINED, DETAINED: State.QUARANTINED, BANNED: State.BANNED}

TABLE = {
    State.PROBATION: {VOUCHED: State.TRUSTED, DOUBTED: State.SUSPECT, **_ALWAYS},
    State.TRUSTED: {DOUBTED: State.SUSPECT, **_ALWAYS},
    State.SUSPECT: {CLEARED: State.PROBATION, RELEASED: State.PROBATION, **_ALWAYS},
    State.QUARANTINED: {
        PAROLED: State.PAROLE,
        RELEASED: State.PROBATION,
        DETAINED: State.QUARANTINED,
        BANNED: State.BANNED,
    },
    State.PAROLE: {VOUCHED: State.TRUSTED, DOUBTED: State.SUSPECT, **_ALWAYS},
    State.BANNED: {},
}

NEWCOMERS = frozenset({State.PROBATION, State.PAROLE})
"""Who has yet to earn trust: kept in groups of their own, with a capped share of the weight."""

OUT = frozenset({State.QUARANTINED, State.BANNED})
"""Whose updates are never summed into the model."""


def moved(name: str, state: State, event: str) -> State:
    """Return the state that an event leads to.

    Raises:
        StateError: The state has no row for the event.
    """
    if event not in TABLE[state]:
        raise StateError(f"device {name}: {event} has no place in state {state}")
    return TABLE[state][event]
