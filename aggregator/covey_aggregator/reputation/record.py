"""What is kept of one device, and of the fleet as a whole."""

from __future__ import annotations

import msgspec

from covey_aggregator.reputation.evidence import Parts
from covey_aggregator.reputation.refusals import Liveness
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.states import NEWCOMERS, OUT, State


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """One device's record.

    Attributes:
        token: What the operator enrolled it with: the record belongs to this, not to a key.
        key: Its present key.
        state: What the aggregator thinks of it.
        evidence: E, from 0.
        silence: What of it refusals have left.
        age: Attested rounds in which it was judged.
        stay: How many of them since it came into its state.
        log_norm: L_i before its youth is corrected: moving average of the logarithm of its relative norm.
        fellowship: F_i, likewise: moving average of the cosine with its fellows.
        tested: Rounds in it.
        agreement: Weighted sum of its agreement with the centre over what is usual.
        agreed: The weights' sum.
        founder: Joined before there was an established fleet.
        paroles: How often it was let out of quarantine and failed.
        held: Quarantined by the operator, and let out by nobody else.
        since: Attested round of the fleet in which it came into its state.
        reason: Why, in words.
        parts: What the last round said of it.
        liveness: How often it answers where silence serves nobody.
    """

    token: str = ""
    key: bytes = b""
    state: State = State.PROBATION
    evidence: float = 0.0
    silence: float = 0.0
    age: int = 0
    stay: int = 0
    log_norm: float = 0.0
    fellowship: float = 0.0
    tested: int = 0
    agreement: float = 0.0
    agreed: float = 0.0
    founder: bool = True
    paroles: int = 0
    held: bool = False
    since: int = 0
    reason: str = ""
    parts: Parts = Parts()
    liveness: Liveness = Liveness()

    def weight(self, established: bool, s: Settings) -> float:
        """Return what the device counts, from 0 to 1."""
        if self.state in OUT:
            return 0.0
        if self.state is State.SUSPECT:
            return s.suspect_weight
        return s.probation_weight if self.state in NEWCOMERS and established else 1.0

    def score(self, s: Settings) -> float:
        """Return the reputation, from 0 to 1: 1 without evidence, 0 where it quarantines."""
        return 0.0 if self.state in OUT else 1 - min(1.0, self.evidence / s.quarantine_at)


class Fleet(msgspec.Struct, kw_only=True, frozen=True):
    """What is remembered of all devices together.

    Attributes:
        rounds: Attested rounds.
        spread: Moving average of the centre's spread.
        peak: The largest usual norm.
    """

    rounds: int = 0
    spread: float = 0.0
    peak: float = 0.0
