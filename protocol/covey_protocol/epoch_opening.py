"""The aggregator's part in opening an epoch: publish the list, gather commitments, gather openings, publish groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from nacl.signing import SigningKey

from covey_protocol import envelope, epochs, topics
from covey_protocol.effects import Effect, Note, Publish
from covey_protocol.envelope import Context
from covey_protocol.epochs import Grouping
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.machine import Machine
from covey_protocol.messages import Commitment, Commitments, EpochList, Groups, ListedMember, Opening
from covey_protocol.payload import read, write


class Stage(StrEnum):
    """Where an opening stands."""

    LISTING = "listing"
    COMMITTING = "committing"
    OPENING = "opening"
    GROUPED = "grouped"
    FAILED = "failed"


TABLE = {
    Stage.LISTING: {"list": Stage.COMMITTING, "too-few": Stage.FAILED},
    Stage.COMMITTING: {"commitments": Stage.OPENING, "too-few": Stage.FAILED},
    Stage.OPENING: {"groups": Stage.GROUPED, "restart": Stage.LISTING},
    Stage.GROUPED: {},
    Stage.FAILED: {},
}


class ShardOpening:
    """One shard's opening; a restart keeps the epoch's number and counts attempts.

    Args:
        fleet: Fleet name.
        key: The aggregator's signing key.
        epoch: The epoch to open; larger than any before.
        shard, shard_bits: Which shard.
        group_size: Members a group should have.
        members: Device keys by name, and who of them is on probation.
        list_min: The policy's floor for the list.
        window: Seconds that commitments, and again openings, may take.
        attempt: Number of the first attempt.

    Attributes:
        deadline: When the present stage ends without those who are missing; the caller may put it off.
    """

    def __init__(
        self,
        *,
        fleet: str,
        key: SigningKey,
        epoch: int,
        shard: int,
        shard_bits: int,
        group_size: int,
        members: Mapping[str, bytes],
        probation: Iterable[str],
        list_min: int,
        window: float,
        attempt: int = 1,
    ) -> None:
        self._fleet, self._key, self.epoch, self.shard = fleet, key, epoch, shard
        self._bits, self._size, self._floor, self._window = shard_bits, group_size, list_min, window
        self._members = dict(members)
        self._probation = frozenset(probation)
        self._machine = Machine(TABLE, Stage.LISTING, f"opening of epoch {epoch}, shard {shard}")
        self.attempt = attempt - 1
        self.deadline = 0.0
        self._list: EpochList | None = None
        self._list_digest = b""
        self._commitments: dict[str, bytes] = {}
        self._openings: dict[str, bytes] = {}
        self.groups: list[Grouping] = []

    @property
    def label(self) -> str:
        """The shard's name in topics and group identifiers."""
        return epochs.shard_label(self.shard, self._bits)

    @property
    def stage(self) -> Stage:
        """Where the opening stands."""
        return self._machine.state

    @property
    def finished(self) -> bool:
        """Whether groups stand or nothing can come of it."""
        return self.stage in (Stage.GROUPED, Stage.FAILED)

    def awaited(self) -> set[str]:
        """Return the devices whose answer is missing."""
        if self.stage is Stage.COMMITTING:
            return set(self._members) - set(self._commitments)
        if self.stage is Stage.OPENING:
            return set(self._commitments) - set(self._openings)
        return set()

    def start(self, now: float) -> list[Effect]:
        """Publish the list, or fail when there are too few for one."""
        if len(self._members) < self._floor:
            self._machine.advance("too-few")
            return [Note("epoch-failed", f"{len(self._members)} devices are too few for a list of {self._floor}")]
        self.attempt += 1
        members = [
            ListedMember(device=name, key=key, probation=name in self._probation)
            for name, key in sorted(self._members.items())
        ]
        self._list = EpochList(shard=self.shard, shard_bits=self._bits, group_size=self._size, members=members)
        self._list_digest = epochs.list_digest(self._list)
        self._commitments, self._openings = {}, {}
        self._machine.advance("list")
        self.deadline = now + self._window
        return [self._publish(topics.EPOCH, write(self._list), b"")]

    def receive(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        """Take a COMMITMENT or OPENING.

        Raises:
            PeerError: It breaks a rule or comes late; nothing has changed.
        """
        if device not in self._members:
            raise StaleError(f"{kind} from {device!r}, whom the epoch's list does not name", cause="not-listed")
        if kind == topics.COMMITMENT and self.stage is Stage.COMMITTING:
            if device in self._commitments:
                raise StaleError(f"{device!r} has committed already", cause="repeated")
            body = read(Commitment, self._open(kind, device, data, self._list_digest))
            self._commitments[device] = body.commitment
        elif kind == topics.OPENING and self.stage is Stage.OPENING and device in self._commitments:
            if device in self._openings:
                raise StaleError(f"{device!r} has opened already", cause="repeated")
            value = read(Opening, self._open(kind, device, data, self._commitments_digest())).value
            if epochs.commitment(value, device) != self._commitments[device]:
                raise RefusedError(f"the opening of {device!r} does not match its commitment", cause="openings")
            self._openings[device] = value
        else:
            raise StaleError(f"{kind} from {device!r} has no place in stage {self.stage}", cause="stage")
        return [] if self.awaited() else self._next(now)

    def tick(self, now: float) -> list[Effect]:
        """Go on without those who have not answered in time."""
        return self._next(now) if not self.finished and now >= self.deadline else []

    def _next(self, now: float) -> list[Effect]:
        return self._close_commitments(now) if self.stage is Stage.COMMITTING else self._close_openings(now)

    def _close_commitments(self, now: float) -> list[Effect]:
        if len(self._commitments) < self._floor:
            self._machine.advance("too-few")
            return [Note("epoch-failed", f"only {len(self._commitments)} of {len(self._members)} devices committed")]
        self._machine.advance("commitments")
        self.deadline = now + self._window
        body = Commitments(commitments=sorted(self._commitments.items()))
        return [self._publish(topics.COMMITMENTS, write(body), self._list_digest)]

    def _close_openings(self, now: float) -> list[Effect]:
        assert self._list is not None
        unopened = set(self._commitments) - set(self._openings)
        if epochs.too_many_unopened(len(self._commitments), len(self._openings)):
            self._machine.advance("restart")
            self._members = {name: key for name, key in self._members.items() if name in self._openings}
            note = Note("epoch-restart", f"{len(unopened)} commitments stayed closed: {', '.join(sorted(unopened))}")
            return [note, *self.start(now)]
        groups = epochs.groups(self._list.members, self._openings, self._list_digest, self._size)
        self._machine.advance("groups")
        self.groups = [
            Grouping(
                self.epoch,
                epochs.group_id(self.epoch, self.label, index),
                tuple((name, self._members[name]) for name in names),
            )
            for index, names in enumerate(groups)
        ]
        body = Groups(openings=sorted(self._openings.items()), groups=groups)
        return [self._publish(topics.GROUPS, write(body), self._commitments_digest())]

    def _commitments_digest(self) -> bytes:
        return epochs.commitments_digest(self._list_digest, self._commitments)

    def _open(self, kind: str, device: str, data: bytes, roster: bytes) -> bytes:
        message = envelope.parse(data)
        if (message.round, message.attempt) != (self.epoch, self.attempt):
            raise StaleError(f"{kind} of {device!r} is for epoch {message.round}.{message.attempt}", cause="stage")
        return envelope.verify(message, self._context(kind, device, roster), self._members[device])

    def _context(self, kind: str, sender: str, roster: bytes) -> Context:
        return Context(
            fleet=self._fleet, kind=kind, sender=sender, round=self.epoch, attempt=self.attempt, roster=roster
        )

    def _publish(self, kind: str, body: bytes, roster: bytes) -> Publish:
        data = envelope.sign(body, self._context(kind, AGGREGATOR, roster), self._key)
        return Publish(kind, self.label, data)
