"""Opens epochs: all shards of the fleet side by side."""

from __future__ import annotations

from collections.abc import Mapping

from nacl.signing import SigningKey

from covey_aggregator.store import Store
from covey_protocol import epochs
from covey_protocol.effects import Effect
from covey_protocol.epoch_opening import ShardOpening, Stage
from covey_protocol.epochs import Grouping
from covey_protocol.errors import StaleError

_EPOCH = "epoch"


class EpochRun:
    """One epoch's opening.

    Args:
        fleet, key: The fleet and the aggregator's signing key.
        store: Keeps the epoch's number, so that none is used twice.
        members: Keys of the devices to group, by name.
        group_size: Members a group should have.
        list_min: The policy's floor for a list.
        window: Seconds for commitments, and for openings.
    """

    def __init__(
        self,
        *,
        fleet: str,
        key: SigningKey,
        store: Store,
        members: Mapping[str, bytes],
        group_size: int,
        list_min: int,
        window: float,
    ) -> None:
        self.epoch = store.number(_EPOCH) + 1
        store.set_number(_EPOCH, self.epoch)
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
                probation=(),
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

    def start(self, now: float) -> list[Effect]:
        """Publish the lists."""
        return [effect for opening in self._openings for effect in opening.start(now)]

    def receive(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        """Take a COMMITMENT or OPENING; errors as ``ShardOpening.receive``."""
        if device not in self._opening_of:
            raise StaleError(f"{kind} from {device!r}, whom no list of this epoch names", cause="not-listed")
        return self._opening_of[device].receive(kind, device, data, now)

    def tick(self, now: float) -> list[Effect]:
        """Let stages run out."""
        return [effect for opening in self._openings for effect in opening.tick(now)]

    @property
    def over(self) -> bool:
        """Whether every shard has its groups or has failed."""
        return all(opening.finished for opening in self._openings)

    def groupings(self) -> list[Grouping]:
        """Return all groups of all shards that succeeded."""
        return [grouping for opening in self._openings if opening.stage is Stage.GROUPED for grouping in opening.groups]
