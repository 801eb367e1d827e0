"""A small fleet in memory around one real agent: a link that records, an aggregator and peers made of the protocol's
own state machines.

Nothing runs in the background. ``World.settle`` carries messages and lets the agent handle its events until nobody has
anything left to say; between two calls a test may look at everything, cut the agent's power, or say what it likes.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nacl.signing import SigningKey
from tests.agent.enrolled import enrolled
from tests.protocol.rig import (
    FLEET,
    OPERATOR,
    SEALING,
    SERVER,
    TASK,
    Entropy,
    make_chain,
    make_manifest,
    make_trust,
    sign_open,
    signing_key,
)

from covey_agent.blobs import BlobStore
from covey_agent.home import AgentHome
from covey_agent.outbox import topic_matches
from covey_agent.profile import load_profile
from covey_agent.runtime import Agent
from covey_agent.store import Store
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle, softmax
from covey_protocol import envelope, model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.chunks import Piece, Reassembler, is_piece, split
from covey_protocol.device_round import DeviceRound
from covey_protocol.digest import content_digest
from covey_protocol.effects import Deliver, Effect, Expect, Publish, Send
from covey_protocol.envelope import Context, open_signed, sign
from covey_protocol.epoch_member import EpochMember
from covey_protocol.epoch_opening import ShardOpening
from covey_protocol.epochs import Grouping
from covey_protocol.errors import PeerError, StaleError
from covey_protocol.group_round import GroupRound
from covey_protocol.identity import AGGREGATOR
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Blob, Close, Delta, Have, State, Want
from covey_protocol.payload import Payload, read, write
from covey_protocol.prg import Ring
from covey_protocol.revocation import Revocations
from covey_protocol.ring import Metrics
from covey_protocol.roster import Trust, read_open
from covey_protocol.round_table import DeviceStage, GroupStage
from covey_protocol.succession import Successions

DEVICE = "pi-0"
PEERS = ["pi-1", "pi-2", "pi-3", "pi-4"]
BUNDLE = build_bundle(softmax((300,), 10), name="points")
PIECE = 2048  # holds every message, while model, step and masked vector take several
OPEN_TOPIC = topics.pub(FLEET, topics.OPEN, TASK)


def blob_of(data: bytes) -> Blob:
    return Blob(digest=content_digest(data), bytes=len(data))


class Recorded(Entropy):
    """Entropy that keeps what it gave."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.given: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.given.append(super().__call__(size))
        return self.given[-1]


