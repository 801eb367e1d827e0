"""The aggregator's side of ATTEST and ACCEPT in one group: reports in, sketches of updates and proven liars out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from covey_protocol import attest_stage, attestation
from covey_protocol.attestation import Pair
from covey_protocol.digest import content_digest
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.messages import Attestation, Report
from covey_protocol.payload import read
from covey_protocol.prg import Ring
from covey_protocol.roster import CheckedRoster, OpenRound
from covey_protocol.sealing import open_sealed
from covey_protocol.sketch import SketchMatrix
from covey_protocol.unmasking import Restored


class Lied(NamedTuple):
    """What a member is caught in.

    Attributes:
        words: In words.
        peer: The other end of the pair that it lied about; nobody if it was its self-mask.
        shown: Of the two ends, whose masking secret was restored and shows it.
    """

    words: str
    peer: str = ""
    shown: str = ""


@dataclass
class GroupAttestation:
    """What one group's members have said about their masks under one seed.

    Attributes:
        seed: ρ.
        attesting: Whether the lot, or the aggregator's watch, has the group attest.
        opened, fleet, roster: The round.
        dealt, survivors: D ⊇ U.
        heads: Signed heads of reports, by member.
        bodies: The reports as they came.
        reports: What they hold.
    """

    seed: bytes
    attesting: bool
    opened: OpenRound
    fleet: str
    roster: CheckedRoster
    dealt: Sequence[str]
    survivors: Sequence[str]
    heads: dict[str, bytes] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict, repr=False)
    reports: dict[str, attestation.Report] = field(default_factory=dict, repr=False)

    def matrix(self) -> SketchMatrix:
        """Return P."""
        return attest_stage.matrix(self.seed, self.opened)

    def silent(self) -> set[str]:
        """Return the members of U whose reports are missing."""
        return set(self.survivors) - set(self.reports) if self.attesting else set()

    def take(self, name: str, message: Attestation, sealing: tuple[bytes, bytes]) -> None:
        """Take a member's report.

        Args:
            name: Whose it is.
            message: The payload of its ATTEST message.
            sealing: Secret and public key that reports are sealed to.

        Raises:
            StaleError: It has reported already, or nobody was asked.
            RefusedError: It is not in U, or the report is not whole, or not the one that was signed.
            PeerError: The head's signature does not hold.
        """
        if not self.attesting or name in self.reports:
            raise StaleError(f"a report of {name!r} that nobody waits for", cause="repeated")
        if name not in self.survivors:
            raise RefusedError(f"{name!r} attests without a vector in U", cause="survivors")
        member = self.roster.member(name)
        assert member is not None
        signed = attest_stage.read_head(
            message.head, member, seed=self.seed, roster=self.roster, opened=self.opened, fleet=self.fleet
        )
        secret, public = sealing
        body = open_sealed(message.sealed, public, secret)
        if content_digest(body) != signed:
            raise RefusedError(f"{name!r} sealed another report than it signed", cause="report")
        self.reports[name] = self._read(name, read(Report, body))
        self.heads[name], self.bodies[name] = message.head, body

    def _read(self, name: str, report: Report) -> attestation.Report:
        others = [other for other in self.dealt if other != name]
        sketches = [report.own, *(sketch for _, sketch in report.pairs)]
        sizes = {len(sketch) for sketch in sketches}
        if [other for other, _ in report.pairs] != others or sizes != {2 * self.opened.manifest.sketch}:
            raise RefusedError(f"the report of {name!r} has not one sketch for each member of D", cause="report")
        own, *pairs = (np.frombuffer(sketch, "<u2") for sketch in sketches)
        return attestation.Report(own, dict(zip(others, pairs, strict=True)))

    def disputes(self) -> set[Pair]:
        """Return the pairs whose ends contradict each other."""
        return attestation.disputes(self.reports)

    def sketches(self, vector: Callable[[str], Ring]) -> dict[str, Ring]:
        """Return the sketches of all updates that were reported on, in the ring. Heavy: one pass over all vectors.

        Args:
            vector: Returns a member's masked vector; those of one group are in memory together.
        """
        places = {member.name: member.place for member in self.roster.members}
        names = sorted(self.reports)
        matrix = self.matrix()
        masked = matrix.of([vector(name)[: matrix.length] for name in names])
        return {
            name: attestation.recover(sketch, self.reports[name], places[name], places)
            for name, sketch in zip(names, masked, strict=True)
        }

    def liars(self, restored: Restored) -> dict[str, Lied]:
        """Return who is proven to have lied, and about what, once secrets are restored. Heavy, like masking."""
        if not self.attesting:
            return {}
        matrix, found = self.matrix(), {}
        for name, seed in restored.self_masks.items():
            if name in self.reports and attestation.lie_about_self(matrix, self.reports[name], seed):
                found[name] = Lied("reported a false sketch of its self-mask")
        for name, seeds in restored.pairs.items():
            for other, seed in seeds.items():
                for liar in attestation.liars_about_pair(matrix, self.reports, (name, other), seed):
                    peer = other if liar == name else name
                    found[liar] = Lied(f"reported a false sketch of its mask with {peer!r}", peer, name)
        return found
