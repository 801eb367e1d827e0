"""Opens epochs: all shards of the fleet side by side; every input goes through the journal (``Recorded``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from nacl.signing import SigningKey

from covey_aggregator.journal import GRACE, GRACE_SHARE, RESUMED, TICK, Journal, Recorded
from covey_protocol import epochs, topics
from covey_protocol.effects import Effect, Publish
from covey_protocol.epoch_opening import ShardOpening, Stage
from covey_protocol.epochs import Grouping
from covey_protocol.errors import StaleError

EPOCH_NUMBER = "epoch"
_START = "start"


class EpochRun(Recorded):
    """One epoch's opening.

    Args:
        fleet, key: The fleet and the aggregator's signing key.
        epoch: Its number, larger than any before.
        members: Keys of the devices to group, by name.
        group_size: Members a group should have.
        list_min: The policy's floor for a list.
        window: Seconds for commitments, and for openings.
        journal: Where inputs are noted.
        now: Monotonic seconds at which it began.
        probation: Who of the members is a newcomer.
    """

    def __init__(
        self,
        *,
        fleet: str,
        key: SigningKey,
        epoch: int,
        members: Mapping[str, bytes],
        group_size: int,
        list_min: int,
        window: float,
        journal: Journal,
        now: float,
        probation: Collection[str] = (),
    ) -> None:
        super().__init__(journal, now)
        self.epoch, self._window = epoch, window
        bits, cut = epochs.shards(members)
        self._openings = [
            ShardOpening(
                fleet=fleet,
                key=key,
                epoch=self.epoch,
                shard=shard,
                shard_bits=bits,
                group_size=group_size,
                members={name: members[name] for name in names},
                probation=[name for name in names if name in probation],
                list_min=list_min,
                window=window,
            )
            for shard, names in sorted(cut.items())
        ]
        self._opening_of = {
            name: opening
            for opening, (_, names) in zip(self._openings, sorted(cut.items()), strict=True)
            for name in names
        }
        self.published: list[Publish] = []

    def lists(self, devices: Iterable[str]) -> bool:
        """Say whether any of some devices is listed."""
        return not self._opening_of.keys().isdisjoint(devices)

    def start(self, now: float) -> list[Effect]:
        """Publish the lists."""
        return self.take(_START, "", b"", now)

    def receive(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        """Take a COMMITMENT or OPENING; errors as ``ShardOpening.receive``."""
        return self.take(kind, device, data, now)

    def tick(self, now: float) -> list[Effect]:
        """Let stages run out."""
        return self.take(TICK, "", b"", now)

    def play(self, kind: str, device: str, data: bytes, at: float) -> list[Effect]:
        """Take an input; see ``Recorded``."""
        effects: list[Effect] = []
        if kind == _START:
            effects = [effect for opening in self._openings for effect in opening.start(at)]
        elif kind == TICK:
            effects = [effect for opening in self._openings for effect in opening.tick(at)]
        elif kind in (GRACE, RESUMED):
            for opening in self._openings:
                opening.deadline = max(opening.deadline, at + GRACE_SHARE * self._window)
        elif device not in self._opening_of:
            raise StaleError(f"{kind} from {device!r}, whom no list of this epoch names", cause="not-listed")
        else:
            effects = self._opening_of[device].receive(kind, device, data, at)
        self.published += [e for e in effects if isinstance(e, Publish) and e.kind == topics.GROUPS]
        return effects

    def place(self) -> object:
        """Return all shards' stages and attempts."""
        return tuple((opening.stage, opening.attempt) for opening in self._openings)

    def note_said(self, effects: Sequence[Effect], last: dict[str, list[Effect]]) -> None:
        """A shard's message takes the place of its message before."""
        last.update({effect.id: [effect] for effect in effects if isinstance(effect, Publish)})

    @property
    def over(self) -> bool:
        """Whether every shard has its groups or has failed."""
        return all(opening.finished for opening in self._openings)

    def groupings(self) -> list[Grouping]:
        """Return all groups of all shards that succeeded."""
        return [grouping for opening in self._openings if opening.stage is Stage.GROUPED for grouping in opening.groups]
