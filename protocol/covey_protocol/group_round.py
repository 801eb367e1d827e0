"""The aggregator's side of one group in one round.

Bytes in, effects out, time passed in. What members say is checked and kept by ``GroupInbox``; here stands when the
group leaves a stage and what its members are told. It ends with a sum over exactly the survivors that its members
signed for, or aborted with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from covey_protocol import roster, topics
from covey_protocol.effects import Effect, Note
from covey_protocol.errors import StateError
from covey_protocol.group_inbox import GroupInbox
from covey_protocol.messages import (
    REASON_MAX,
    Abort,
    Dealt,
    Roster,
    Survivors,
    Unmask,
)
from covey_protocol.payload import write
from covey_protocol.prg import Ring
from covey_protocol.roster import CheckedRoster, Member
from covey_protocol.round_table import GroupStage
from covey_protocol.unmasking import unmask_sum

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

    def unmask(self) -> tuple[Ring, int]:
        """Return the sum over the survivors in the ring, shape (d + 4,), and their number. Heavy: call it in a thread.

        The masks come off in place, so this can be done once.

        Raises:
            RefusedError: A restored secret is not the one its owner published; the message names the owner.
            StateError: There is no sum to be made, or it was made already.
        """
        masked, self._total = self._total, None
        if self.stage is not GroupStage.SUMMING or self.roster is None or masked is None:
            raise StateError(f"group {self.grouping.group} has no sum to unmask in stage {self.stage}")
        total = unmask_sum(
            masked,
            roster=self.roster,
            dealt=self.dealt,
            survivors=self.survivors,
            revealed=self._shares_held(),
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        return total, len(self.survivors)

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
        elif self.stage is GroupStage.SIGNING:
            enough = len(self._consents) >= quorum or not self.awaited()
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
        match self.stage:
            case GroupStage.JOINING:
                self.deadline = now + windows.shares
                return effects + self._publish_roster()
            case GroupStage.SHARING:
                self.deadline = now + windows.masked
                return effects + self._publish_dealt()
            case GroupStage.MASKING:
                self.deadline = now + windows.survivors
                return effects + self._publish_survivors()
            case GroupStage.SIGNING:
                self.deadline = now + windows.unmask
                return effects + self._publish_certificate()
            case _:
                return effects + self._finish()

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
        if n < max(limits.n_min, self._trust.policy.roster_min):
            return self.abort("too-few-joined", f"{n} of {len(self.grouping.members)} members joined")
        t, a_min = roster.required(n, self._trust.policy)
        body = Roster(
            manifest=self.opened.digest, joins=[(name, self._joins[name][0]) for name in names], t=t, a_min=a_min
        )
        members = tuple(
            Member(place, name, member.key, member.token, member.join)
            for place, (name, (_, member)) in enumerate((name, self._joins[name]) for name in names)
        )
        self.roster = CheckedRoster(members, roster.roster_digest(write(body)), t, a_min)
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
        self.survivors = tuple(survivors)
        vectors = [(name, self._masked[name][1]) for name in survivors]
        self._survivors_digest = roster.survivors_digest(self._dealt_digest, vectors)
        self._machine.advance(topics.SURVIVORS)
        body = Survivors(survivors=[(name, self._masked[name][0]) for name in survivors])
        return [self._publish(topics.SURVIVORS, body, current.digest)]

    def _publish_certificate(self) -> list[Effect]:
        current = self._current()
        signers = [member.name for member in current.members if member.name in self._consents]
        if len(signers) < current.t:
            return self.abort("too-few-signed", f"{len(signers)} members signed the survivors, t is {current.t}")
        self._machine.advance(topics.UNMASK)
        body = Unmask(certificate=[(name, self._consents[name]) for name in signers[: current.t]])
        return [self._publish(topics.UNMASK, body, current.digest)]

    def _restorable(self) -> bool:
        """Whether every secret that is needed has t shares."""
        needed = self._current().t
        for name in self.dealt:
            kind = "self_mask" if name in self.survivors else "masking"
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
