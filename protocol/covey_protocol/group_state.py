"""What is known of one group in one round, and who is waited for."""

from __future__ import annotations

from collections.abc import Collection

from nacl.signing import SigningKey

from covey_protocol.attestation import smallest_cover
from covey_protocol.complaints import ComplaintBook
from covey_protocol.epochs import Grouping
from covey_protocol.group_attestation import GroupAttestation
from covey_protocol.machine import Machine
from covey_protocol.messages import Abort
from covey_protocol.prg import Ring
from covey_protocol.proving import Prover
from covey_protocol.ring import METRICS
from covey_protocol.roster import CheckedRoster, Member, OpenRound, Trust
from covey_protocol.round_table import GROUP_TABLE, GroupStage
from covey_protocol.sharing import Entry
from covey_protocol.unmasking import Revealed

EXCLUDED = "excluded"


class GroupState:
    """What has come of one group's members in one round; ``GroupInbox`` takes their messages.

    Args:
        trust: The fleet's anchors; its pins are the aggregator's.
        key: The aggregator's signing key.
        sealing: X25519 secret and public key to which reveals are sealed.
        grouping: The group.
        opened: The round's manifest.
        sequences: The last join sequence seen from each device.
        now: Seconds on the caller's monotonic clock.
        excluded: Members who have no place on the roster.
    """

    def __init__(
        self,
        *,
        trust: Trust,
        key: SigningKey,
        sealing: tuple[bytes, bytes],
        grouping: Grouping,
        opened: OpenRound,
        sequences: dict[str, int],
        now: float,
        excluded: Collection[str] = (),
    ) -> None:
        self.grouping, self.opened = grouping, opened
        self._trust, self._key, self._sealing = trust, key, sealing
        self._sequences = sequences
        self._machine = Machine(GROUP_TABLE, GroupStage.JOINING, f"group {grouping.group}")
        self.deadline = now + opened.manifest.windows.join
        self._joins: dict[str, tuple[bytes, Member]] = {}
        self.roster: CheckedRoster | None = None
        self._roster_body = b""
        self._shares: dict[str, tuple[bytes, dict[str, Entry]]] = {}
        self.dealt: tuple[str, ...] = ()
        self._dealt_digest = b""
        self._masked: dict[str, tuple[bytes, bytes]] = {}
        self._total: Ring | None = None
        self._arrived: set[str] = set()
        self.survivors: tuple[str, ...] = ()
        self._survivors_digest = b""
        self._consents: dict[str, bytes] = {}
        self.entry = b""
        self.attestation: GroupAttestation | None = None
        self.attested = False
        self._assents: dict[str, bytes] = {}
        self._accepted_digest = b""
        self.summed: tuple[str, ...] = ()
        self.liars: dict[str, str] = {}
        self.proofs: dict[str, bytes] = {}
        self._revealed: dict[str, Revealed] = {}
        self.declined = {name: EXCLUDED for name, _ in grouping.members if name in excluded}
        self._revoked: set[str] = set()
        self._lost: dict[str, float] = {}  # and until when each is waited for
        self._passed_over: set[str] = set()
        self.aborted: Abort | None = None
        self.causers: frozenset[str] = frozenset()
        self.complaints = ComplaintBook()
        self._complained: dict[tuple[str, str], bytes] = {}
        self.revealers: frozenset[str] = frozenset()
        self._drop_revoked()

    @property
    def stage(self) -> GroupStage:
        """What the group waits for."""
        return self._machine.state

    @property
    def finished(self) -> bool:
        """Whether nothing more is waited for: the sum can be made, was made, or never will be."""
        return self.stage in (GroupStage.SUMMING, GroupStage.CLOSED, GroupStage.ABORTED)

    def awaited(self) -> set[str]:
        """Return the members whose answer is missing in the present stage."""
        return self._silent() - set(self.declined) - self._passed_over

    def lost(self, name: str, until: float) -> None:
        """Wait for a member no longer than until then: its connection is gone. It may answer all the same."""
        self._lost.setdefault(name, until)

    def is_lost(self, name: str) -> bool:
        """Whether a member's connection is gone, as far as anybody has said."""
        return name in self._lost

    @property
    def passed_over(self) -> frozenset[str]:
        """The members who are waited for no longer because they are lost."""
        return frozenset(self._passed_over)

    def returned(self, name: str) -> None:
        """Wait for a member again."""
        self._lost.pop(name, None)
        self._passed_over.discard(name)

    def candidates(self) -> list[str]:
        """Return the members of U who can be accepted, in roster order.

        Where the group attests they are those with a report, without a smallest set that covers all contradictions
        between reports, and without members whom the operator has revoked meanwhile. Otherwise A is U.
        """
        if self.attestation is None or not self.attestation.attesting:
            return list(self.survivors)
        out = smallest_cover(self.attestation.disputes()) | self._revoked
        return [name for name in self.survivors if name in self.attestation.reports and name not in out]

    def unattested(self) -> set[str]:
        """Return the members of U whose reports are waited for; none once nobody's is."""
        return self.attestation.silent() if self.attestation is not None and not self.attested else set()

    @property
    def published(self) -> tuple[str, ...]:
        """The members of the last set that was published to be signed for a sum; empty as long as none was."""
        return self.summed if self._accepted_digest or not self.opened.manifest.sketch else ()

    def _silent(self) -> set[str]:
        if self.stage in (GroupStage.JOINING, GroupStage.SHARING):
            asked = self._members()
        elif self.entry:
            # Whoever did not sign U in time has no part in the seed, and can check nothing that follows from it.
            asked = set(self._consents)
        else:
            asked = set(self.dealt)
        return asked - self._answered()

    def _members(self) -> set[str]:
        """Return who is on the roster, or may come onto it."""
        return {member.name for member in self.roster.members} if self.roster else {n for n, _ in self.grouping.members}

    def _answered(self) -> set[str]:
        """Return who has answered in the present stage; where nobody is asked, that is everybody."""
        return {
            GroupStage.JOINING: set(self._joins),
            GroupStage.SHARING: set(self._shares),
            GroupStage.MASKING: self._arrived,
            GroupStage.SIGNING: set(self.dealt) if self.entry else set(self._consents),
            GroupStage.ATTESTING: set(self.dealt) - self.unattested(),
            GroupStage.ACCEPTING: set(self._assents),
            GroupStage.UNMASKING: set(self._revealed),
        }.get(self.stage, self._members())

    def prover(self) -> Prover:
        """Return what writes proofs about this group's members."""
        return Prover(
            self._trust.fleet, self.opened, self.grouping.digest(), self._current(), self._roster_body, self._shares
        )

    def _drop_revoked(self) -> list[str]:
        revoked = [name for name, key in self.grouping.members if self._trust.revoked(key) is not None]
        gone = [name for name in revoked if name not in self.declined]
        self._revoked.update(revoked)
        for name in gone:
            self.declined[name] = "revoked"
            if self.roster is None:
                self._joins.pop(name, None)
        return gone

    def _shares_held(self) -> dict[str, Revealed]:
        return self.complaints.complete(self._revealed, self.summed)

    def _vector_bytes(self) -> int:
        """Two bytes a parameter and metric; what a member signs and what then comes are both held to it."""
        return self.opened.manifest.model.bytes // 2 + 2 * len(METRICS)

    def _current(self) -> CheckedRoster:
        assert self.roster is not None
        return self.roster
