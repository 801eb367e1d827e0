"""The aggregator's side of one group in one round.

Bytes in, effects out, time passed in. What members say is checked and kept by ``GroupInbox``; here stands when the
group leaves a stage and what its members are told. It ends with a sum over exactly the set that its members signed for,
or aborted with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from covey_protocol import attest_stage, envelope, roster, topics
from covey_protocol.effects import Effect, Note
from covey_protocol.errors import RefusedError, StateError
from covey_protocol.group_attestation import GroupAttestation
from covey_protocol.group_inbox import GroupInbox
from covey_protocol.messages import (
    REASON_MAX,
    Abort,
    Accept,
    Attest,
    Consent,
    Dealt,
    Roster,
    Survivors,
    Unmask,
)
from covey_protocol.payload import read, write
from covey_protocol.prg import Ring
from covey_protocol.roster import CheckedRoster, Member
from covey_protocol.round_table import GroupStage
from covey_protocol.unmasking import restore, unmask_sum

_LAST_JOINS = 5.0  # seconds, for joins that are on their way when nobody else will join


class GroupRound(GroupInbox):
    """One group in one round; arguments as ``GroupInbox``."""

    def receive(self, kind: str, name: str, data: bytes, now: float) -> list[Effect]:
        """Take a member's message, and go on if it was the last one waited for; errors as ``take``."""
        return [*self.take(kind, name, data), *self._go_on(now)]

    def vector(self, name: str, blob: bytes, now: float) -> list[Effect]:
        """Take a masked vector, and go on if it was the last one waited for; errors as ``take_vector``."""
        self.take_vector(name, blob)
        return self._go_on(now)

    def tick(self, now: float) -> list[Effect]:
        """Go on without those who have not answered in time, or abort when they are too many."""
        if self.finished:
            return []
        if now >= self.deadline:
            return self._advance(now, late=True)
        self._passed_over = {name for name, until in self._lost.items() if now >= until}
        return self._go_on(now) if self._passed_over else []

    def unmask(self, vector: Callable[[str], Ring] | None = None) -> tuple[Ring, int]:
        """Return the sum over the accepted in the ring, shape (d + 4,), and their number. Heavy: call it in a thread.

        The masks come off in place, so this can be done once.

        Args:
            vector: Returns a member's masked vector; needed when somebody in U was not accepted.

        Raises:
            RefusedError: A restored secret is not the one its owner published, or the sketch of an accepted member was
                false; the message names who it was.
            StateError: There is no sum to be made, or it was made already.
        """
        masked, self._total = self._total, None
        if self.stage is not GroupStage.SUMMING or self.roster is None or masked is None:
            raise StateError(f"group {self.grouping.group} has no sum to unmask in stage {self.stage}")
        revealed, prover = self._shares_held(), self.prover()
        try:
            restored = restore(
                roster=self.roster,
                dealt=self.dealt,
                summed=self.summed,
                revealed=revealed,
                opened=self.opened,
                fleet=self._trust.fleet,
            )
        except RefusedError as error:
            for name in error.culprits:
                proof = prover.of_secret(name, name in self.summed, revealed)
                if proof is not None:
                    self.proofs.setdefault(name, proof)
            raise
        if self.attestation is not None:
            found = self.attestation.liars(restored)
            self.liars = {name: lied.words for name, lied in found.items()}
            for name, lied in found.items():
                self.proofs.setdefault(name, prover.of_lie(name, lied, self.attestation, restored))
            caught = {name: f"{name!r} {self.liars[name]}" for name in self.summed if name in self.liars}
            if caught:
                raise RefusedError("; ".join(caught.values()), cause="false-sketch", culprits=caught)
        for name in set(self.survivors) - set(self.summed):
            if vector is None:
                raise StateError(f"the vector of {name!r}, who was not accepted, is needed")
            masked -= vector(name)
        return unmask_sum(masked, restored, self.roster), len(self.summed)

    def close(self) -> None:
        """Note that the sum was taken over; vectors and shares are forgotten."""
        self._machine.advance(topics.CLOSE)
        self._forget()

    def abort(self, cause: str, reason: str, causers: Iterable[str] = ()) -> list[Effect]:
        """End without a sum and say why; ``causers`` are those at fault, else it is who did not answer."""
        # Whoever fell out in an earlier stage has made this one too small as well.
        self.causers = frozenset(causers) or frozenset(self._members() - self._answered())
        self._machine.advance(topics.ABORT)
        self._forget()
        self.aborted = Abort(cause=cause, reason=reason[:REASON_MAX])
        note = Note(cause, f"group {self.grouping.group} aborted: {reason}")
        return [note, self._publish(topics.ABORT, self.aborted, self.grouping.digest())]

    def _forget(self) -> None:
        self._total, self._shares, self._revealed = None, {}, {}

    def _go_on(self, now: float) -> list[Effect]:
        """Leave the stage as soon as everybody, or a quorum where that is enough, has answered."""
        quorum = self.roster.t if self.roster else 0
        if self.finished:
            return []
        hopeless = self.complaints.unrestorable(self.dealt, quorum, proven=True)
        if hopeless:
            return self.abort("bad-shares", "; ".join(hopeless.values()), hopeless)
        if self.stage is GroupStage.MASKING:
            # An answer that is on its way may still save the round.
            enough = not self.awaited() and not self.complaints.unrestorable(self.dealt, quorum, proven=False)
        elif self.stage is GroupStage.SIGNING and self.opened.manifest.sketch:
            # Whose draw is left out of the seed will not attest, so wait for everybody; then for the other groups.
            enough = not self.entry and not self.awaited()
        elif self.stage is GroupStage.SIGNING:
            enough = len(self._consents) >= quorum or not self.awaited()
        elif self.stage is GroupStage.ATTESTING:
            enough = not self.attested and not self.awaited()
        elif self.stage is GroupStage.ACCEPTING:
            enough = len(self._assents) >= quorum or not self.awaited()
        elif self.stage is GroupStage.UNMASKING:
            enough = (len(self._revealed) >= quorum and self._restorable()) or not self.awaited()
        else:
            enough = not self.awaited()
        return self._advance(now, late=False) if enough else []

    def _advance(self, now: float, late: bool) -> list[Effect]:
        windows = self.opened.manifest.windows
        effects: list[Effect] = []
        if late and self.awaited():
            missing = ", ".join(sorted(self.awaited()))
            effects.append(Note("missing", f"group {self.grouping.group}, {self.stage}: no answer from {missing}"))
        elif self._passed_over & self._silent() and not self.awaited():
            lost = ", ".join(sorted(self._passed_over & self._silent()))
            effects.append(Note("lost", f"group {self.grouping.group}, {self.stage}: not waiting for {lost}"))
        stages = {
            GroupStage.JOINING: (windows.shares, self._publish_roster),
            GroupStage.SHARING: (windows.masked, self._publish_dealt),
            GroupStage.MASKING: (windows.survivors, self._publish_survivors),
            GroupStage.SIGNING: (windows.unmask, self._publish_certificate),
            GroupStage.ATTESTING: (math.inf, self._reported),
            GroupStage.ACCEPTING: (windows.unmask, self._publish_certificate),
            GroupStage.UNMASKING: (math.inf, self._finish),
        }
        if self.stage is GroupStage.SIGNING and self.opened.manifest.sketch:
            stages[GroupStage.SIGNING] = (math.inf, self._fix_entry)
        window, go = stages[self.stage]
        self.deadline = now + window
        return effects + go()

    def _reported(self) -> list[Effect]:
        """Take no more reports; the group goes on when ``accept`` is called."""
        self.attested = True
        return []

    def new_list(self, now: float) -> list[Effect]:
        """Hear that the operator's revocation list is a newer one, and go on without members whom it names.

        Before the roster their joins are dropped; behind it they count like members that fell silent, so a vector that
        has arrived stays in the sum. Joins are waited for no longer than those on their way need: whoever has seen the
        newer list refuses this round's manifest.
        """
        if self.stage is GroupStage.JOINING:
            self.deadline = min(self.deadline, now + _LAST_JOINS)
        gone = [] if self.finished else self._drop_revoked()
        if not gone:
            return []
        note = Note("revoked", f"group {self.grouping.group} goes on without {', '.join(gone)}, revoked meanwhile")
        return [note, *self._go_on(now)]

    def _publish_roster(self) -> list[Effect]:
        limits = self.opened.manifest
        names = [name for name, _ in self.grouping.members if name in self._joins][: limits.n_max]
        n = len(names)
        if n < max(limits.n_min, self._trust.policy.roster_min, limits.a_min):
            return self.abort("too-few-joined", f"{n} of {len(self.grouping.members)} members joined")
        t, a_min = roster.required(n, self._trust.policy, limits.a_min)
        body = Roster(
            manifest=self.opened.digest, joins=[(name, self._joins[name][0]) for name in names], t=t, a_min=a_min
        )
        members = tuple(
            Member(place, name, member.key, member.token, member.join, member.former)
            for place, (name, (_, member)) in enumerate((name, self._joins[name]) for name in names)
        )
        self._roster_body = write(body)
        self.roster = CheckedRoster(members, roster.roster_digest(self._roster_body), t, a_min)
        self._machine.advance(topics.ROSTER)
        return [self._publish(topics.ROSTER, body, b"")]

    def _publish_dealt(self) -> list[Effect]:
        current = self._current()
        dealers = [member.name for member in current.members if member.name in self._shares]
        needed = max(current.t, current.a_min)
        if len(dealers) < needed:
            return self.abort("too-few-dealt", f"{len(dealers)} of {len(current)} members dealt, {needed} are needed")
        self.dealt = tuple(dealers)
        dealt = [(name, self._shares[name][0]) for name in dealers]
        self._dealt_digest = roster.dealt_digest(dealt)
        self._machine.advance(topics.DEALT)
        effects: list[Effect] = []
        for receiver in dealers:
            column = [(name, self._shares[name][1][receiver].array()) for name in dealers if name != receiver]
            effects.append(self._deliver(receiver, topics.DEALT, Dealt(dealt=dealt, entries=column)))
        return effects

    def _publish_survivors(self) -> list[Effect]:
        current = self._current()
        hopeless = self.complaints.unrestorable(self.dealt, current.t, proven=False)
        if hopeless:
            return self.abort("bad-shares", "; ".join(hopeless.values()), hopeless)
        survivors = [name for name in self.dealt if name in self._arrived]
        if len(survivors) < current.a_min:
            return self.abort("too-few-survivors", f"{len(survivors)} masked vectors arrived, a_min is {current.a_min}")
        self.survivors = self.summed = tuple(survivors)
        vectors = [(name, self._masked[name][1]) for name in survivors]
        self._survivors_digest = roster.survivors_digest(self._dealt_digest, vectors)
        self._machine.advance(topics.SURVIVORS)
        body = Survivors(survivors=[(name, self._masked[name][0]) for name in survivors])
        return [self._publish(topics.SURVIVORS, body, current.digest)]

    def _fix_entry(self) -> list[Effect]:
        """Fix the group's part in the shard's seed; it goes on when ``attest`` is called."""
        current = self._current()
        signers = [member.name for member in current.members if member.name in self._consents]
        if len(signers) < current.t:
            return self.abort("too-few-signed", f"{len(signers)} members signed the survivors, t is {current.t}")
        draws = [(name, read(Consent, envelope.parse(self._consents[name]).payload).draw) for name in signers]
        self.entry = attest_stage.group_entry(self.grouping.group, self._survivors_digest, draws)
        return []

    def attest(self, entries: Sequence[tuple[str, bytes]], watched: bool, now: float) -> list[Effect]:
        """Publish what fixes the shard's seed; wait for reports, or accept all of U where the lot spares the group.

        Args:
            entries: Group and ``entry`` of every group of the shard whose vectors are fixed, by group.
            watched: Whether the group attests however the lot falls.
            now: Seconds on the caller's monotonic clock.

        Raises:
            StateError: The group's own part is not fixed.
        """
        if self.stage is not GroupStage.SIGNING or not self.entry:
            raise StateError(f"group {self.grouping.group} has nothing to attest in stage {self.stage}")
        current, seed = self._current(), attest_stage.shard_seed(entries)
        attesting = watched or attest_stage.drawn(seed, self.opened.manifest.lot)
        certificate = [(m.name, self._consents[m.name]) for m in current.members if m.name in self._consents]
        self.attestation = GroupAttestation(
            seed, attesting, self.opened, self._trust.fleet, current, self.dealt, self.survivors
        )
        self._machine.advance(topics.ATTEST)
        self.deadline = now + self.opened.manifest.windows.attest
        body = Attest(certificate=certificate, entries=list(entries), watched=watched)
        effects: list[Effect] = [self._publish(topics.ATTEST, body, current.digest)]
        return effects if attesting else effects + self.accept(self.survivors, now)

    def accept(self, accepted: Sequence[str], now: float) -> list[Effect]:
        """Publish the set A, whose members will be summed; the others' updates stay hidden like a drop-out's.

        Args:
            accepted: Some of its ``candidates``.
            now: Seconds on the caller's monotonic clock.

        Raises:
            StateError: The group does not wait for it.
        """
        current, attestation = self._current(), self.attestation
        if self.stage is not GroupStage.ATTESTING or attestation is None:
            raise StateError(f"group {self.grouping.group} accepts nobody in stage {self.stage}")
        names = [name for name in self.survivors if name in accepted]
        heads = [(name, attestation.heads[name]) for name in names if name in attestation.heads]
        if attestation.attesting and len(heads) < len(names):
            raise StateError(f"group {self.grouping.group} would accept members who have not attested")
        if len(names) < current.a_min:
            reason = f"{len(names)} members are accepted, a_min is {current.a_min}"
            return self.abort("too-few-accepted", reason, set(self.survivors) - set(names))
        self.summed = tuple(names)
        self._accepted_digest = attest_stage.accepted_digest(self._survivors_digest, attestation.seed, names)
        self._machine.advance(topics.ACCEPT)
        self.deadline = now + self.opened.manifest.windows.accept
        return [self._publish(topics.ACCEPT, Accept(accepted=names, heads=heads), current.digest)]

    def _publish_certificate(self) -> list[Effect]:
        current = self._current()
        pool, what = (self._assents, "accepted") if self.opened.manifest.sketch else (self._consents, "survivors")
        signers = [member.name for member in current.members if member.name in pool]
        if len(signers) < current.t:
            return self.abort("too-few-signed", f"{len(signers)} members signed the {what}, t is {current.t}")
        self._machine.advance(topics.UNMASK)
        body = Unmask(certificate=[(name, pool[name]) for name in signers[: current.t]])
        return [self._publish(topics.UNMASK, body, current.digest)]

    def _restorable(self) -> bool:
        """Whether every secret that is needed has t shares."""
        needed = self._current().t
        for name in self.dealt:
            kind = "self_mask" if name in self.summed else "masking"
            if sum(name in getattr(held, kind) for held in self._shares_held().values()) < needed:
                return False
        return True

    def _finish(self) -> list[Effect]:
        quorum = self._current().t
        if len(self._revealed) < quorum or not self._restorable():
            hopeless = self.complaints.unrestorable(self.dealt, quorum, proven=False)
            if hopeless:
                return self.abort("bad-shares", "; ".join(hopeless.values()), hopeless)
            return self.abort("too-few-revealed", f"{len(self._revealed)} members revealed shares, t is {quorum}")
        self.revealers = frozenset(self._revealed)
        self._machine.advance("sum")
        return []
