"""A group of devices and their aggregator, wired back to back without a broker.

``Rig`` carries effects between the real state machines, keeps a transcript of all bytes, and lets a test silence a
device from any point on, repeat messages or tamper with them on their way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from nacl.bindings import crypto_scalarmult_base
from nacl.signing import SigningKey
from numpy.typing import NDArray

from covey_protocol import envelope, identity, prg, ring, roster, topics
from covey_protocol.complaints import Answers, ComplaintBook
from covey_protocol.device_round import DeviceRound
from covey_protocol.digest import digest
from covey_protocol.effects import Deliver, Effect, Note, Publish, Remember, Send
from covey_protocol.epochs import Grouping
from covey_protocol.errors import PeerError, StaleError
from covey_protocol.group_attestation import GroupAttestation
from covey_protocol.group_round import GroupRound
from covey_protocol.identity import AGGREGATOR, Chain, PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.machine import Machine
from covey_protocol.messages import Blob, Consent, Manifest, Windows
from covey_protocol.payload import Payload, write
from covey_protocol.plan import Plan
from covey_protocol.policy import Policy
from covey_protocol.prg import Ring
from covey_protocol.revocation import Revocation, Revocations, sign_list
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.roster import OpenRound, Trust
from covey_protocol.round_table import DeviceStage, GroupStage

# X25519 keys of low order, on the curve and its twist, in all their encodings that matter.
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]

FLEET = "meadow"
TASK = "digits"
METRICS = Metrics(loss=1.5, accuracy=0.5, samples=40, norm=0)
WINDOWS = Windows(join=10, shares=10, masked=10, survivors=10, attest=10, accept=10, unmask=10)


class Entropy:
    """Uniform bytes that a test can repeat: a counter under a seed."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = digest(seed.encode(), person=b"test-entropy"), 0

    def __call__(self, size: int) -> bytes:
        self._count += 1
        block = digest(self._count.to_bytes(8, "big"), key=self._seed, person=b"test-entropy")
        return prg.expand(block, -(-size // 2)).tobytes()[:size]


def signing_key(seed: str) -> SigningKey:
    return SigningKey(digest(seed.encode(), person=b"test-key"))


OPERATOR = signing_key("operator")
SERVER = signing_key("aggregator")
SEALING = digest(b"sealing", person=b"test-key")


def make_chain(name: str, *, fleet: str = FLEET, operator: SigningKey = OPERATOR, not_after: int = 0) -> Chain:
    token_key = signing_key(f"token {name}")
    token = identity.issue_token(
        operator, fleet, name, token_key=bytes(token_key.verify_key), profile="pi-4", not_after=not_after
    )
    return Chain(token=token, endorsement=identity.endorse(token_key, fleet, name, bytes(signing_key(name).verify_key)))


def make_trust(policy: Policy | None = None, revocations: Revocations | None = None) -> Trust:
    anchors = bytes(OPERATOR.verify_key), bytes(SERVER.verify_key)
    return Trust(FLEET, *anchors, policy or Policy(), PinnedKeys(), revocations or Revocations())


def revocation_of(name: str, *, key: bool = False) -> Revocation:
    """Return the entry of a rig's device: by its token alone, or with its key."""
    token = identity.token_id(make_chain(name).token)
    known = bytes(signing_key(name).verify_key) if key else b""
    return Revocation(token=token, key=known, device=name, reason="lost")


def revoke(*names: str, version: int = 1, key: bool = False) -> tuple[bytes, bytes]:
    """Return the signed head and the entries of a list that holds some of the rig's devices."""
    return sign_list([revocation_of(name, key=key) for name in names], version, OPERATOR, FLEET)


def knowing(signed: tuple[bytes, bytes], revocations: Revocations | None = None) -> Revocations:
    """Return what somebody knows who has got a list."""
    known = revocations or Revocations()
    known.take_head(signed[0], operator_key=bytes(OPERATOR.verify_key), fleet=FLEET)
    known.take_list(signed[1])
    return known


def make_manifest(dimension: int, n_max: int = 32, **changes: object) -> Manifest:
    fields: dict[str, object] = {
        "epoch": 1,
        "bundle": Blob(digest=bytes(32), bytes=1),
        "model": Blob(digest=bytes(32), bytes=4 * dimension),
        "plan": Plan(),
        "clip": 5.0,
        "n_min": 4,
        "n_max": n_max,
        "windows": WINDOWS,
        "sealing_key": crypto_scalarmult_base(SEALING),
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def sign_open(
    manifest: Manifest, round_: int = 1, attempt: int = 1, key: SigningKey = SERVER, task: str = TASK
) -> bytes:
    context = envelope.Context(
        fleet=FLEET, kind=topics.OPEN, sender=AGGREGATOR, task=task, round=round_, attempt=attempt
    )
    return envelope.sign(write(manifest), context, key)


@dataclass
class Rig:
    """One group through one round.

    Attributes:
        n: Members.
        silent: Names that neither hear nor speak from now on.
        dies: For some names, the first kind of message that it no longer sends ("vector" for the masked vector).
        hold: Called with (way, name, kind); what it says True to goes to ``held`` instead of being carried.
        on_wire: Called with (way, name, kind, data) for everything that is carried; returns the data to carry on.
        ledgers: Of earlier rounds, where there were any.
        revocations: What the aggregator's side knows of the operator's list.
        wire: Everything carried, in order.
        encoded: Everybody's update in the ring, before it was masked.
    """

    n: int = 6
    dimension: int = 50
    seed: str = "rig"
    manifest: Manifest | None = None
    policy: Policy | None = None
    repeat: int = 1
    silent: set[str] = field(default_factory=set)
    dies: dict[str, str] = field(default_factory=dict)
    hold: Callable[[str, str, str], bool] = lambda way, name, kind: False
    ledgers: dict[str, DeviceLedger] = field(default_factory=dict)
    revocations: Revocations = field(default_factory=Revocations)
    round: int = 1
    task: str = TASK
    on_wire: Callable[[str, str, str, bytes], bytes] = lambda way, name, kind, data: data

    def __post_init__(self) -> None:
        self.names = [f"pi-{index}" for index in range(self.n)]
        self.grouping = Grouping(1, "1-0-0", tuple((name, bytes(signing_key(name).verify_key)) for name in self.names))
        self.manifest = self.manifest or make_manifest(self.dimension)
        self.open_data = sign_open(self.manifest, self.round, task=self.task)
        self.opened: OpenRound = roster.read_open(self.open_data, self.task, make_trust(self.policy))
        self.ledgers = self.ledgers or {name: DeviceLedger() for name in self.names}
        self.devices = {name: self.make_device(name) for name in self.names}
        self.group = GroupRound(
            trust=make_trust(self.policy, self.revocations),
            key=SERVER,
            sealing=(SEALING, crypto_scalarmult_base(SEALING)),
            grouping=self.grouping,
            opened=self.opened,
            sequences={},
            now=0.0,
        )
        self.now = 0.0
        self.attesting = True
        self._queue: deque[Callable[[], None]] = deque()
        self.wire: list[tuple[str, str, str, bytes]] = []
        self.held: list[tuple[str, str, str, bytes]] = []
        self.encoded: dict[str, Ring] = {}
        self.vectors: dict[str, bytes] = {}
        self.rejected: set[str] = set()
        self.watched = True
        self.errors: list[PeerError] = []
        self.notes: list[Note] = []
        self.remembered: dict[str, list[Remember]] = {name: [] for name in self.names}

    def make_device(self, name: str) -> DeviceRound:
        return DeviceRound(
            name=name,
            key=signing_key(name),
            chain=make_chain(name),
            trust=make_trust(self.policy, self.ledgers[name].revocations),
            grouping=self.grouping,
            opened=self.opened,
            ledger=self.ledgers[name],
            entropy=Entropy(f"{self.seed} {name}"),
        )

    def update(self, name: str) -> NDArray[np.float32]:
        rng = np.random.default_rng(self.names.index(name))
        return rng.normal(0, 0.3, self.dimension).astype(np.float32)

    def joined(self) -> None:
        for name in self.names:
            if name not in self.silent:
                self.from_device(name, self.devices[name].join())
        self.pump()

    def train(self) -> None:
        for name in self.names:
            device = self.devices[name]
            if name not in self.silent and device.stage is DeviceStage.DEALT:
                self.from_device(name, self.trained(name))
        self.pump()

    def trained(self, name: str) -> list[Effect]:
        """Let one device mask its update, and note what it was in the ring."""
        encode = ring.encode

        def recorded(
            update: NDArray[np.float32], metrics: Metrics, scale: RingScale, seed: bytes, factor: float, *, clips: bool
        ) -> Ring:
            vector = encode(update, metrics, scale, seed, factor, clips=clips)
            self.encoded[name] = vector.copy()
            return vector

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ring, "encode", recorded)
            return self.devices[name].trained(self.update(name), METRICS)

    def sum_of(self, names: Iterable[str]) -> Ring:
        """Return what the sum over some members has to be."""
        total = np.zeros(self.dimension + len(ring.METRICS), np.uint16)
        for name in names:
            total += self.encoded[name]
        return total

    def late(self) -> None:
        """Let the present stage's time run out."""
        self.now = self.group.deadline
        self.from_group(self.group.tick(self.now))
        self.pump()

    def from_device(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Remember):
                self.remembered[name].append(effect)
            elif isinstance(effect, Note):
                self.notes.append(effect)
            elif isinstance(effect, Send):
                self._queue.append(partial(self.to_group, name, effect))

    def pump(self) -> None:
        """Carry messages, first in first out, until none is on its way."""
        while self._queue or self._go_on():
            if self._queue:
                self._queue.popleft()()

    def _go_on(self) -> bool:
        """Do what the aggregator does between the stages of a group: fix the shard's seed, and choose the set A."""
        group = self.group
        if group.stage is GroupStage.SIGNING and group.entry and self.attesting:
            self.from_group(group.attest([(self.grouping.group, group.entry)], self.watched, self.now))
            return True
        if group.stage is GroupStage.ATTESTING and group.attested:
            self.from_group(group.accept([n for n in group.candidates() if n not in self.rejected], self.now))
            return True
        return False

    def vector(self, name: str) -> Ring:
        """Return a member's masked vector, as the aggregator has it on disk."""
        return np.frombuffer(self.vectors[name], "<u2")

    def to_group(self, name: str, effect: Send) -> None:
        way = "vector" if effect.transfer else "up"
        if self.dies.get(name) == (way if effect.transfer else effect.kind):
            self.silent.add(name)
        if name in self.silent or self._held(way, name, effect.kind, effect.data):
            return
        data = self.on_wire(way, name, effect.kind, effect.data)
        self.wire.append((way, name, effect.kind, data))
        for _ in range(self.repeat):
            try:
                if effect.transfer:
                    self.vectors[name] = data
                    self.from_group(self.group.vector(name, data, self.now))
                else:
                    self.from_group(self.group.receive(effect.kind, name, data, self.now))
            except PeerError as error:
                self.note_error(error)

    def from_group(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Note):
                self.notes.append(effect)
            elif isinstance(effect, Publish):
                for name in self.names:
                    self._queue.append(partial(self.to_device, name, effect.kind, effect.data))
            elif isinstance(effect, Deliver):
                self._queue.append(partial(self.to_device, effect.device, effect.kind, effect.data))

    def to_device(self, name: str, kind: str, data: bytes) -> None:
        if name in self.silent or self._held("down", name, kind, data):
            return
        data = self.on_wire("down", name, kind, data)
        self.wire.append(("down", name, kind, data))
        for _ in range(self.repeat):
            try:
                self.from_device(name, self.devices[name].receive(kind, data))
            except PeerError as error:
                self.note_error(error)

    def _held(self, way: str, name: str, kind: str, data: bytes) -> bool:
        if not self.hold(way, name, kind):
            return False
        self.held.append((way, name, kind, data))
        return True

    def note_error(self, error: PeerError) -> None:
        if not (self.repeat > 1 and isinstance(error, StaleError)):
            self.errors.append(error)

    def run(self) -> None:
        """Carry the round to its end while everybody answers, letting stages time out where somebody does not."""
        self.joined()
        for _ in range(6):
            self.train()
            if self.group.finished:
                return
            self.late()

    def bound(self, kind: str, sender: str) -> bytes:
        """Return the digest that a message of this kind is signed over."""
        if kind in (topics.JOIN, topics.ABORT):
            return self.grouping.digest()
        if kind in (topics.ROSTER, topics.CLOSE) and sender == AGGREGATOR:
            return b""
        assert self.group.roster is not None
        return self.group.roster.digest

    def serve(self, kind: str, body: Payload, /, *, key: SigningKey = SERVER, **changes: object) -> bytes:
        """Sign anything as the aggregator; ``changes`` go to the context."""
        context = self.opened.context(FLEET, kind, AGGREGATOR, self.bound(kind, AGGREGATOR))
        return envelope.sign(write(body), context.with_(**changes), key)

    def say(self, name: str, kind: str, body: Payload, /, **changes: object) -> bytes:
        """Sign anything as a device; ``changes`` go to the context."""
        context = self.opened.context(FLEET, kind, name, self.bound(kind, name))
        return envelope.sign(write(body), context.with_(**changes), signing_key(name))

    def consent(self, name: str, survivors: bytes, /, **changes: object) -> bytes:
        """Sign a set U as a device."""
        secrets = self.devices[name]._secrets
        assert secrets is not None
        return self.say(name, topics.SURVIVORS, Consent(survivors=survivors, draw=secrets.draw), **changes)

    def sent(self, name: str, kind: str, way: str = "up") -> bytes:
        """Return what a device has sent, or with "down" was sent."""
        (data,) = {data for way_, name_, kind_, data in self.wire if (way_, name_, kind_) == (way, name, kind)}
        return data


def snapshot(machine: object) -> dict[str, object]:
    """Return everything a state machine remembers, to hold against a later snapshot."""
    return {name: _frozen(value) for name, value in vars(machine).items()}


def _frozen(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, DeviceLedger):
        return dict(value._rows)
    if isinstance(value, PinnedKeys):
        return dict(value._pins)
    if isinstance(value, Machine):
        return value.state
    if isinstance(value, Answers | ComplaintBook | GroupAttestation):
        return _frozen(vars(value))
    if isinstance(value, Trust):
        return dict(value.pins._pins), value.revocations.seen, value.revocations.held
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    if isinstance(value, list | set):
        return type(value)(value)
    if isinstance(value, Entropy):
        return "entropy"  # drawing bytes changes nothing that anybody can see
    return value
