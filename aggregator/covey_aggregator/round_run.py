"""One round of one task over all groups: messages to the right group, times of the stages, sums as they come.

Every input goes through the journal (``Recorded``), so that an aggregator that starts again has the same round. Inside,
time is counted in seconds since the round was opened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from nacl.signing import SigningKey

from covey_aggregator.attesting import Attesting, Finding
from covey_aggregator.combine import GroupMean
from covey_aggregator.journal import GRACE, GRACE_SHARE, RESUMED, TICK, Journal, Recorded
from covey_aggregator.records import GroupRecord
from covey_aggregator.spool import Spool
from covey_aggregator.windows import LOST_GRACE, Answers
from covey_protocol import topics
from covey_protocol.effects import Deliver, Effect, Publish
from covey_protocol.epochs import Grouping
from covey_protocol.errors import StaleError
from covey_protocol.group_round import GroupRound
from covey_protocol.masking import public_key
from covey_protocol.roster import OpenRound, Trust
from covey_protocol.round_table import GroupStage

STAGES = (
    GroupStage.JOINING,
    GroupStage.SHARING,
    GroupStage.MASKING,
    GroupStage.SIGNING,
    GroupStage.ATTESTING,
    GroupStage.ACCEPTING,
    GroupStage.UNMASKING,
    GroupStage.SUMMING,
)

# Inputs beside messages.
VECTOR, DECIDED, UNDECIDED, NO_SUM, LOST, RETURNED = "vector", "decided", "undecided", "no-sum", "lost", "returned"

# Which window each answer has to keep; the masked vector itself counts, not the message that announces it.
_WINDOW_OF = {
    kind: kind for kind in (topics.JOIN, topics.SHARES, topics.SURVIVORS, topics.ATTEST, topics.ACCEPT, topics.UNMASK)
}
_WINDOW_IN = dict(zip(STAGES, ("join", "shares", "masked", "survivors", "attest", "accept", "unmask"), strict=False))


class RoundRun(Recorded):
    """A round in progress.

    Args:
        opened: Its manifest.
        groupings: The epoch's groups.
        trust, key: The aggregator's anchors and signing key.
        sequences: Last join sequences, updated as devices join.
        journal: Where inputs are noted.
        spool: Keeps the masked vectors and the round's sealing secret.
        now: Monotonic seconds at which it began.
        watched: Groups that attest however the lot falls.
        excluded: Members who have no place on a roster.
    """

    def __init__(
        self,
        *,
        opened: OpenRound,
        groupings: Sequence[Grouping],
        trust: Trust,
        key: SigningKey,
        sequences: dict[str, int],
        journal: Journal,
        spool: Spool,
        now: float,
        watched: Collection[str] = (),
        excluded: Collection[str] = (),
    ) -> None:
        super().__init__(journal, now)
        self.opened, self.spool = opened, spool
        sealing = (spool.secret, public_key(spool.secret))
        self.groups = {
            grouping.group: GroupRound(
                trust=trust,
                key=key,
                sealing=sealing,
                grouping=grouping,
                opened=opened,
                sequences=sequences,
                now=0.0,
                excluded=excluded,
            )
            for grouping in groupings
        }
        self.attesting = Attesting(self.groups, watched)
        self._group_of = {name: grouping.group for grouping in groupings for name, _ in grouping.members}
        self.means: dict[str, GroupMean] = {}
        self.summing: set[str] = set()
        self.liars: dict[str, str] = {}
        self._left: dict[GroupStage, float] = {}
        self._stages = {name: group.stage for name, group in self.groups.items()}
        self._began = dict.fromkeys(self.groups, 0.0)
        self.answers = Answers()
        self.culprits: frozenset[str] = frozenset()
        self.bytes_up = 0
        self.bytes_down = 0
        self.reached_masking = False

    def group_of(self, device: str) -> GroupRound:
        """Return a device's group.

        Raises:
            StaleError: It is in none.
        """
        if device not in self._group_of:
            raise StaleError(f"{device!r} is in no group of this epoch", cause="not-grouped")
        return self.groups[self._group_of[device]]

    def waiting_for(self, device: str) -> str | None:
        """Return the group that a device's answer is missing in."""
        name = self._group_of.get(device)
        return name if name is not None and device in self.groups[name].awaited() else None

    def receive(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        """Take a device's message; errors as ``GroupRound.receive``."""
        return self.take(kind, device, data, now)

    def vector(self, device: str, blob: bytes, now: float) -> list[Effect]:
        """Take a masked vector; errors as ``GroupRound.vector``."""
        return self.take(VECTOR, device, blob, now)

    def lost(self, device: str, now: float, grace: float = LOST_GRACE) -> None:
        """Hear that a device's connection is gone: after ``grace`` seconds no stage waits for it."""
        if device in self._group_of and not self.group_of(device).is_lost(device):
            self.take(LOST, device, msgspec.msgpack.encode(now - self.started + grace), now)

    def returned(self, device: str, now: float) -> None:
        """Hear that a device is there again."""
        if device in self._group_of and self.group_of(device).is_lost(device):
            self.take(RETURNED, device, b"", now)

    def tick(self, now: float) -> list[Effect]:
        """Let stages run out."""
        return self.take(TICK, "", b"", now)

    def play(self, kind: str, device: str, data: bytes, at: float) -> list[Effect]:
        """Take an input; see ``Recorded``."""
        if kind == TICK:
            effects = self._tick(at)
        elif kind in (GRACE, RESUMED):
            effects = self._grant(at)
        elif kind == VECTOR:
            effects = self.group_of(device).vector(device, data, at)
            self.spool.put(device, data)
            self._note_answer("masked", device, at)
        elif kind == NO_SUM:
            name, reason, culprits = msgspec.msgpack.decode(data, type=tuple[str, str, tuple[str, ...]])
            effects = self.groups[name].abort("bad-sum", reason)
            self.groups[name].causers = frozenset(culprits)
            self.culprits |= self.groups[name].causers
        elif kind == LOST:
            self.group_of(device).lost(device, msgspec.msgpack.decode(data, type=float))
            effects = []
        elif kind == RETURNED:
            self.group_of(device).returned(device)
            effects = []
        elif kind == DECIDED:
            effects = self.attesting.decide(msgspec.msgpack.decode(data, type=Finding), at)
        elif kind == UNDECIDED:
            effects = self.attesting.fail(*msgspec.msgpack.decode(data, type=tuple[str, str]))
        else:
            effects = self.group_of(device).receive(kind, device, data, at)
            if kind in _WINDOW_OF:
                self._note_answer(_WINDOW_OF[kind], device, at)
        effects = [*effects, *self._attest(at)]
        self._note_stages(at)
        return effects

    def _attest(self, at: float) -> list[Effect]:
        return self.attesting.go_on(at) if self.opened.manifest.sketch else []

    def to_sketch(self) -> list[str]:
        """Return the shards whose sketches can be made and are not being made yet."""
        return self.attesting.to_sketch()

    def decided(self, finding: Finding, now: float) -> list[Effect]:
        """Take the decision on a shard."""
        return self.take(DECIDED, "", msgspec.msgpack.encode(finding), now)

    def undecided(self, shard: str, reason: str, now: float) -> list[Effect]:
        """Hear that a shard's sketches cannot be had."""
        return self.take(UNDECIDED, "", msgspec.msgpack.encode((shard, reason)), now)

    def _tick(self, at: float) -> list[Effect]:
        for group in self.groups.values():
            if at >= group.deadline and group.stage in _WINDOW_IN:
                self.answers.missed[_WINDOW_IN[group.stage]] |= group.awaited()
        return [effect for group in self.groups.values() for effect in group.tick(at)]

    def _note_answer(self, window: str, device: str, at: float) -> None:
        """Note how long a device took, by its group's stage as it was when the answer came."""
        group = self._group_of[device]
        self.answers.seconds[window][device] = at - self._began[group]

    def place(self) -> object:
        """Return how far all groups are and whom they wait for no longer."""
        return [(group.stage, group.entry, group.attested, group.passed_over) for group in self.groups.values()]

    def kept(self, kind: str, device: str, data: bytes) -> bytes:
        """Vectors are in the spool; the journal has their places."""
        return self.spool.put(device, data) if kind == VECTOR else data

    def restored(self, kind: str, device: str, data: bytes) -> bytes:
        """Vectors come from the spool; all that came once counts again."""
        data = self.spool.restore(device, data) if kind == VECTOR else data
        self.bytes_up += len(data)
        return data

    def note_said(self, effects: Sequence[Effect], last: dict[str, list[Effect]]) -> None:
        """A group's messages of a stage take the place of those of the stage before.

        But complaints stay open, and ACCEPT is of no use without ATTEST.
        """
        for effect in effects:
            if isinstance(effect, Publish | Deliver):
                name = effect.id if isinstance(effect, Publish) else self._group_of[effect.device]
                spoken = last.setdefault(f"{name} {topics.COMPLAINT}" if effect.kind == topics.COMPLAINT else name, [])
                kept = {effect.kind, topics.ATTEST} if effect.kind == topics.ACCEPT else {effect.kind}
                spoken[:] = [o for o in spoken if not isinstance(o, Publish | Deliver) or o.kind in kept]
                spoken.append(effect)

    def wanted(self, effect: Effect) -> bool:
        """Whether somebody may still have to hear something that was said before a restart."""
        if isinstance(effect, Publish):
            return self.groups[effect.id].stage is not GroupStage.SUMMING
        if not isinstance(effect, Deliver):
            return False
        group = self.group_of(effect.device)
        if effect.kind == topics.COMPLAINT:
            return not group.finished and effect.device in {dealer for dealer, _ in group.complaints.open}
        return effect.device in group.awaited()

    def expecting(self) -> list[Effect]:
        """Return the vectors that devices have signed for and that have not arrived."""
        return [effect for group in self.groups.values() for effect in group.expecting()]

    def arrived(self) -> tuple[int, int]:
        """Return how many masked vectors are here, and how many members the groups have."""
        return self.spool.count, len(self._group_of)

    def _grant(self, at: float) -> list[Effect]:
        """Put off what would run out before devices that are there can have answered."""
        windows = self.opened.manifest.windows
        for group in self.groups.values():
            if not group.finished:
                group.deadline = max(group.deadline, at + GRACE_SHARE * getattr(windows, _WINDOW_IN[group.stage]))
        return []

    def proven(self) -> set[str]:
        """Return the devices that are proven to have dealt bad shares, to have complained of good ones, or to have lied
        about their sketches.
        """
        blamed = {name for group in self.groups.values() for name in group.complaints.blamed}
        return blamed | self.culprits | set(self.liars)

    def new_list(self, now: float) -> list[Effect]:
        """Hear that the operator's revocation list is a newer one; see ``GroupRound.new_list``.

        Not in the journal: a round under an older list is not gone on with after a restart.
        """
        at = now - self.started
        effects = [effect for group in self.groups.values() for effect in group.new_list(at)]
        effects += self._attest(at)
        self._note_stages(at)
        return effects

    def to_sum(self) -> list[str]:
        """Return the groups whose sum can be made and is not being made yet, and note them as being summed."""
        ready = [
            name
            for name, group in self.groups.items()
            if group.stage is GroupStage.SUMMING and name not in self.summing
        ]
        self.summing.update(ready)
        return ready

    def summed(
        self,
        name: str,
        mean: GroupMean | None,
        reason: str,
        now: float,
        culprits: Sequence[str] = (),
    ) -> list[Effect]:
        """Take a group's sum, or the reason why there is none and who are to blame."""
        self.liars |= self.groups[name].liars
        if mean is None:
            return self.take(NO_SUM, "", msgspec.msgpack.encode((name, reason, culprits)), now)
        # Not in the journal: what the vectors add up to can be computed again.
        self.groups[name].close()
        self.means[name] = mean
        self._note_stages(now - self.started)
        return []

    @property
    def over(self) -> bool:
        """Whether every group has closed or aborted."""
        return all(group.stage in (GroupStage.CLOSED, GroupStage.ABORTED) for group in self.groups.values())

    def stage_seconds(self) -> dict[str, float]:
        """Return how long each stage took, until the last group had left it."""
        result, before = {}, 0.0
        for stage in STAGES:
            if stage in self._left:
                result[str(stage)] = round(max(0.0, self._left[stage] - before), 3)
                before = max(before, self._left[stage])
        return result

    def details(self) -> list[GroupRecord]:
        """Return how each group fared."""
        return [
            GroupRecord(
                group=name,
                members=[member.name for member in group.roster.members] if group.roster else [],
                survivors=list(group.summed) if group.aborted is None else [],
                published=list(group.published),
                rejected=sorted(set(group.survivors) - set(group.summed)) if group.aborted is None else [],
                cause=group.aborted.cause if group.aborted else "",
                reason=group.aborted.reason if group.aborted else "",
            )
            for name, group in self.groups.items()
        ]

    def _note_stages(self, at: float) -> None:
        for name, group in self.groups.items():
            if group.stage is not self._stages[name]:
                before, self._stages[name] = self._stages[name], group.stage
                self._left[before] = self._began[name] = at
                self.reached_masking |= group.stage is GroupStage.MASKING


ROUND_KINDS = frozenset(
    {
        topics.JOIN,
        topics.SHARES,
        topics.COMPLAINT,
        topics.ANSWER,
        topics.MASKED,
        topics.SURVIVORS,
        topics.ATTEST,
        topics.ACCEPT,
        topics.UNMASK,
        topics.DECLINE,
    }
)
