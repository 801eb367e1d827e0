"""One round of one task over all groups: messages to the right group, times of the stages, sums as they come."""

from __future__ import annotations

from collections.abc import Sequence

from nacl.signing import SigningKey

from covey_aggregator.combine import GroupMean
from covey_aggregator.records import GroupRecord
from covey_aggregator.windows import LOST_GRACE, Answers
from covey_protocol import topics
from covey_protocol.effects import Effect
from covey_protocol.epochs import Grouping
from covey_protocol.errors import StaleError
from covey_protocol.group_round import GroupRound
from covey_protocol.roster import OpenRound, Trust
from covey_protocol.round_table import GroupStage

STAGES = (
    GroupStage.JOINING,
    GroupStage.SHARING,
    GroupStage.MASKING,
    GroupStage.SIGNING,
    GroupStage.UNMASKING,
    GroupStage.SUMMING,
)


# Which window each answer has to keep; the masked vector itself counts, not the message that announces it.
_WINDOW_OF = {topics.JOIN: "join", topics.SHARES: "shares", topics.SURVIVORS: "survivors", topics.UNMASK: "unmask"}
_WINDOW_IN = dict(zip(STAGES, ("join", "shares", "masked", "survivors", "unmask"), strict=False))


class RoundRun:
    """A round in progress.

    Args:
        opened: Its manifest.
        groupings: The epoch's groups.
        trust, key: The aggregator's anchors and signing key.
        sealing: X25519 secret and public key made for this round; they live here alone.
        sequences: Last join sequences, updated as devices join.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        opened: OpenRound,
        groupings: Sequence[Grouping],
        trust: Trust,
        key: SigningKey,
        sealing: tuple[bytes, bytes],
        sequences: dict[str, int],
        now: float,
    ) -> None:
        self.opened, self.started = opened, now
        self.groups = {
            grouping.group: GroupRound(
                trust=trust,
                key=key,
                sealing=sealing,
                grouping=grouping,
                opened=opened,
                sequences=sequences,
                now=now,
            )
            for grouping in groupings
        }
        self._group_of = {name: grouping.group for grouping in groupings for name, _ in grouping.members}
        self.means: dict[str, GroupMean] = {}
        self.summing: set[str] = set()
        self._left: dict[GroupStage, float] = {}
        self._stages = {name: group.stage for name, group in self.groups.items()}
        self._began = dict.fromkeys(self.groups, now)
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

    def receive(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        """Take a device's message; errors as ``GroupRound.receive``."""
        group = self.group_of(device)
        began = self._began[group.grouping.group]
        effects = group.receive(kind, device, data, now)
        if kind in _WINDOW_OF:
            self.answers.seconds[_WINDOW_OF[kind]][device] = now - began
        self._note_stages(now)
        return effects

    def vector(self, device: str, blob: bytes, now: float) -> list[Effect]:
        """Take a masked vector; errors as ``GroupRound.vector``."""
        group = self.group_of(device)
        began = self._began[group.grouping.group]
        effects = group.vector(device, blob, now)
        self.answers.seconds["masked"][device] = now - began
        self._note_stages(now)
        return effects

    def lost(self, device: str, now: float, grace: float = LOST_GRACE) -> None:
        """Hear that a device's connection is gone: after ``grace`` seconds no stage waits for it."""
        if device in self._group_of:
            self.group_of(device).lost(device, now + grace)

    def returned(self, device: str) -> None:
        """Hear that a device is there again."""
        if device in self._group_of:
            self.group_of(device).returned(device)

    def tick(self, now: float) -> list[Effect]:
        """Let stages run out."""
        for group in self.groups.values():
            if now >= group.deadline and group.stage in _WINDOW_IN:
                self.answers.missed[_WINDOW_IN[group.stage]] |= group.awaited()
        effects = [effect for group in self.groups.values() for effect in group.tick(now)]
        self._note_stages(now)
        return effects

    def proven(self) -> set[str]:
        """Return the devices that are proven to have dealt bad shares."""
        return {dealer for group in self.groups.values() for dealer, _ in group.complaints.bad} | self.culprits

    def to_sum(self) -> list[str]:
        """Return the groups whose sum can be made and is not being made yet, and note them as being summed."""
        ready = [
            name
            for name, group in self.groups.items()
            if group.stage is GroupStage.SUMMING and name not in self.summing
        ]
        self.summing.update(ready)
        return ready

    def summed(self, name: str, mean: GroupMean | None, reason: str, now: float, culprit: str = "") -> list[Effect]:
        """Take a group's sum, or the reason why there is none and who is to blame."""
        group = self.groups[name]
        if mean is None:
            effects = group.abort("bad-sum", reason)
            group.causers = frozenset({culprit} - {""})
            self.culprits |= group.causers
        else:
            group.close()
            self.means[name] = mean
            effects = []
        self._note_stages(now)
        return effects

    @property
    def over(self) -> bool:
        """Whether every group has closed or aborted."""
        return all(group.stage in (GroupStage.CLOSED, GroupStage.ABORTED) for group in self.groups.values())

    def stage_seconds(self) -> dict[str, float]:
        """Return how long each stage took, until the last group had left it."""
        result, before = {}, self.started
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
                survivors=list(group.survivors) if group.aborted is None else [],
                cause=group.aborted.cause if group.aborted else "",
                reason=group.aborted.reason if group.aborted else "",
            )
            for name, group in self.groups.items()
        ]

    def _note_stages(self, now: float) -> None:
        for name, group in self.groups.items():
            if group.stage is not self._stages[name]:
                before, self._stages[name] = self._stages[name], group.stage
                self._left[before] = self._began[name] = now
                self.reached_masking |= group.stage is GroupStage.MASKING


ROUND_KINDS = frozenset(
    {
        topics.JOIN,
        topics.SHARES,
        topics.COMPLAINT,
        topics.ANSWER,
        topics.MASKED,
        topics.SURVIVORS,
        topics.UNMASK,
        topics.DECLINE,
    }
)
