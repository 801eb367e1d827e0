"""A whole fleet's round in one process without a broker: real devices and the aggregator's real round, back to back.

Every device's masked vector is made when it is its turn, taken in, and dropped; what the sums have to be is kept as one
number a group, so that the check costs no memory to speak of. Journal and spool are on disk, as in the service.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from tests.protocol.rig import SEALING, SERVER, TASK, make_chain, make_manifest, make_trust, sign_open, signing_key

from benchmarks._inputs import CLIP
from covey_aggregator.combine import GroupMean, group_mean
from covey_aggregator.journal import Journal, RoundHead
from covey_aggregator.round_run import RoundRun
from covey_aggregator.spool import Spool
from covey_aggregator.store import Store
from covey_protocol import ring, roster
from covey_protocol.device_round import DeviceRound
from covey_protocol.effects import Deliver, Effect, Publish, Send
from covey_protocol.epochs import Grouping, cut
from covey_protocol.errors import StaleError
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Blob, Delta
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.round_table import DeviceStage, GroupStage

METRICS = Metrics(loss=1.5, accuracy=0.5, samples=40, norm=0.0)
SAMPLED = 50  # coordinates whose true means are kept

Update = NDArray[np.float32]


class Fingerprint:
    """A random linear function of whole-number vectors, modulo 2^64: that of a sum is the sum of those of its parts.

    Sums of a round's vectors do not wrap, so that two different ones have the same fingerprint by chance only.
    """

    def __init__(self, length: int) -> None:
        self._weights = np.random.default_rng().integers(0, 1 << 64, length, dtype=np.uint64)

    def of(self, vector: Ring) -> int:
        """Return a vector's fingerprint."""
        signed, total = vector.view(np.int16), 0
        for start in range(0, len(vector), 8192):
            tile = slice(start, start + 8192)
            total += int(signed[tile].astype(np.int64).view(np.uint64) @ self._weights[tile])
        return total % (1 << 64)


