"""What the members of one group have said in one round, every message checked before anything changes.

The masked vectors are folded into one sum as they arrive, so a group costs O(d) memory however large it is.
"""

from __future__ import annotations

import numpy as np

from covey_protocol import attest_stage, envelope, roster, topics
from covey_protocol.certificates import check_leaves, read_consent, read_masked
from covey_protocol.complaints import check_complaint, read_keys
from covey_protocol.digest import content_digest
from covey_protocol.effects import Deliver, Effect, Expect, Note, Publish
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.group_state import EXCLUDED, GroupState
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import (
    Answer,
    Attestation,
    Complaints,
    Decline,
    Reveal,
    RevealedShares,
    Shares,
)
from covey_protocol.payload import Payload, read, write
from covey_protocol.round_table import GroupStage
from covey_protocol.sealing import open_sealed
from covey_protocol.second_signatures import proof_of_two
from covey_protocol.sharing import Entry
from covey_protocol.unmasking import check_reveal

COMPLAINING = frozenset(
    {
        GroupStage.MASKING,
        GroupStage.SIGNING,
        GroupStage.ATTESTING,
        GroupStage.ACCEPTING,
        GroupStage.UNMASKING,
    }
)
"""From the moment at which members have their shares to the moment at which the shares are needed."""


class GroupInbox(GroupState):
    """Takes the members' messages, ``GroupRound`` says when the group goes on; arguments as for ``GroupState``."""

    def take(self, kind: str, name: str, data: bytes) -> list[Effect]:
        """Take a member's message.

        Raises:
            PeerError: It breaks a rule or comes late; nothing has changed.
        """
        if kind == topics.DECLINE:
            return self._on_decline(name, self.opened.matches(data))
        rows = {
            topics.JOIN: ({GroupStage.JOINING}, self._on_join),
            topics.SHARES: ({GroupStage.SHARING}, self._on_shares),
            topics.MASKED: ({GroupStage.MASKING}, self._on_masked),
            topics.SURVIVORS: ({GroupStage.SIGNING}, self._on_consent),
            topics.ATTEST: ({GroupStage.ATTESTING}, self._on_report),
            topics.ACCEPT: ({GroupStage.ACCEPTING}, self._on_assent),
            topics.UNMASK: ({GroupStage.UNMASKING}, self._on_reveal),
            topics.COMPLAINT: (COMPLAINING, self._on_complaint),
            topics.ANSWER: (COMPLAINING, self._on_answer),
        }
        if kind not in rows:
            raise RefusedError(f"{kind} is no message of a round", cause="kind")
        stages, handler = rows[kind]
        message = self.opened.matches(data)
        if second := self._second(kind, name, data):
            return second
        if self.stage not in stages:
            raise StaleError(f"{kind} from {name!r} in stage {self.stage}", cause="stage")
        if kind == topics.JOIN:
            return self._on_join(name, data)
        member = self.roster.member(name) if self.roster else None
        if member is None:
            raise RefusedError(f"{kind} from {name!r}, who is not on the roster", cause="roster")
        assert self.roster is not None
        context = self.opened.context(self._trust.fleet, kind, name, self.roster.digest)
        envelope.verify(message, context, member.key)
        return handler(name, data)

    def take_vector(self, name: str, blob: bytes) -> None:
        """Take a masked vector.

        Raises:
            PeerError: It is not expected, or not the one that the member has signed; nothing has changed.
        """
        if self.stage is not GroupStage.MASKING or name in self._arrived or name not in self._masked:
            raise StaleError(f"masked vector of {name!r} in stage {self.stage}", cause="stage")
        if len(blob) != self._vector_bytes():
            raise RefusedError(
                f"masked vector of {name!r} has {len(blob)} bytes instead of {self._vector_bytes()}", cause="size"
            )
        if content_digest(blob) != self._masked[name][1]:
            raise RefusedError(f"masked vector of {name!r} is not the one it signed", cause="digest")
        vector = np.frombuffer(blob, "<u2")
        if self._total is None:
            self._total = np.zeros(len(vector), np.uint16)
        self._total += vector
        self._arrived.add(name)

    def expecting(self) -> list[Effect]:
        """Return the vectors that members have signed for and that have not arrived."""
        if self.stage is not GroupStage.MASKING:
            return []
        size = self._vector_bytes()
        return [Expect(name, digest, size) for name, (_, digest) in self._masked.items() if name not in self._arrived]

    def _signed(self, kind: str, name: str) -> bytes:
        """Return what a member has signed of a kind of which there is one a round; empty if it has not yet."""
        if kind == topics.ATTEST:
            return self.attestation.heads.get(name, b"") if self.attestation is not None else b""
        if kind == topics.MASKED:
            return self._masked.get(name, (b"", b""))[0]
        return {topics.SURVIVORS: self._consents, topics.ACCEPT: self._assents}.get(kind, {}).get(name, b"")

    def _second(self, kind: str, name: str, data: bytes) -> list[Effect]:
        """Keep the proof, if what comes is signed and says something else than what came first; else do nothing."""
        first = self._signed(kind, name)
        if not first or first == data or name in self.proofs:
            return []
        proof = proof_of_two(
            *(kind, name, first, data),
            prover=self.prover(),
            operator_key=self._trust.operator_key,
            former=self._trust.successions.former,
        )
        if not proof:
            return []
        self.proofs[name] = proof
        return [Note("blamed", f"group {self.grouping.group}: {name} has signed two different messages {kind!r}")]

    def _on_join(self, name: str, data: bytes) -> list[Effect]:
        places = {member: place for place, (member, _) in enumerate(self.grouping.members)}
        if name in self._joins:
            raise StaleError(f"{name!r} has joined already", cause="repeated")
        if name not in places:
            raise RefusedError(f"{name!r} is not in group {self.grouping.group}", cause="roster")
        if self.declined.get(name) == EXCLUDED:
            raise RefusedError(f"{name!r} has no place on this round's roster", cause="excluded")
        member = roster.check_join(
            data, name, places[name], opened=self.opened, grouping=self.grouping, trust=self._trust
        )
        roster.check_sequences([member], lambda peer: self._sequences.get(peer, 0))
        if any(member.token == other.token for _, other in self._joins.values()):
            raise RefusedError(f"{name!r} holds the token of another member", cause="same-token")
        self._sequences[name] = member.join.sequence
        self._joins[name] = (data, member)
        return []

    def _on_decline(self, name: str, message: envelope.Envelope) -> list[Effect]:
        """Wait no longer for a member that leaves; for the sum it counts like one that fell silent."""
        if self.finished or name in self.declined:
            raise StaleError(f"{name!r} leaves in stage {self.stage}", cause="stage")
        key = dict(self.grouping.members).get(name)
        if key is None or (self.roster is not None and self.roster.member(name) is None):
            raise RefusedError(f"{name!r} is not in group {self.grouping.group}", cause="roster")
        bound = self.roster.digest if self.roster is not None else self.grouping.digest()
        context = self.opened.context(self._trust.fleet, topics.DECLINE, name, bound)
        if name in self._joins:
            key = self._joins[name][1].key  # which may have followed the epoch's
        decline = read(Decline, envelope.verify(message, context, key))
        if self.roster is None:
            self._joins.pop(name, None)
        self.declined[name] = decline.reason
        return [Note("declined", f"{name} leaves group {self.grouping.group}: {decline.cause}: {decline.reason}")]

    def _on_shares(self, name: str, data: bytes) -> list[Effect]:
        current = self._current()
        if name in self._shares:
            raise StaleError(f"{name!r} has dealt already", cause="repeated")
        message = read(Shares, envelope.parse(data).payload)
        dealer = current.member(name)
        assert dealer is not None
        leaves = check_leaves(message.leaves, dealer, current, self.opened, self._trust.fleet)
        entries = {receiver: Entry(*array) for receiver, array in message.entries}
        for member in current.members:
            entry = entries.get(member.name)
            if entry is None or entry.leaf() != leaves[member.place]:
                raise RefusedError(f"{name!r} dealt no entry for {member.name!r} that it signed", cause="share")
        self._shares[name] = (message.leaves, entries)
        return []

    def _on_masked(self, name: str, data: bytes) -> list[Effect]:
        if name in self._masked:
            raise StaleError(f"{name!r} has sent its masked vector already", cause="repeated")
        if name not in self.dealt:
            raise RefusedError(f"{name!r} did not deal", cause="dealt")
        current = self._current()
        member = current.member(name)
        assert member is not None
        masked = read_masked(
            data,
            member,
            roster=current,
            dealt_digest=self._dealt_digest,
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        expected = self._vector_bytes()
        if masked.vector.bytes != expected:
            raise RefusedError(f"{name!r} masked {masked.vector.bytes} bytes instead of {expected}", cause="size")
        self._masked[name] = (data, masked.vector.digest)
        return [Expect(name, masked.vector.digest, masked.vector.bytes)]

    def _on_complaint(self, name: str, data: bytes) -> list[Effect]:
        """Pass a complaint on to the dealers it names."""
        current = self._current()
        sender = current.member(name)
        assert sender is not None
        dealers = check_complaint(
            data,
            sender,
            dealt=self._dealt_digest,
            roster=current,
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        if name not in self.dealt or not set(dealers) <= set(self.dealt):
            raise RefusedError(f"{name!r} complains of shares that were not dealt", cause="complaint")
        new = self.complaints.file(name, dealers)
        if not new:
            raise StaleError(f"{name!r} has complained already", cause="repeated")
        self._complained.update({(dealer, name): data for dealer in new})
        effects: list[Effect] = [Note("bad-share", f"{name} cannot use the shares of {', '.join(new)}")]
        relayed = Complaints(complaints=[(name, data)])
        return effects + [self._deliver(dealer, topics.COMPLAINT, relayed) for dealer in new]

    def _on_answer(self, name: str, data: bytes) -> list[Effect]:
        secret, public = self._sealing
        sealed = read(Answer, envelope.parse(data).payload).sealed
        dealer = self._current().member(name)
        if dealer is None or name not in self.dealt:
            raise RefusedError(f"{name!r} did not deal", cause="complaint")
        signed = open_sealed(sealed, public, secret)
        keys = read_keys(signed, dealer, roster=self._current(), opened=self.opened, fleet=self._trust.fleet)
        verdicts = self.complaints.judge(name, keys, roster=self._current(), entries=self._shares[name][1])
        for receiver, key in keys:
            self._prove(name, receiver, key, signed)
        return [Note("blamed", f"group {self.grouping.group}: {who}: {why}") for who, why in verdicts]

    def _on_consent(self, name: str, data: bytes) -> list[Effect]:
        current = self._current()
        member = current.member(name)
        assert member is not None
        if name in self._consents:
            raise StaleError(f"{name!r} has signed already", cause="repeated")
        if read_consent(data, member, roster=current, opened=self.opened, fleet=self._trust.fleet) != (
            self._survivors_digest
        ):
            raise RefusedError(f"{name!r} signed another set than was published", cause="survivors")
        if self.entry:  # its draw can be in the seed no more, which is a digest of what the certificate opens
            raise StaleError(
                f"the consent of {name!r} comes after the group's part in the seed was fixed", cause="stage"
            )
        self._consents[name] = data
        return []

    def _on_report(self, name: str, data: bytes) -> list[Effect]:
        assert self.attestation is not None
        if self.attested:
            raise StaleError(f"the report of {name!r} comes late", cause="stage")
        self.attestation.take(name, read(Attestation, envelope.parse(data).payload), self._sealing)
        return []

    def _on_assent(self, name: str, data: bytes) -> list[Effect]:
        current = self._current()
        member = current.member(name)
        assert member is not None
        if name in self._assents:
            raise StaleError(f"{name!r} has signed already", cause="repeated")
        signed = attest_stage.read_assent(data, member, roster=current, opened=self.opened, fleet=self._trust.fleet)
        if signed != self._accepted_digest:
            raise RefusedError(f"{name!r} signed another set than was published", cause="accepted")
        self._assents[name] = data
        return []

    def _on_reveal(self, name: str, data: bytes) -> list[Effect]:
        if name in self._revealed:
            raise StaleError(f"{name!r} has revealed already", cause="repeated")
        secret, public = self._sealing
        sealed = read(Reveal, envelope.parse(data).payload).sealed
        shares = read(RevealedShares, open_sealed(sealed, public, secret))
        entries = {dealer: held for dealer, (_, held) in self._shares.items()}
        self._revealed[name] = check_reveal(
            shares,
            name,
            roster=self._current(),
            dealt=self.dealt,
            survivors=self.summed,
            entries=entries,
            excused=self.complaints.excused(name),
        )
        return []

    def _prove(self, dealer: str, receiver: str, key: bytes, answer: bytes) -> None:
        """Keep the proof of what an answer has shown."""
        if (dealer, receiver) in self.complaints.bad:
            self.proofs.setdefault(dealer, self.prover().of_share(dealer, receiver, answer))
        else:
            complaint = self._complained[dealer, receiver]
            proof = self.prover().of_complaint(receiver, dealer, complaint, self.dealt, key)
            self.proofs.setdefault(receiver, proof)

    def _deliver(self, device: str, kind: str, body: Payload) -> Deliver:
        context = self.opened.context(self._trust.fleet, kind, AGGREGATOR, self._current().digest, recipient=device)
        return Deliver(device, kind, envelope.sign(write(body), context, self._key))

    def _publish(self, kind: str, body: Payload, bound: bytes) -> Publish:
        context = self.opened.context(self._trust.fleet, kind, AGGREGATOR, bound)
        return Publish(kind, self.grouping.group, envelope.sign(write(body), context, self._key))
