"""A fleet without sockets: the coordinator and real devices, wired back to back, with time that a test moves.

``Fleet`` carries effects both ways, runs the heavy jobs inline, and lets a test silence devices from any message on,
hold jobs back, or start the aggregator again on the same store.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from click.testing import CliRunner
from nacl.signing import SigningKey
from numpy.typing import NDArray

from covey_aggregator.attesting import make_sketches
from covey_aggregator.cli import cli
from covey_aggregator.coordinator import Coordinator, Phase
from covey_aggregator.home import DATABASE_FILE, BrokerSettings, ServerHome, init_server
from covey_aggregator.operator import POLICY_FILE, OperatorHome, init_operator, open_operator
from covey_aggregator.probing import Looked
from covey_aggregator.records import RoundRecord
from covey_aggregator.rules import cap_norms, spoilt_groups
from covey_aggregator.service import _sum
from covey_aggregator.store import Store, TaskRow
from covey_aggregator.task import Attestation, Task
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import softmax
from covey_protocol import envelope, identity, ring, topics
from covey_protocol.bundle import Bundle
from covey_protocol.device_round import DeviceRound
from covey_protocol.effects import Deliver, Effect, Expect, Note, Publish, Send
from covey_protocol.envelope import Context
from covey_protocol.epoch_member import EpochMember
from covey_protocol.errors import PeerError, StaleError
from covey_protocol.identity import Chain, PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import State, Windows
from covey_protocol.payload import write
from covey_protocol.policy import Policy
from covey_protocol.provisioning import Broker, Provisioning
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.roster import OpenRound, Trust, read_open
from covey_protocol.round_table import DeviceStage
from covey_protocol.signed_time import read_time
from covey_protocol.warrants import Warrants

FLEET = "meadow"
FEATURES, CLASSES = 6, 3
DIMENSION = FEATURES * CLASSES + CLASSES
WINDOWS = Windows(join=10, shares=10, masked=10, survivors=10, attest=10, accept=10, unmask=10)
NO_SKETCHES = Attestation(sketch="off")  # in tests of something else
Vector = NDArray[np.float32]
_EPOCH_KINDS = (topics.EPOCH, topics.COMMITMENTS, topics.GROUPS)


@functools.cache
def tiny_bundle() -> Bundle:
    """Softmax regression of six inputs and three classes."""
    return build_bundle(softmax([FEATURES], CLASSES), name="tiny")


def make_homes(
    folder: Path, *, fleet: str = FLEET, policy: Policy | None = None, broker: BrokerSettings | None = None
) -> tuple[OperatorHome, ServerHome]:
    """Make an operator's and a server's home."""
    operator = init_operator(folder / "op", fleet)
    if policy is not None:
        (operator.path / POLICY_FILE).write_text(yaml.safe_dump(msgspec.to_builtins(policy)))
        operator = open_operator(operator.path)
    return operator, init_server(folder / "home", operator, broker or BrokerSettings())


def make_task(folder: Path, **changes: Any) -> Task:
    """Make a quick task whose bundle is there."""
    path = folder / "tiny.bundle"
    if not path.exists():
        path.write_bytes(tiny_bundle().encode())
    fields: dict[str, Any] = {
        "name": "digits",
        "bundle": str(path),
        "rounds": 2,
        "clip": 1.0,
        "group_size": 5,
        "settle": 0.0,
        "windows": WINDOWS,
        "attestation": NO_SKETCHES,
    }
    return Task(**{**fields, **changes})


def provision(operator: OperatorHome, home: ServerHome, name: str, port: int = 1883) -> Provisioning:
    """Invite a device."""
    broker = Broker(host="127.0.0.1", port=port)
    return operator.provision(name, profile="pi-4", seconds=0, delegation=home.delegation, broker=broker)


def signed_state(
    name: str, key: SigningKey, chain: Chain, counter: int, status: str = "online", fleet: str = FLEET
) -> bytes:
    """Return a STATE message."""
    state = State(status=status, counter=counter, chain=chain, software="test")  # type: ignore[arg-type]
    return envelope.sign(write(state), Context(fleet=fleet, kind=topics.STATE, sender=name), key)


class Device:
    """A device's real state machines and a random update a round."""

    def __init__(
        self, name: str, operator: OperatorHome, home: ServerHome, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.name, self.key, self.counter = name, SigningKey(entropy(32)), 0
        bundle = provision(operator, home, name)
        self.secret = SigningKey(bundle.token_secret)  # an honest device destroys it
        endorsement = identity.endorse(self.secret, home.fleet, name, bytes(self.key.verify_key))
        self.chain = Chain(token=bundle.token, endorsement=endorsement)
        aggregator = bytes(home.key.verify_key)
        self.ledger = DeviceLedger()
        self.trust = Trust(
            home.fleet, operator.public_key, aggregator, home.policy, PinnedKeys(), self.ledger.revocations
        )
        self.warrants = Warrants(self.trust, bundle.delegation, bundle.policy)
        self.member = EpochMember(
            trust=self.trust,
            device=name,
            key=self.key,
            entropy=entropy,
        )
        self.entropy = entropy
        self.pending: OpenRound | None = None
        self.time = 0
        self.round: DeviceRound | None = None
        self.round_class = DeviceRound

    def state(self, status: str = "online", *, again: bool = False) -> bytes:
        """Say that the device is there; ``again`` counts a new connection."""
        self.counter += again or not self.counter
        return signed_state(self.name, self.key, self.chain, self.counter, status, self.trust.fleet)

    def update(self, opened: OpenRound) -> Vector:
        """Return this device's update of a round, always the same; longer than the usual clip."""
        seed = [*self.name.encode(), opened.round, opened.attempt]
        return np.random.default_rng(seed).normal(0, 0.3, opened.manifest.model.bytes // 4).astype(np.float32)

    def take(self, kind: str, id: str, data: bytes) -> list[Send]:
        """Take a message and return what it makes the device send."""
        grouping = self.member.grouping
        if kind in _EPOCH_KINDS:
            return self.sends([*self.member.receive(kind, data), *self._join()])
        if kind == topics.OPEN:
            if not data:
                return []
            opened = read_open(data, id, self.trust)
            self.ledger.check_round(id, opened.round, opened.attempt)
            self.pending = opened
            return self.sends(self._join())
        if kind in (topics.DELEGATION, topics.POLICY):
            (self.warrants.take_delegation if kind == topics.DELEGATION else self.warrants.take_policy)(data)
            return []
        if kind == topics.TIME:
            self.time = read_time(data, fleet=self.trust.fleet, aggregator_key=self.trust.aggregator_key)
            return []
        if kind == topics.REVOCATIONS:
            anchors = self.trust.operator_key, self.trust.fleet
            self.ledger.take_revocations(data, operator_key=anchors[0], fleet=anchors[1])
            return []
        if kind == topics.BLOB:
            wanted = self.ledger.revocations.wanted
            if wanted is not None and wanted.digest.hex() == id:
                self.ledger.take_revoked(data)
            return self.sends(self._join())
        ours = id in ("", grouping.group if grouping else "") or kind == topics.CLOSE
        if self.round is None or not ours:
            return []
        effects = self.round.receive(kind, data)
        if self.round.stage is DeviceStage.DEALT:
            metrics = Metrics(loss=1.5, accuracy=0.5, samples=40, norm=0)
            effects = [*effects, *self.round.trained(self.update(self.round.opened), metrics)]
        return self.sends(effects)

    def _join(self) -> list[Effect]:
        grouping, opened = self.member.grouping, self.pending
        if grouping is None or opened is None or grouping.epoch != opened.manifest.epoch:
            return []
        if opened.manifest.revocations > self.ledger.revocations.held:
            return []
        self.pending = None
        self.round = self.round_class(
            name=self.name,
            key=self.key,
            chain=self.chain,
            trust=self.trust,
            grouping=grouping,
            opened=opened,
            ledger=self.ledger,
            entropy=self.entropy,
        )
        return self.round.join()

    @staticmethod
    def sends(effects: list[Effect]) -> list[Send]:
        """Return what is to be sent."""
        return [effect for effect in effects if isinstance(effect, Send)]


class Fleet:
    """An aggregator and its devices.

    Attributes:
        silent: Devices that neither hear nor speak any more.
        silent_from: From which kind of message on a device falls silent: that message is not sent.
        declining: From which kind of message on a device leaves the round instead of sending it.
        hold_jobs: Sums and combinations wait while this is set.
        published, notes, opened: What the aggregator has said so far, over all of its starts.
        repeated: What it has said again, byte for byte.
        refused: Who refused what, and why: ``aggregator`` or a device.
        wire: Every message of a device, in order.
        spent: Models for which some device has masked an update, and how many rounds had been opened by then.
    """

    def __init__(self, folder: Path, devices: int = 12, *, policy: Policy | None = None) -> None:
        self.folder = folder
        self.operator, self.home = make_homes(folder, policy=policy)
        self.now, self.wall = 1000.0, 1.7e9
        self.store, self.coordinator = self._aggregator()
        self.devices: dict[str, Device] = {}
        self.silent: set[str] = set()
        self.silent_from: dict[str, str] = {}
        self.declining: dict[str, str] = {}
        self.hold_jobs = False
        self.published: list[Publish] = []
        self.repeated: list[Publish] = []
        self.notes: list[Note] = []
        self.opened: list[OpenRound] = []
        self.refused: list[tuple[str, PeerError]] = []
        self.wire: list[tuple[str, Send]] = []
        self.spent: dict[bytes, int] = {}
        self._expected: set[tuple[str, bytes]] = set()
        self._queue: deque[Callable[[], None]] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._combining: object = None
        self.arrive(*(f"pi-{number}" for number in range(devices)))

    def _aggregator(self) -> tuple[Store, Coordinator]:
        store = Store(self.home.path / DATABASE_FILE)
        store.defer()
        wall_clock = lambda: self.wall + self.now  # noqa: E731
        return store, Coordinator(self.home, store, entropy=os.urandom, wall_clock=wall_clock)

    def make_device(self, name: str) -> Device:
        """Make a device that nobody has heard of yet."""
        return Device(name, self.operator, self.home)

    def arrive(self, *names: str) -> None:
        """Bring new devices into the fleet."""
        for name in names:
            self.devices[name] = self.make_device(name)
            self.announce(name)

    def revoke(self, name: str, *options: str, taken_up: bool = True) -> None:
        """Revoke a device as the operator does, and let the aggregator take that up."""
        arguments = ["device", "revoke", name, "--home", str(self.home.path), "--reason", "a test", *options]
        answer = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        if taken_up:
            self.carry(self.coordinator.poll(self.now))

    def announce(self, name: str) -> None:
        """Let a device say that it is there."""
        self.to_server(name, topics.STATE, self.devices[name].state())

    def last_will(self, name: str) -> None:
        """Let the broker say that a device is gone."""
        topic = topics.parse(topics.up(FLEET, name, topics.STATE))
        self.carry(self.coordinator.receive(topic, self.devices[name].state("lost"), self.now))

    def start(self, **changes: Any) -> Task:
        """Queue a task."""
        task = make_task(self.folder, **changes)
        self.store.add_task(task)
        self.store.commit()
        return task

    def row(self, task: str = "digits") -> TaskRow:
        """Return a task as it stands in the store."""
        row = self.store.task(task)
        assert row is not None
        return row

    def records(self, task: str = "digits") -> list[RoundRecord]:
        """Return a task's rounds."""
        return self.store.rounds(task)

    def restart(self, *, kept: bool = True) -> None:
        """Start the aggregator again, as after a power cut: what was on its way from it is lost.

        What it had not committed is lost as well. With ``kept`` the broker still has what devices sent and the
        aggregator has not taken; without, that is gone too.
        """
        up = [call for call in self._queue if getattr(call, "func", None) == self.to_server]
        self._queue.clear()
        self._queue.extend(up if kept else [])
        self._jobs.clear()
        self._combining = None
        self.coordinator.close()
        self.store.close()
        self.store, self.coordinator = self._aggregator()
        self.carry(self.coordinator.tick(self.now))

    def finish(self, task: str = "digits", seconds: float = 900) -> TaskRow:
        """Run until a task has ended."""
        self.run_until(lambda: self.row(task).status in ("done", "failed", "stopped"), seconds)
        return self.row(task)

    def run_until(self, done: Callable[[], bool], seconds: float = 900) -> None:
        """Carry messages one by one, and let time pass when none is on its way."""
        deadline = self.now + seconds
        while not done():
            if self._queue:
                self._queue.popleft()()
            elif self._jobs and not self.hold_jobs:
                self._jobs.popleft()()
            else:
                assert self.now < deadline, f"{self.coordinator.phase}: {self.notes[-5:]}"
                self.now += 1.0
                self.carry(self.coordinator.poll(self.now))
                self.carry(self.coordinator.tick(self.now))

    def run_to(self, phase: Phase) -> None:
        """Run until the coordinator is in a phase."""
        self.run_until(lambda: self.coordinator.phase is phase)

    def carry(self, effects: list[Effect]) -> None:
        """Carry out what the coordinator wants."""
        for effect in effects:
            if isinstance(effect, Note):
                self.notes.append(effect)
                self.store.event(effect.cause, effect.text)
        self.coordinator.commit()
        for effect in effects:
            if isinstance(effect, Note):
                continue
            if isinstance(effect, Expect):
                self._expected.add((effect.device, effect.digest))
            elif isinstance(effect, Deliver):
                self._queue.append(partial(self.to_device, effect.device, effect.kind, "", effect.data))
            elif isinstance(effect, Publish):
                again = bool(effect.data) and effect in self.published
                (self.repeated if again else self.published).append(effect)
                if effect.kind == topics.OPEN and effect.data and not again:
                    trust = self.home.trust({})
                    self.opened.append(read_open(effect.data, effect.id, trust))
                if effect.kind != topics.BLOB or self.coordinator.revocations.serve(bytes.fromhex(effect.id)):
                    for name in self.devices:
                        self._queue.append(partial(self.to_device, name, effect.kind, effect.id, effect.data))
        self._start_jobs()

    def to_device(self, name: str, kind: str, id: str, data: bytes) -> None:
        """Bring a message to a device, and its answers on their way."""
        if name in self.silent:
            return
        device = self.devices[name]
        try:
            sends = device.take(kind, id, data)
        except StaleError:
            return  # a device hears what is not for it; the agent drops that too
        except PeerError as error:
            self.refused.append((name, error))
            return
        wanted = device.ledger.revocations.wanted
        entries = self.coordinator.blob(wanted.digest) if wanted is not None and kind == topics.REVOCATIONS else None
        if wanted is not None and entries is not None:  # asked for, where they do not come by themselves
            self._queue.append(partial(self.to_device, name, topics.BLOB, wanted.digest.hex(), entries))
        for send in sends:
            if self.silent_from.get(name) == send.kind:
                self.silent.add(name)
                return
            if self.declining.get(name) == send.kind and device.round is not None:
                (left,) = Device.sends(device.round.decline("diverged", "training diverged"))
                self._queue.append(partial(self.to_server, name, left.kind, left.data))
                return
            if send.kind == topics.MASKED and device.round is not None:
                self.spent.setdefault(device.round.opened.manifest.model.digest, len(self.opened))
            self.wire.append((name, send))
            self._queue.append(partial(self.to_server, name, send.kind, send.data, send.transfer))

    def to_server(self, name: str, kind: str, data: bytes, transfer: bool = False) -> None:
        """Bring a device's message to the aggregator."""
        if name in self.silent:
            return
        try:
            if transfer:
                self.carry(self.coordinator.vector(name, data, self.now))
            else:
                topic = topics.parse(topics.up(FLEET, name, kind))
                self.carry(self.coordinator.receive(topic, data, self.now))
        except PeerError as error:
            self.refused.append(("aggregator", error))

    def _start_jobs(self) -> None:
        look = self.coordinator.probing.job()
        if look is not None:
            self._jobs.append(partial(self._look, look))
        run = self.coordinator.run
        if run is None:
            return
        for shard in self.coordinator.to_sketch():
            self._jobs.append(partial(self._sketch, shard))
        for name in run.to_sum():
            self._jobs.append(partial(self._sum, name))
        if self.coordinator.phase is Phase.COMBINING and self._combining is not run:
            self._combining = run
            self._jobs.append(self._combine)

    def _look(self, look: Callable[[], Looked]) -> None:
        self.coordinator.probing.done(look())
        self.carry([])

    def _sum(self, name: str) -> None:
        assert self.coordinator.run is not None
        run = self.coordinator.run
        assert run is not None
        mean, reason, culprits = _sum(run.groups[name], run.spool)
        self.carry(self.coordinator.summed(name, mean, reason, self.now, culprits))

    def _sketch(self, shard: str) -> None:
        run = self.coordinator.run
        assert run is not None
        sketches = make_sketches(run.attesting.groups(shard), run.spool)
        self.carry(self.coordinator.sketched(shard, sketches, "", self.now))

    def _combine(self) -> None:
        self.carry(self.coordinator.combined(self.coordinator.combine_inputs()(), self.now))

    def weights(self, digest: bytes) -> Vector:
        """Return a model that the aggregator keeps."""
        return self.coordinator.models.load(digest)

    def plain_step(self, record: RoundRecord, opened: OpenRound, task: Task) -> tuple[Vector, float]:
        """Compute a round's step from the clear updates of the survivors, and how far quantisation may move it."""
        clip = opened.manifest.clip
        means, counts = [], []
        for group in record.details:
            if not group.cause:
                clear = [self.devices[name].update(opened) for name in group.survivors]
                means.append(np.mean([ring.clip_norm(update, clip)[0] for update in clear], axis=0))
                counts.append(len(clear))
        spoilt = spoilt_groups(counts, task.contamination)
        step = task.across_groups(cap_norms(np.stack(means).astype(np.float32)), spoilt)
        return step, RingScale(clip, opened.manifest.n_max).step + float(np.abs(step).max()) / 32767 + 1e-6
