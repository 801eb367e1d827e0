"""What the rule answers: a ruling on a round, and a device's standing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from covey_aggregator.reputation.evidence import Parts
from covey_aggregator.reputation.history import Page
from covey_aggregator.reputation.record import Fleet, Record
from covey_aggregator.reputation.states import State


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a round means for one device.

    Attributes:
        before: Its state.
        after: The state that it comes into when the round is settled.
        event: The row of the table that leads there, if any.
        accepted: Whether its update may be summed.
        evidence: What stands against it after the round, from 0.
        change: What the round added or took back.
        parts: Where that comes from.
    """

    before: State
    after: State
    event: str | None
    accepted: bool
    evidence: float
    change: float
    parts: Parts


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What was seen in a round.

    Attributes:
        sketches: By device.
        enforce: Whether reputations act.
        disputed: Who has to go because of disputes.
        refused: Who fell silent.
        probed: Evidence from elsewhere about what devices teach.
        excused: How far devices teach what their own labels teach, from elsewhere too, from 0 to 1.
    """

    sketches: Mapping[str, NDArray[Any]]
    enforce: bool = True
    disputed: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    probed: Mapping[str, float] = field(default_factory=dict)
    excused: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Everybody who is in it."""
        return {*self.sketches, *self.disputed, *self.refused}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What the book will hold once a ruling is settled.

    Attributes:
        records: Of all who were there.
        fleet: What the fleet remembers.
        page: The cosines; None where too few were there to judge anybody.
        changes: Which state of the book it was made of.
        settled: After how many settled rulings.
    """

    records: Mapping[str, Record]
    fleet: Fleet
    page: Page | None
    changes: int = 0
    settled: int = 0


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What a round's sketches mean.

    Attributes:
        round: The fleet's attested round that this is, from 1; the last one's where too few were there to judge.
        accepted: Devices whose updates may be summed.
        verdicts: By device, for all that sent a sketch, were disputed or fell silent.
        reference_norm: Median norm of the accepted: what the next round's clip is measured by. None without any.
        contamination: Share of hostile devices to be expected among the accepted, for the rule across groups.
        gate: κ, how much the round could tell, from 0 to 1.
        established: Whether trusted devices were the measure.
        hearing: What it was made of.
        draft: What settling it will change.
    """

    round: int
    accepted: frozenset[str]
    verdicts: Mapping[str, Verdict]
    reference_norm: float | None
    contamination: float
    gate: float
    established: bool
    hearing: Hearing = field(repr=False)
    draft: Draft = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a device stands.

    Attributes:
        name: The device.
        state: What the aggregator thinks of it.
        score: Reputation, from 0 to 1.
        evidence: What stands against it, from 0.
        parts: What the last round that it was judged in said of it.
        liveness: How often it answers, from 0 to 1. It is no part of the reputation.
        words: All of it, in plain words.
    """

    name: str
    state: State
    score: float
    evidence: float
    parts: Parts
    liveness: float
    words: str