class SumFleet:
    """``devices`` members in groups of ``group_size``, and a round over ``parameters`` that is not the first.

    Args:
        devices, parameters, group_size: The round's size.
        folder: Where the aggregator's files go: two bytes a device and parameter.
    """

    def __init__(self, devices: int, parameters: int, group_size: int, folder: Path) -> None:
        self.parameters = parameters
        self.names = [f"pi-{index}" for index in range(devices)]
        delta = Delta(base=bytes(32), blob=Blob(digest=bytes(32), bytes=2 * parameters + 4))
        self.manifest = make_manifest(parameters, clip=CLIP, delta=delta)
        self.scale = RingScale(self.manifest.clip, self.manifest.n_max)
        message = sign_open(self.manifest)
        opened = roster.read_open(message, TASK, make_trust())
        self.members = {f"1-0-{index}": group for index, group in enumerate(cut(self.names, group_size))}
        groupings = {
            group: Grouping(1, group, tuple((name, bytes(signing_key(name).verify_key)) for name in names))
            for group, names in self.members.items()
        }
        self._store = Store(folder / "store.db")
        self._store.defer()
        journal, sequences = Journal(self._store), dict[str, int]()
        head = RoundHead(task=TASK, round=1, attempt=1, manifest=message, sequences=sequences, failures=0, opened=0.0)
        journal.begin(head)
        self.run = RoundRun(
            opened=opened,
            groupings=list(groupings.values()),
            trust=make_trust(),
            key=SERVER,
            sequences=sequences,
            journal=journal,
            spool=Spool.create(folder / "spool", "round", SEALING),
            now=0.0,
        )
        self._devices = {
            name: DeviceRound(
                name=name,
                key=signing_key(name),
                chain=make_chain(name),
                trust=make_trust(),
                grouping=groupings[group],
                opened=opened,
                ledger=DeviceLedger(),
                entropy=os.urandom,
            )
            for group, names in self.members.items()
            for name in names
        }
        self._fingerprint = Fingerprint(parameters + len(ring.METRICS))
        self._expected = dict.fromkeys(self.members, 0)
        self.sampled = np.unique(np.linspace(0, parameters - 1, SAMPLED, dtype=np.int64))
        self.true_means = {group: np.zeros(len(self.sampled)) for group in self.members}
        self._queue: deque[Callable[[], None]] = deque()

    def join_and_deal(self) -> None:
        """Carry all groups to where devices train."""
        for name, device in self._devices.items():
            self._from_device(name, device.join())
        self._pump()
        assert all(device.stage is DeviceStage.DEALT for device in self._devices.values())

    def mask(self) -> Iterator[str]:
        """Let one device after the other mask an update, and the aggregator add it up; yield its name."""
        for group, names in self.members.items():
            for name in names:
                self._mask(group, name)
                yield name
        assert all(group.stage is GroupStage.SIGNING for group in self.run.groups.values())

    def sign_and_reveal(self) -> None:
        """Carry all groups to where their sums can be made."""
        self._pump()
        assert all(group.stage is GroupStage.SUMMING for group in self.run.groups.values())

    def unmask(self) -> Iterator[str]:
        """Make one group's mean after the other as the service does, check its sum, and yield its name."""
        for name in self.run.to_sum():
            total, count = self.run.groups[name].unmask()
            assert count == len(self.members[name])
            assert self._fingerprint.of(total) == self._expected[name], f"the sum of group {name} is not exact"
            mean = group_mean(total, count, self.scale)
            assert mean is not None
            self._check_mean(name, mean)
            del total
            self.run.summed(name, mean, "", 0.0)
            yield name
        assert self.run.over

    def _check_mean(self, group: str, mean: GroupMean) -> None:
        off = np.abs(mean.update[self.sampled] - self.true_means[group]).max()
        assert off <= self.scale.step, f"the mean of group {group} is off by {off}"
        assert mean.metrics is not None
        assert abs(mean.metrics.accuracy - METRICS.accuracy) < 0.01

    def _mask(self, group: str, name: str) -> None:
        encode = ring.encode

        def noted(
            update: Update, metrics: Metrics, scale: RingScale, seed: bytes, factor: float, *, clips: bool
        ) -> Ring:
            vector = encode(update, metrics, scale, seed, factor, clips=clips)
            self._expected[group] = (self._expected[group] + self._fingerprint.of(vector)) % (1 << 64)
            self.true_means[group] += factor * update[self.sampled].astype(np.float64) / len(self.members[group])
            return vector

        with patch.object(ring, "encode", noted):
            sent = self._devices[name].trained(update_of(name, self.parameters), METRICS)
        for effect in sent:
            if isinstance(effect, Send):
                self._to_aggregator(name, effect)
        self._commit()

    def _from_device(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._queue.append(partial(self._to_aggregator, name, effect))

    def _to_aggregator(self, name: str, effect: Send) -> None:
        try:
            if effect.transfer:
                effects = self.run.vector(name, effect.data, 0.0)
            else:
                effects = self.run.receive(effect.kind, name, effect.data, 0.0)
        except StaleError:  # a quorum is enough for signatures and reveals; the rest come late
            return
        group = self.run.group_of(name).grouping.group
        for sent in effects:
            if isinstance(sent, Publish):
                for member in self.members[group]:
                    self._queue.append(partial(self._to_device, member, sent.kind, sent.data))
            elif isinstance(sent, Deliver):
                self._queue.append(partial(self._to_device, sent.device, sent.kind, sent.data))

    def _to_device(self, name: str, kind: str, data: bytes) -> None:
        self._from_device(name, self._devices[name].receive(kind, data))

    def _pump(self) -> None:
        while self._queue:
            self._queue.popleft()()
        self._commit()

    def _commit(self) -> None:
        """Make durable what was taken, as ``Coordinator.commit`` does."""
        self.run.spool.sync()
        self._store.commit()

    def close(self) -> None:
        """Remove the files."""
        self.run.spool.remove()
        self._store.close()


def update_of(name: str, parameters: int) -> Update:
    """Return a device's update: its own noise around what all share, of twice the clip's norm."""
    rng = np.random.default_rng(int(name.removeprefix("pi-")))
    update = rng.standard_normal(parameters, dtype=np.float32)
    update += np.float32(0.5)
    update *= np.float32(2 * CLIP / np.sqrt(1.25 * parameters))
    return update
