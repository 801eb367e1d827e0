"""The device's part in opening an epoch: commit, open, check.

The device trusts the aggregator for nothing but delivery: its own commitment has to be in the published list, all
openings have to match their commitments, and the groups have to be the ones it computes itself.

An opening is remembered until its groups are known, with e_i, which is published in it anyway: a device that is started
again in the middle would otherwise be in no group, or in one that it could not check, for the whole epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec
from nacl.signing import SigningKey

from covey_protocol import cbor, envelope, epochs, topics
from covey_protocol.effects import Effect, Remember, Send
from covey_protocol.envelope import Context
from covey_protocol.epochs import Grouping
from covey_protocol.errors import LocalError, MalformedError, RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.machine import Machine
from covey_protocol.messages import Commitment, Commitments, EpochList, Groups, Opening
from covey_protocol.payload import read, write
from covey_protocol.roster import Trust


class Stage(StrEnum):
    """Where a device stands in an opening."""

    WAITING = "waiting"
    COMMITTED = "committed"
    OPENED = "opened"
    GROUPED = "grouped"


TABLE = {
    Stage.WAITING: {topics.EPOCH: Stage.COMMITTED},
    Stage.COMMITTED: {topics.EPOCH: Stage.COMMITTED, topics.COMMITMENTS: Stage.OPENED},
    Stage.OPENED: {topics.EPOCH: Stage.COMMITTED, topics.GROUPS: Stage.GROUPED},
    Stage.GROUPED: {topics.EPOCH: Stage.COMMITTED},
}

EPOCH_KEY = "epoch"
OPENING_KEY = "opening"
GROUPING_KEY = "grouping"
_OPENING_MAX = 1 << 20  # a list of a thousand members with their commitments takes a seventh of that


class EpochMember:
    """One device through all of its epochs.

    Args:
        trust: What enrolment gave it.
        device: This device's name.
        key: Its signing key.
        entropy: Source of uniform bytes.
        remembered: What earlier ``Remember`` effects stored, by key.
    """

    def __init__(
        self,
        *,
        trust: Trust,
        device: str,
        key: SigningKey,
        entropy: Callable[[int], bytes],
        remembered: dict[str, bytes] | None = None,
    ) -> None:
        stored = remembered or {}
        self._trust, self._device, self._key, self._entropy = trust, device, key, entropy
        self._machine = Machine(TABLE, Stage.WAITING, f"epoch of {device}")
        self._mark = (0, 0)  # newest (epoch, attempt) that this device has committed in
        if EPOCH_KEY in stored:
            epoch, attempt = stored[EPOCH_KEY].decode().split(".")
            self._mark = (int(epoch), int(attempt))
        self.grouping = Grouping.decode(stored[GROUPING_KEY]) if GROUPING_KEY in stored else None
        self._list: EpochList | None = None
        self._list_digest = b""
        self._value = b""
        self._commitments: dict[str, bytes] = {}
        if stored.get(OPENING_KEY):
            self._resume(stored[OPENING_KEY])

    @property
    def stage(self) -> Stage:
        """Where the present opening stands."""
        return self._machine.state

    def receive(self, kind: str, data: bytes) -> list[Effect]:
        """Take an EPOCH, COMMITMENTS or GROUPS message.

        Raises:
            PeerError: It breaks a rule; nothing has changed.
        """
        self._machine.require(kind)
        handler = {
            topics.EPOCH: self._on_list,
            topics.COMMITMENTS: self._on_commitments,
            topics.GROUPS: self._on_groups,
        }[kind]
        effects = handler(data)
        self._machine.advance(kind)
        return effects

    def _open(self, data: bytes, kind: str, roster: bytes) -> bytes:
        message = envelope.parse(data)
        if kind != topics.EPOCH and (message.round, message.attempt) != self._mark:
            raise StaleError(f"{kind} for epoch {message.round}.{message.attempt}, not {self._mark}", cause="stage")
        context = self._context(kind, AGGREGATOR, roster, message.round, message.attempt)
        return envelope.verify(message, context, self._trust.aggregator_key)

    def _opening(self) -> Remember:
        """Return the mark by which an opening can be gone on with after a restart."""
        assert self._list is not None
        commitments = [list(pair) for pair in sorted(self._commitments.items())]
        return Remember(OPENING_KEY, cbor.encode([list(self._mark), write(self._list), self._value, commitments]))

    def _resume(self, data: bytes) -> None:
        """Go on with an opening of before a restart.

        Raises:
            LocalError: The mark is damaged.
        """
        form = tuple[tuple[int, int], bytes, bytes, list[tuple[str, bytes]]]
        try:
            mark, members, value, commitments = msgspec.convert(
                cbor.decode(data, max_bytes=_OPENING_MAX), form, builtin_types=(bytes,)
            )
            self._list = read(EpochList, members)
        except (MalformedError, msgspec.ValidationError) as error:
            raise LocalError(f"the stored opening is damaged: {error}", cause="store") from error
        if mark != self._mark:
            self._list = None
            return
        self._list_digest, self._value = epochs.list_digest(self._list), value
        self._commitments = dict(commitments)
        stage = Stage.OPENED if commitments else Stage.COMMITTED
        self._machine = Machine(TABLE, stage, f"epoch of {self._device}")

    def _context(self, kind: str, sender: str, roster: bytes, epoch: int, attempt: int) -> Context:
        return Context(fleet=self._trust.fleet, kind=kind, sender=sender, round=epoch, attempt=attempt, roster=roster)

    def _on_list(self, data: bytes) -> list[Effect]:
        message = envelope.parse(data)
        mark = (message.round, message.attempt)
        if mark <= self._mark:
            raise StaleError(f"epoch {mark} is not newer than {self._mark}", cause="replayed")
        members = read(EpochList, self._open(data, topics.EPOCH, b""))
        names = [member.device for member in members.members]
        if names != sorted(set(names)):
            raise RefusedError("the epoch's list is not in the order of its names, or repeats one", cause="list")
        if len(names) < self._trust.policy.list_min:
            raise RefusedError(
                f"the epoch's list has {len(names)} members, the policy asks for {self._trust.policy.list_min}",
                cause="list",
            )
        if any(epochs.shard_of(name, members.shard_bits) != members.shard for name in names):
            raise RefusedError("the epoch's list holds devices of another shard", cause="list")
        for member in members.members:
            self._trust.check_member(member.device, member.key)
        mine = [member for member in members.members if member.device == self._device]
        if not mine:
            raise StaleError("the epoch's list does not name this device", cause="not-listed")
        if mine[0].key != bytes(self._key.verify_key):
            raise RefusedError("the epoch's list gives this device another key", cause="list")
        self._list, self._list_digest = members, epochs.list_digest(members)
        self._value = self._entropy(32)
        self._mark, self._commitments = mark, {}
        body = write(Commitment(commitment=epochs.commitment(self._value, self._device)))
        context = self._context(topics.COMMITMENT, self._device, self._list_digest, *mark)
        return [
            Remember(EPOCH_KEY, f"{mark[0]}.{mark[1]}".encode()),
            self._opening(),
            Send(topics.COMMITMENT, envelope.sign(body, context, self._key)),
        ]

    def _on_commitments(self, data: bytes) -> list[Effect]:
        assert self._list is not None
        message = read(Commitments, self._open(data, topics.COMMITMENTS, self._list_digest))
        commitments = dict(message.commitments)
        if len(commitments) != len(message.commitments):
            raise RefusedError("a device has two commitments", cause="commitments")
        if not set(commitments) <= {member.device for member in self._list.members}:
            raise RefusedError("a commitment of a device that the list does not name", cause="commitments")
        if commitments.get(self._device) != epochs.commitment(self._value, self._device):
            raise RefusedError("this device's commitment is missing or was changed", cause="commitments")
        if len(commitments) < self._trust.policy.list_min:
            raise RefusedError(f"only {len(commitments)} devices committed", cause="commitments")
        self._commitments = commitments
        digest = epochs.commitments_digest(self._list_digest, commitments)
        context = self._context(topics.OPENING, self._device, digest, *self._mark)
        opening = envelope.sign(write(Opening(value=self._value)), context, self._key)
        return [self._opening(), Send(topics.OPENING, opening)]

    def _on_groups(self, data: bytes) -> list[Effect]:
        assert self._list is not None
        digest = epochs.commitments_digest(self._list_digest, self._commitments)
        message = read(Groups, self._open(data, topics.GROUPS, digest))
        openings = dict(message.openings)
        if len(openings) != len(message.openings) or not set(openings) <= set(self._commitments):
            raise RefusedError("an opening without a commitment, or twice", cause="openings")
        for name, value in openings.items():
            if epochs.commitment(value, name) != self._commitments[name]:
                raise RefusedError(f"the opening of {name!r} does not match its commitment", cause="openings")
        if openings.get(self._device) != self._value:
            raise RefusedError("this device's opening was left out", cause="openings")
        if epochs.too_many_unopened(len(self._commitments), len(openings)):
            raise RefusedError(
                f"{len(self._commitments) - len(openings)} of {len(self._commitments)} commitments stayed closed",
                cause="openings",
            )
        members = self._list
        expected = epochs.groups(members.members, openings, self._list_digest, members.group_size)
        if message.groups != expected:
            raise RefusedError("the groups are not the ones that follow from list and openings", cause="groups")
        self.grouping = self._place(expected, members)
        stored = self.grouping.encode() if self.grouping else b""
        return [Remember(GROUPING_KEY, stored), Remember(OPENING_KEY, b"")]

    def _place(self, groups: list[list[str]], members: EpochList) -> Grouping | None:
        """Return this device's group; a newcomer for whom there is no place yet has none."""
        keys = {member.device: member.key for member in members.members}
        label = epochs.shard_label(members.shard, members.shard_bits)
        for index, group in enumerate(groups):
            if self._device in group:
                name = epochs.group_id(self._mark[0], label, index)
                return Grouping(self._mark[0], name, tuple((device, keys[device]) for device in group))
        return None
