"""The agent: one thread that takes events and carries out what the state machines ask for.

Messages come from the link's thread and training results from an executor, both through one queue, so nothing here is
concurrent. A message that breaks a rule is counted under its cause, logged once, and changes nothing.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from covey_agent.blobs import BlobStore
from covey_agent.data import Dataset, load_npz
from covey_agent.fetch import Fetcher
from covey_agent.home import BLOBS, STATUS_FILE, AgentHome
from covey_agent.participation import Job, Participation, refusal
from covey_agent.profile import FirmwareProfile
from covey_agent.status import StatusFile
from covey_agent.store import Store
from covey_agent.trainer import SEED_BYTES, Trainer, TrainResult
from covey_agent.transport import Link
from covey_protocol import __version__, epochs, topics
from covey_protocol.bundle import Bundle
from covey_protocol.chunks import PIECE_OVERHEAD, Piece, is_piece, split
from covey_protocol.device_round import DeviceRound
from covey_protocol.digest import content_digest, short
from covey_protocol.effects import Effect, Note, Remember, Send
from covey_protocol.envelope import Context, open_signed, parse, sign
from covey_protocol.epoch_member import EpochMember
from covey_protocol.errors import CoveyError, LocalError, MalformedError, PeerError, StaleError
from covey_protocol.identity import AGGREGATOR, PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Have, State, Want
from covey_protocol.payload import read, write
from covey_protocol.refusals import Refusals
from covey_protocol.roster import Trust, read_open

log = logging.getLogger("covey.agent")

CONNECTIONS = "connections"
_IDLE = 1.0  # seconds
_SURVIVABLE = (CoveyError, ValueError, OSError)  # OSError: a full or failing card must not end the agent
_EPOCH_KINDS = (topics.EPOCH, topics.COMMITMENTS, topics.GROUPS)


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes


@dataclass(frozen=True)
class _Connected:
    session_present: bool


@dataclass(frozen=True)
class _Trained:
    participation: Participation
    job: Job
    result: TrainResult | CoveyError


_IDLE_EVENT = _Message("", b"")


class Agent:
    """One device in its fleet.

    Args:
        home: The enrolled home.
        profile: Its firmware profile.
        store: Its database.
        executor: Where training runs; simulated fleets share one.
        make_trainer: Builds the trainer of a bundle; simulated attackers pass their own.
        round_class: Takes the device through a round; simulated attackers pass their own.
        entropy: Source of uniform bytes.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        home: AgentHome,
        *,
        profile: FirmwareProfile,
        store: Store,
        executor: Executor,
        make_trainer: Callable[[Bundle], Trainer] | None = None,
        round_class: type[DeviceRound] = DeviceRound,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.home, self.profile = home, profile
        self._store, self._executor, self._entropy, self._clock = store, executor, entropy, clock
        self._make_trainer = make_trainer or self._tested_trainer
        self._round_class = round_class
        marks = store.marks()
        self.ledger = DeviceLedger(marks)
        self.counter = int(marks.get(CONNECTIONS, b"0")) + 1
        self._trust = Trust(
            home.fleet,
            home.stored.operator_key,
            home.delegation.aggregator_key,
            home.policy,
            PinnedKeys(self.ledger.pins()),
        )
        self._epoch = EpochMember(
            fleet=home.fleet,
            device=home.device,
            key=home.key,
            aggregator_key=home.delegation.aggregator_key,
            policy=home.policy,
            entropy=entropy,
            remembered=marks,
        )
        self._blobs = BlobStore(home.path / BLOBS)
        self._fetcher = Fetcher(2 * profile.model_bytes_max)
        self._tasks: dict[str, Participation] = {}
        self._sent: dict[bytes, tuple[str, bytes]] = {}  # digest → topic and blob of the last masked vector
        self._events: queue.SimpleQueue[_Message | _Connected | _Trained | None] = queue.SimpleQueue()
        self._link: Link | None = None
        self._group_topic = ""
        self._holds = ""
        self.refusals = Refusals()
        self._status = StatusFile(home.path / STATUS_FILE, clock)

    def deliver(self, topic: str, payload: bytes) -> None:
        """Take a message from the link's thread."""
        self._events.put(_Message(topic, payload))

    def connected(self, session_present: bool) -> None:
        """Hear from the link's thread that a connection stands; the broker may have published the Last Will before."""
        self._events.put(_Connected(session_present))

    def stop(self) -> None:
        """Ask ``run`` to return."""
        self._events.put(None)

    def will(self) -> tuple[str, bytes]:
        """Return topic and payload of the Last Will."""
        return self._state_topic(), self._state("lost")

    def run(self, link: Link) -> None:
        """Take part until ``stop``."""
        self._link = link
        self._store.carry([Remember(CONNECTIONS, str(self.counter).encode())], topic_of=self._topic, largest=1 << 16)
        fleet, device = self.home.fleet, self.home.device
        base = [topics.down(fleet, device, "+")]
        base += [topics.pub(fleet, kind, "+") for kind in (topics.OPEN, topics.CLOSE, topics.BLOB)]
        base += [topics.pub(fleet, "+", label) for label in epochs.own_labels(device)]
        link.subscribe(base)
        self._follow_group()
        link.start()
        while True:
            try:
                event = self._events.get(timeout=self._patience())
            except queue.Empty:
                event = _IDLE_EVENT
            if event is None:
                break
            self._handle(event)
            self._ask()
            self._status.write(self.snapshot)
        self._announce("left")

    def snapshot(self) -> dict[str, Any]:
        """Return what ``covey-agent status`` shows."""
        grouping = self._epoch.grouping
        return {
            "pid": os.getpid(),
            "fleet": self.home.fleet,
            "device": self.home.device,
            "profile": self.profile.name,
            "epoch": grouping.epoch if grouping else None,
            "group": grouping.group if grouping else None,
            "holds": self._holds,
            "tasks": {
                task: {
                    "round": part.round.opened.round if part.round else None,
                    "stage": str(part.round.stage) if part.round else "waiting",
                    "rounds_closed": part.closed,
                    "model": short(part.model_digest),
                }
                for task, part in self._tasks.items()
            },
            "exposures": self.ledger.exposures(),
            "refusals": dict(self.refusals.counts),
        }

    def _handle(self, event: _Message | _Connected | _Trained) -> None:
        try:
            if isinstance(event, _Trained):
                self._on_trained(event)
            elif isinstance(event, _Connected):
                self._announce("online")
            elif event.topic:
                self._on_message(event.topic, event.payload)
        except _SURVIVABLE as error:
            self._refuse(error, topics.kind_of(event.topic) if isinstance(event, _Message) else "training")

    def _refuse(self, error: Exception, where: str) -> None:
        level = self.refusals.note(error, where)
        log.log(level, "%s: refused on %s: %s", self.home.device, where, error)

    def _on_message(self, topic: str, payload: bytes) -> None:
        place = topics.parse(topic)
        if place.fleet != self.home.fleet or place.way == "up":
            raise MalformedError(f"{topic} is not for this device", cause="topic")
        if place.kind == topics.OPEN and not payload:
            return  # the task has ended: its retained message was cleared
        if is_piece(payload):
            piece = Piece.decode(payload)
            blob = self._fetcher.add(piece, self._clock())
            if blob is None:
                return
            if place.kind == topics.BLOB:
                self._blobs.put(piece.digest, blob)
                self._go_on()
                return
            payload = blob
        if place.kind in _EPOCH_KINDS:
            self._carry(self._epoch.receive(place.kind, payload), "epoch")
            if place.kind == topics.GROUPS:
                self._follow_group()
                self._go_on()
        elif place.kind == topics.OPEN:
            self._on_open(place.id, payload)
        elif place.kind == topics.HAVE:
            self._on_have(payload)
        else:
            self._on_round(place.kind, payload)

    def _on_open(self, task: str, payload: bytes) -> None:
        opened = read_open(payload, task, self._trust)
        self.ledger.check_round(task, opened.round, opened.attempt)
        part = self._tasks.get(task)
        if part is None:
            part = self._tasks[task] = Participation(
                task,
                profile=self.profile,
                get_blob=self._blobs.get,
                make_trainer=self._make_trainer,
                load_data=self._load_data,
            )
        try:
            part.opened(opened)
        except PeerError as error:
            self._holds = refusal(error, task)
            raise
        manifest = opened.manifest
        named = {manifest.bundle.digest, manifest.model.digest}
        if manifest.delta is not None:
            named.add(manifest.delta.blob.digest)
        self._fetcher.keep_only(named)  # what older rounds waited for is served no longer, and uses the budget up
        self._go_on()

    def _on_round(self, kind: str, payload: bytes) -> None:
        message = parse(payload)
        part = self._tasks.get(message.task)
        if part is None or part.round is None:
            raise StaleError(f"{kind} for a round that this device is not in", cause="stage")
        self._carry(part.round.receive(kind, payload), self._tag(part.round))
        if kind == topics.CLOSE and part.round.closed is not None:
            for blob in part.close(part.round.closed):
                self._fetcher.want(blob.digest, blob.bytes, self._clock())
        job = part.job()
        if job is not None:
            self._executor.submit(self._train, part, job)
        self._carry(part.mask(), self._tag(part.round))

    def _on_trained(self, event: _Trained) -> None:
        part, round_ = event.participation, event.job.round
        try:
            if isinstance(event.result, CoveyError):
                raise event.result
            part.trained(round_, event.result)
        except CoveyError as error:
            # Nobody should wait for what will not come.
            if round_ is part.round and not round_.finished:
                self._holds = f"left round {round_.opened.round} of {part.task!r}: {error}"
                self._carry(round_.decline(error.cause, str(error)), self._tag(round_))
            raise
        self._carry(part.mask(), self._tag(round_))

    def _on_have(self, payload: bytes) -> None:
        """Send again what the aggregator lacks of a masked vector."""
        context = Context(fleet=self.home.fleet, kind=topics.HAVE, sender=AGGREGATOR, recipient=self.home.device)
        have = read(Have, open_signed(payload, context, self.home.delegation.aggregator_key))
        if have.digest not in self._sent:
            raise StaleError(f"blob {short(have.digest)} is not one this device has sent lately", cause="stage")
        topic, blob = self._sent[have.digest]
        assert self._link is not None
        for piece in split(blob, self._largest() - PIECE_OVERHEAD, have.have):
            self._link.publish(topic, piece.encode())

    def _go_on(self) -> None:
        """Join every round whose grouping, bundle and model are there; wait for the rest."""
        for task, part in self._tasks.items():
            try:
                for blob in part.missing():
                    self._fetcher.want(blob.digest, blob.bytes, self._clock())
                opened = part.ready(self._epoch.grouping)
                if opened is None:
                    continue
                assert self._epoch.grouping is not None
                round_ = self._round_class(
                    name=self.home.device,
                    key=self.home.key,
                    chain=self.home.stored.chain,
                    trust=self._trust,
                    grouping=self._epoch.grouping,
                    opened=opened,
                    ledger=self.ledger,
                    entropy=self._entropy,
                )
                effects = round_.join()
            except _SURVIVABLE as error:
                part.give_up()
                self._holds = f"not taking part in {task!r}: {error}"
                self._refuse(error, f"task {task}")
                continue
            self._holds = ""
            self._store.outbox.discard(tag=f"{task}/")
            part.joined(round_)
            self._carry(effects, self._tag(round_))
            manifest = opened.manifest
            self._blobs.keep_only({manifest.bundle.digest, manifest.model.digest})
            if self._blobs.get(manifest.model.digest) is None and part.weights is not None:
                self._blobs.put(manifest.model.digest, part.weights.astype("<f4", copy=False).tobytes())

    def _train(self, part: Participation, job: Job) -> None:
        """Run on the executor."""
        result: TrainResult | CoveyError
        try:
            plan = job.round.opened.manifest.plan
            result = job.trainer.train(job.weights, job.data, plan, seed=self._entropy(SEED_BYTES))
        except CoveyError as error:
            result = error
        except Exception as error:
            result = LocalError(f"training failed: {error}", cause="training")
        self._events.put(_Trained(part, job, result))

    def _carry(self, effects: list[Effect], tag: str) -> None:
        if not effects:
            return
        for effect in effects:
            if isinstance(effect, Note):
                log.info("%s: %s: %s", self.home.device, effect.cause, effect.text)
            elif isinstance(effect, Send) and effect.transfer:
                digest = content_digest(effect.data)
                self._sent = {digest: (self._topic(effect, digest), effect.data)}
        self._store.carry(effects, topic_of=self._topic, largest=self._largest(), tag=tag)
        kick = getattr(self._link, "kick", None)
        if kick is not None:
            kick()

    def _ask(self) -> None:
        """Ask for blobs that do not come by themselves."""
        assert self._link is not None
        for digest, have in self._fetcher.due(self._clock()):
            context = Context(fleet=self.home.fleet, kind=topics.WANT, sender=self.home.device)
            data = sign(write(Want(digest=digest, have=have)), context, self.home.key)
            try:
                self._link.publish(topics.up(self.home.fleet, self.home.device, topics.WANT), data)
            except LocalError as error:  # such as a full outbox; the question is put again later
                self._refuse(error, topics.WANT)

    def _follow_group(self) -> None:
        """Listen to this device's group, and no longer to the one before."""
        assert self._link is not None
        grouping = self._epoch.grouping
        topic = topics.pub(self.home.fleet, "+", grouping.group) if grouping else ""
        if topic == self._group_topic:
            return
        if self._group_topic:
            self._link.unsubscribe([self._group_topic])
        if topic:
            self._link.subscribe([topic])
        self._group_topic = topic

    def _patience(self) -> float:
        due = self._fetcher.next_due()
        return _IDLE if due is None else min(_IDLE, max(0.0, due - self._clock()))

    def _largest(self) -> int:
        link_limit = int(getattr(self._link, "max_payload", self.profile.chunk_bytes))
        return min(self.profile.chunk_bytes, link_limit)

    def _load_data(self, bundle: Bundle) -> Dataset:
        manifest = bundle.manifest
        return load_npz(self.home.data_path, manifest.input.shape, manifest.classes)

    def _tested_trainer(self, bundle: Bundle) -> Trainer:
        trainer = Trainer(bundle, threads=self.home.config.threads or self.profile.threads)
        trainer.self_test()
        return trainer

    def _topic(self, send: Send, digest: bytes) -> str:
        transfer = digest.hex()[:16] if digest else ""
        return topics.up(self.home.fleet, self.home.device, send.kind, transfer)

    def _tag(self, round_: DeviceRound) -> str:
        return f"{round_.opened.task}/"

    def _announce(self, status: str) -> None:
        """Publish this device's state; only the newest is worth sending."""
        assert self._link is not None
        self._store.outbox.discard(self._state_topic())
        self._link.publish(self._state_topic(), self._state(status), retain=True)

    def _state_topic(self) -> str:
        return topics.up(self.home.fleet, self.home.device, topics.STATE)

    def _state(self, status: str) -> bytes:
        state = State(
            status=status,  # type: ignore[arg-type]
            counter=self.counter,
            chain=self.home.stored.chain,
            software=f"covey {__version__}",
            holds=self._holds[:200],
        )
        context = Context(fleet=self.home.fleet, kind=topics.STATE, sender=self.home.device)
        return sign(write(state), context, self.home.key)
