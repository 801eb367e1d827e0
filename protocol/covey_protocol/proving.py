"""Writing proofs: what the aggregator keeps of a group's round, put into the forms that ``proofs.verify`` checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from covey_protocol import envelope
from covey_protocol.digest import content_digest
from covey_protocol.group_attestation import GroupAttestation, Lied
from covey_protocol.payload import write
from covey_protocol.proof_checks import clamped
from covey_protocol.proof_forms import (
    VERSION,
    BadShare,
    CommittedShare,
    FalseComplaint,
    FalsePairMask,
    FalseSelfMask,
    Lie,
    Proof,
    SecondSignature,
    SignedOnce,
    WrongSecret,
)
from covey_protocol.proof_round import ProofRound
from covey_protocol.roster import CheckedRoster, OpenRound
from covey_protocol.sharing import Entry
from covey_protocol.unmasking import Restored, Revealed

Dealings = Mapping[str, tuple[bytes, Mapping[str, Entry]]]


@dataclass(frozen=True)
class Prover:
    """Writes proofs about the members of one group in one round.

    Attributes:
        fleet, opened: The round.
        grouping: Digest of the group.
        roster, body: The members, and the payload of ROSTER.
        dealings: By dealer: its signed leaves, and its entries by receiver.
    """

    fleet: str
    opened: OpenRound
    grouping: bytes
    roster: CheckedRoster
    body: bytes
    dealings: Dealings = field(repr=False)

    def of_lie(self, name: str, lied: Lied, attestation: GroupAttestation, restored: Restored) -> bytes:
        """Return the proof that a member reported a false sketch of a mask."""
        head, report = attestation.heads[name], attestation.bodies[name]
        if not lied.peer:
            return self._write(name, FalseSelfMask(head=head, report=report, seed=restored.self_masks[name]))
        secret = restored.masking[lied.shown]
        return self._write(name, FalsePairMask(head=head, report=report, peer=lied.peer, secret=secret))

    def of_share(self, dealer: str, receiver: str, answer: bytes) -> bytes:
        """Return the proof that a dealer's entry is of no use to its receiver, with the keys that it signed for it."""
        leaves, entries = self.dealings[dealer]
        lie = BadShare(leaves=leaves, receiver=receiver, entry=entries[receiver].array(), answer=answer)
        return self._write(dealer, lie)

    def of_complaint(
        self, receiver: str, dealer: str, complaint: bytes, dealt: Sequence[str], ephemeral: bytes
    ) -> bytes:
        """Return the proof that a member complained of a good entry."""
        leaves, entries = self.dealings[dealer]
        lie = FalseComplaint(
            complaint=complaint,
            dealt=[(name, content_digest(self.dealings[name][0])) for name in dealt],
            dealer=dealer,
            leaves=leaves,
            entry=entries[receiver].array(),
            ephemeral=clamped(ephemeral),
        )
        return self._write(receiver, lie)

    def of_secret(self, dealer: str, summed: bool, revealed: Mapping[str, Revealed]) -> bytes | None:
        """Return the proof that a dealer shared another secret than it published, if t members hold shares of it.

        Args:
            dealer: Who it is.
            summed: Whether it is in the sum, so that its self-mask was restored, and otherwise its masking secret.
            revealed: Everybody's checked shares.
        """
        leaves, entries = self.dealings[dealer]
        shares = []
        for receiver, held in revealed.items():
            by_dealer = held.self_mask if summed else held.masking
            if dealer in by_dealer:
                entry = entries[receiver].array()
                shares.append(CommittedShare(receiver=receiver, entry=entry, share=by_dealer[dealer]))
        if len(shares) < self.roster.t:
            return None
        kind: Literal["masking", "self-mask"] = "self-mask" if summed else "masking"
        return self._write(dealer, WrongSecret(leaves=leaves, which=kind, shares=shares[: self.roster.t]))

    def of_signatures(self, name: str, kind: SignedOnce, one: bytes, other: bytes) -> bytes:
        """Return the proof that a member signed two different things of a kind."""
        first, second = sorted((one, other), key=lambda data: envelope.parse(data).payload)
        return self._write(name, SecondSignature(kind=kind, first=first, second=second))

    def _write(self, device: str, lie: Lie) -> bytes:
        place = ProofRound(
            task=self.opened.task,
            round=self.opened.round,
            attempt=self.opened.attempt,
            grouping=self.grouping,
            manifest=self.opened.body,
            roster=self.body,
        )
        return write(Proof(version=VERSION, fleet=self.fleet, device=device, round=place, lie=lie))