class Workbench(Executor):
    """Runs jobs when told: at once, or while ``held`` only by ``work``."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: deque[Callable[[], object]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        self.jobs.append(partial(fn, *args, **options))
        if not self.held:
            self.work()
        return Future()

    def work(self) -> None:
        while self.jobs:
            self.jobs.popleft()()


class MemoryLink:
    """Delivers to the world what the outbox holds; what is published while it is down stays there."""

    max_payload = PIECE

    def __init__(self, store: Store, hear: Callable[[str, bytes, bool], None]) -> None:
        self._outbox, self._hear = store.outbox, hear
        self.topics: set[str] = set()
        self.started = 0
        self.up = True

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.up = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        assert len(payload) <= 1 << 17
        row = self._outbox.put(topic, payload, retain=retain)
        self.kick()
        return row

    def subscribe(self, topics: Iterable[str]) -> None:
        self.topics |= set(topics)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        self.topics -= set(topics)

    def kick(self) -> None:
        for row in self._outbox.pending() if self.up else []:
            self._outbox.delete(row.id)
            self._hear(row.topic, row.payload, row.retain)

    def hears(self, topic: str) -> bool:
        return any(topic_matches(each, topic) for each in self.topics)


class Peer:
    """Another device: the bare state machines."""

    def __init__(self, name: str) -> None:
        self.name, self.key = name, signing_key(name)
        self.ledger, self.entropy = DeviceLedger(), Entropy(name)
        self.trust = make_trust(revocations=self.ledger.revocations)
        self.epoch = EpochMember(
            trust=self.trust,
            device=name,
            key=self.key,
            entropy=self.entropy,
        )
        self.round: DeviceRound | None = None

    def receive(self, kind: str, data: bytes) -> list[Effect]:
        if kind in (topics.EPOCH, topics.COMMITMENTS, topics.GROUPS):
            return self.epoch.receive(kind, data)
        if kind == topics.OPEN:
            assert self.epoch.grouping is not None
            self.round = DeviceRound(
                name=self.name,
                key=self.key,
                chain=make_chain(self.name),
                trust=self.trust,
                grouping=self.epoch.grouping,
                opened=read_open(data, envelope.parse(data).task, self.trust),
                ledger=self.ledger,
                entropy=self.entropy,
            )
            return self.round.join()
        assert self.round is not None
        effects = self.round.receive(kind, data)
        if self.round.stage is DeviceStage.DEALT:
            update = np.full(BUNDLE.dimension, 0.01, np.float32)
            effects += self.round.trained(update, Metrics(loss=1.0, accuracy=0.5, samples=10, norm=0))
        return effects


class World:
    """The agent, its fleet and its aggregator.

    Attributes:
        heard: Everything the agent said: topic, payload, retained.
        states: Its STATE messages, verified and read.
        wants: The blobs it asked for.
        serves: Whether they are sent.
        tamper: Called with topic and payload of everything that goes to the agent; returns what arrives.
        revocations: What the aggregator knows of the operator's list.
        successions, operator_key: What it knows of the operator's keys.
        server: The key that it signs with.
        wall: The agent's wall clock, if its system vouches for it.
        drop: Kinds that never reach the aggregator, with ``/`` for pieces of a transfer.
        on_heard: Called with kind and payload the moment the agent says something.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        rng = np.random.default_rng(0)
        np.savez(folder / "data.npz", x=rng.normal(size=(40, 300)).astype(np.float32), y=rng.integers(0, 10, 40))
        self.home: AgentHome = enrolled(folder, DEVICE, data=str(folder / "data.npz"), **changes)
        self.heard: list[tuple[str, bytes, bool]] = []
        self.states: list[State] = []
        self.wants: list[Want] = []
        self.serves = True
        self.tamper: Callable[[str, bytes], bytes] = lambda topic, payload: payload
        self.drop: set[str] = set()
        self.on_heard: Callable[[str, bytes], None] = lambda kind, payload: None
        self.now = 0.0
        self.entropy = Recorded("agent")
        self.workbench = Workbench()
        self.trainer: Callable[[Bundle], Trainer] | None = None
        self.peers = {name: Peer(name) for name in PEERS}
        self.weights = model.from_bytes(model.to_bytes(np.asarray(BUNDLE.weights)))
        self.delta: Delta | None = None
        self.blobs: dict[bytes, bytes] = {}
        self.serve(BUNDLE.encode())
        self.retained: dict[str, bytes] = {}
        self.opening: ShardOpening | None = None
        self.group: GroupRound | None = None
        self.sequences: dict[str, int] = {}
        self.revocations = Revocations()
        self.successions = Successions()
        self.server, self.operator_key = SERVER, bytes(OPERATOR.verify_key)
        self.wall: int | None = None
        self._queue: deque[Callable[[], None]] = deque()
        self._incoming: dict[bytes, Reassembler] = {}
        self._vectors: dict[str, bytes] = {}
        self._due = False
        self.store: Store = Store(self.home.database)
        self.boot()

    # The agent's side

    def boot(self, *, up: bool = True) -> None:
        """Start the agent's process, also again after its power was cut: what was in memory is gone.

        Args:
            up: Whether the broker can be reached.
        """
        self.store.close()
        self._queue.clear()
        self.store = Store(self.home.database)
        self.link = MemoryLink(self.store, self._hear)
        self.link.up = up
        self.agent = Agent(
            self.home,
            profile=load_profile(self.home.stored.profile),
            store=self.store,
            executor=self.workbench,
            make_trainer=self.trainer,
            entropy=self.entropy,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall,
        )
        self.turn()
        self.agent.connected(False)
        for topic, payload in self.retained.items():
            self.say(topic, payload)

    def turn(self) -> None:
        """Let the agent handle what it has been told so far, and return."""
        self._due = False
        self.agent.stop()
        self.agent.run(self.link)

    def settle(self) -> None:
        """Let everybody handle everything."""
        self._due = True
        while self._due:
            self.turn()
            while self._queue:
                self._queue.popleft()()

    def say(self, topic: str, payload: bytes) -> None:
        """Tell the agent something, if it listens there."""
        if self.link.hears(topic):
            self.agent.deliver(topic, self.tamper(topic, payload))
            self._due = True

    def later(self, seconds: float) -> None:
        """Let time pass, and the agent notice."""
        self.now += seconds
        self.agent.deliver("", b"")
        self.settle()

    def said(self, kind: str) -> list[bytes]:
        """Return what the agent said of one kind; ``masked/`` for the pieces of its vectors."""
        return [payload for topic, payload, _ in self.heard if _kind(topic) == kind]

    def _hear(self, topic: str, payload: bytes, retain: bool) -> None:
        self.on_heard(_kind(topic), payload)
        self.heard.append((topic, payload, retain))
        if _kind(topic) not in self.drop:
            self._queue.append(partial(self._on_agent, topic, payload))

    def _on_agent(self, topic: str, payload: bytes) -> None:
        place = topics.parse(topic)
        assert (place.fleet, place.way, place.device) == (FLEET, "up", DEVICE)
        key = bytes(self.home.key.verify_key)
        if place.kind == topics.STATE:
            context = Context(fleet=FLEET, kind=topics.STATE, sender=DEVICE)
            self.states.append(read(State, open_signed(payload, context, key)))
        elif place.kind == topics.WANT:
            context = Context(fleet=FLEET, kind=topics.WANT, sender=DEVICE)
            want = read(Want, open_signed(payload, context, key))
            self.wants.append(want)
            if self.serves and want.digest in self.blobs:
                for piece in split(self.blobs[want.digest], PIECE, want.have, want.size):
                    self.say(topics.down(FLEET, DEVICE, topics.BLOB), piece.encode())
        elif is_piece(payload):
            self._piece(DEVICE, payload)
        else:
            self._up(place.kind, DEVICE, payload)

    # The aggregator's side

    def serve(self, data: bytes) -> Blob:
        self.blobs[content_digest(data)] = data
        return blob_of(data)

    def rotate(self, key: SigningKey) -> None:
        """Let the aggregator sign with another key; the peers know already."""
        self.server = key
        for peer in self.peers.values():
            peer.trust.aggregator_key = bytes(key.verify_key)

    def trust(self) -> Trust:
        trust = make_trust(revocations=self.revocations)
        trust.aggregator_key = bytes(self.server.verify_key)
        trust.successions, trust.operator_key = self.successions, self.operator_key
        return trust

    def open_epoch(self, epoch: int = 1) -> None:
        """Draw groups from everybody."""
        members = {name: bytes(peer.key.verify_key) for name, peer in self.peers.items()}
        self.opening = ShardOpening(
            fleet=FLEET,
            key=self.server,
            epoch=epoch,
            shard=0,
            shard_bits=0,
            group_size=10,
            members={**members, DEVICE: bytes(self.home.key.verify_key)},
            probation=(),
            list_min=4,
            window=10,
        )
        self.carry(self.opening.start(self.now))
        self.settle()

    @property
    def grouping(self) -> Grouping:
        assert self.opening is not None
        [grouping] = self.opening.groups
        return grouping

    def open_round(self, round_: int = 1, attempt: int = 1, *, task: str = TASK, **changes: Any) -> bytes:
        """Open a round and let it go as far as it will; return the OPEN message."""
        fields: dict[str, Any] = {
            "bundle": blob_of(BUNDLE.encode()),
            "model": self.serve(model.to_bytes(self.weights)),
            "delta": self.delta,
            "epoch": self.grouping.epoch,
            **changes,
        }
        data = sign_open(make_manifest(BUNDLE.dimension, 10, **fields), round_, attempt, self.server, task)
        opened = read_open(data, task, self.trust())
        self.group = GroupRound(
            trust=self.trust(),
            key=self.server,
            sealing=(SEALING, opened.manifest.sealing_key),
            grouping=self.grouping,
            opened=opened,
            sequences=self.sequences,
            now=self.now,
        )
        topic = topics.pub(FLEET, topics.OPEN, task)
        self.retained[topic] = data
        self.say(topic, data)
        for peer in self.peers.values():
            self._queue.append(partial(self._to_peer, peer, topics.OPEN, data))
        self.settle()
        return data

    def late(self) -> None:
        """Let the group's present stage run out."""
        assert self.group is not None
        self.now = self.group.deadline
        self.carry(self.group.tick(self.now))
        self.settle()

    def close_round(self, *, publish: bool = True) -> Ring:
        """Publish the next model; return the sum."""
        assert self.group is not None
        assert self.group.stage is GroupStage.SUMMING, self.group.stage
        total, _ = self.group.unmask(lambda name: np.frombuffer(self._vectors[name], "<u2"))
        base = content_digest(model.to_bytes(self.weights))
        step = model.make_delta(np.linspace(-0.1, 0.1, len(self.weights)).astype(np.float32))
        self.weights = model.apply_delta(self.weights, step)
        self.delta = Delta(base=base, blob=self.serve(step))
        close = Close(
            model=self.serve(model.to_bytes(self.weights)),
            delta=self.delta,
            groups_closed=1,
            groups_aborted=0,
            participants=len(self.group.survivors),
        )
        data = sign(write(close), self.group.opened.context(FLEET, topics.CLOSE, AGGREGATOR), self.server)
        self.group.close()
        if publish:
            self.carry([Publish(topics.CLOSE, self.group.opened.task, data)])
            for piece in split(step, PIECE):
                self.say(topics.pub(FLEET, topics.BLOB, self.delta.blob.digest.hex()), piece.encode())
        self.settle()
        return total

    def have(self, digest: bytes, bitmap: bytes) -> bytes:
        """Return the message that says which pieces of a transfer are here."""
        return self.signed(topics.HAVE, Have(digest=digest, have=bitmap), recipient=DEVICE)

    def signed(self, kind: str, body: Payload, **place: Any) -> bytes:
        return sign(write(body), Context(fleet=FLEET, kind=kind, sender=AGGREGATOR, **place), self.server)

    def carry(self, effects: list[Effect]) -> None:
        """Carry the aggregator's effects out."""
        for effect in effects:
            if isinstance(effect, Publish):
                self.say(topics.pub(FLEET, effect.kind, effect.id), effect.data)
                for peer in self.peers.values():
                    self._queue.append(partial(self._to_peer, peer, effect.kind, effect.data))
            elif isinstance(effect, Deliver) and effect.device == DEVICE:
                pieces = [effect.data]
                if len(effect.data) > PIECE:
                    pieces = [piece.encode() for piece in split(effect.data, PIECE)]
                for piece in pieces:
                    self.say(topics.down(FLEET, DEVICE, effect.kind), piece)
            elif isinstance(effect, Deliver):
                self._queue.append(partial(self._to_peer, self.peers[effect.device], effect.kind, effect.data))
            elif isinstance(effect, Expect):
                self._incoming[effect.digest] = Reassembler(effect.bytes)
                self._incoming[effect.digest].expect(effect.digest, effect.bytes)
        group = self.group
        if group is not None and group.stage is GroupStage.SIGNING and group.entry:
            self.carry(group.attest([(group.grouping.group, group.entry)], True, self.now))
        elif group is not None and group.stage is GroupStage.ATTESTING and group.attested:
            self.carry(group.accept(group.candidates(), self.now))

    def _to_peer(self, peer: Peer, kind: str, data: bytes) -> None:
        try:
            effects = peer.receive(kind, data)
        except StaleError:
            return
        for effect in effects:
            if isinstance(effect, Send) and effect.transfer:
                for piece in split(effect.data, PIECE):
                    self._queue.append(partial(self._piece, peer.name, piece.encode()))
            elif isinstance(effect, Send):
                self._queue.append(partial(self._up, effect.kind, peer.name, effect.data))

    def _piece(self, name: str, payload: bytes) -> None:
        piece = Piece.decode(payload)
        assert self.group is not None
        if piece.digest in self._incoming and (blob := self._incoming[piece.digest].add(piece)) is not None:
            self._vectors[name] = blob
            with contextlib.suppress(StaleError):
                self.carry(self.group.vector(name, blob, self.now))

    def _up(self, kind: str, name: str, data: bytes) -> None:
        try:
            if kind in (topics.COMMITMENT, topics.OPENING):
                assert self.opening is not None
                self.carry(self.opening.receive(kind, name, data, self.now))
            elif self.group is not None:
                self.carry(self.group.receive(kind, name, data, self.now))
        except StaleError:
            return
        except PeerError as error:
            raise AssertionError(f"the aggregator refuses {kind} of {name}: {error}") from error


def place_of(data: bytes) -> tuple[str, int, int]:
    """Return task, round and attempt of a signed message."""
    message = envelope.parse(data)
    return message.task, message.round, message.attempt


def _kind(topic: str) -> str:
    place = topics.parse(topic)
    return place.kind + ("/" if re.search(r"/up/[a-z]+/", topic) else "")


@contextlib.contextmanager
def grouped_world(tmp_path: Path) -> Iterator[World]:
    """Make a world whose agent is grouped and has the bundle; in memory where it can be, as much is synced."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        world = World(Path(folder))
        world.open_epoch()
        BlobStore(world.home.path / "blobs").put(BUNDLE.digest, BUNDLE.encode())
        yield world
        world.store.close()
