"""The agent: one thread that takes events and carries out what the state machines ask for.

Messages come from the link's thread and training results from an executor, both through one queue, so nothing here is
concurrent. A message that breaks a rule is counted under its cause, logged once, and changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from covey_agent import authority, rotation
from covey_agent.authority import Authority
from covey_agent.blobs import BlobStore, PieceLog
from covey_agent.courier import STARTS, Courier
from covey_agent.data import Dataset, load_npz
from covey_agent.fetch import Fetcher
from covey_agent.home import BLOBS, PIECES, STATUS_FILE, AgentHome
from covey_agent.listed import ListIntake
from covey_agent.participation import Job, Participation, refusal
from covey_agent.profile import FirmwareProfile
from covey_agent.renewal import CertificateRenewal
from covey_agent.revoked import RevocationIntake
from covey_agent.snapshot import snapshot
from covey_agent.status import StatusFile
from covey_agent.store import Store
from covey_agent.tls_pairs import TlsPairs
from covey_agent.trainer import SEED_BYTES, CancelledError, Trainer, TrainResult
from covey_agent.transport import Link
from covey_agent.upkeep import Upkeep
from covey_agent.wallclock import synchronised_time
from covey_protocol import epochs, topics
from covey_protocol.bundle import Bundle
from covey_protocol.chunks import Piece, is_piece
from covey_protocol.device_round import DeviceRound
from covey_protocol.envelope import parse
from covey_protocol.epoch_member import EpochMember
from covey_protocol.errors import CoveyError, LocalError, MalformedError, PeerError, StaleError
from covey_protocol.identity import PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.refusals import Refusals
from covey_protocol.roster import read_open

log = logging.getLogger("covey.agent")

_IDLE = 1.0  # seconds
_ACKNOWLEDGE = 3.0  # less than the shortest keepalive: the link's thread stands still for so long
_SURVIVABLE = (CoveyError, ValueError, OSError)  # OSError: a full or failing card must not end the agent
_EPOCH_KINDS = (topics.EPOCH, topics.COMMITMENTS, topics.GROUPS)
_CLEARED = (topics.OPEN, topics.REVOCATIONS)  # retained: an empty payload says that there is none any more


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes
    handled: threading.Event | None = None


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
        wall_clock: Unix seconds where the system vouches for them, else None.
        pairs: The TLS certificates that it can show the broker, if it shows any.
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
        wall_clock: Callable[[], int | None] = synchronised_time,
        pairs: TlsPairs | None = None,
    ) -> None:
        self.home, self.profile = home, profile
        self._executor, self._entropy, self._clock = executor, entropy, clock
        self._make_trainer = make_trainer or self._tested_trainer
        self._round_class = round_class
        marks = store.marks()
        self.ledger = DeviceLedger(marks)
        self.counter = int(marks.get(STARTS, b"0")) + 1
        self._courier = Courier(home, profile, store, self.counter)
        self._authority = Authority(
            home.stored,
            marks,
            pins=PinnedKeys(self.ledger.pins()),
            ledger=self.ledger,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._trust = self._authority.trust
        self._epoch = EpochMember(
            trust=self._trust, device=home.device, key=home.key, entropy=entropy, remembered=marks
        )
        self._blobs = BlobStore(home.path / BLOBS)
        self._fetcher = Fetcher(2 * profile.model_bytes_max, PieceLog(home.path / PIECES))
        self._revoked = RevocationIntake(
            self.ledger, self._trust, courier=self._courier, blobs=self._blobs, fetcher=self._fetcher, clock=clock
        )
        self._tokens = ListIntake(
            *(lambda: self._authority.wanted_tokens, self._authority.take_tokens),
            courier=self._courier,
            blobs=self._blobs,
            fetcher=self._fetcher,
            clock=clock,
        )
        self._renewal = CertificateRenewal(home, pairs, self._courier, clock)
        self._tasks: dict[str, Participation] = {}
        self._events: queue.SimpleQueue[_Message | _Connected | _Trained | None] = queue.SimpleQueue()
        self._group_topic = ""
        self._stopping = False
        self.starts_anew = False
        self._holds = self._turned_away = ""
        self._upkeep = Upkeep(self._courier, under_way=self._under_way, refuse=self._refuse, clock=clock)
        self.refusals = Refusals()
        self._status = StatusFile(home.path / STATUS_FILE, clock)

    def deliver(self, topic: str, payload: bytes) -> None:
        """Take a message from the link's thread."""
        self._events.put(_Message(topic, payload))

    def deliver_and_wait(self, topic: str, payload: bytes) -> None:
        """Take a message from the link's thread, and return when what follows from it is durable.

        Then only is it acknowledged to the broker: what a crash kept from being handled comes again. An agent that is
        busy or stopping is not waited for.
        """
        handled = threading.Event()
        self._events.put(_Message(topic, payload, handled))
        deadline = time.monotonic() + _ACKNOWLEDGE
        while not handled.wait(0.1) and not self._stopping and time.monotonic() < deadline:
            pass

    def connected(self, session_present: bool) -> None:
        """Hear from the link's thread that a connection stands; the broker may have published the Last Will before."""
        self._events.put(_Connected(session_present))

    def stop(self) -> None:
        """Ask ``run`` to return; training ends at the next batch."""
        self._stopping = True
        self._events.put(None)

    def will(self) -> tuple[str, bytes]:
        """Return topic and payload of the Last Will."""
        return self._courier.state("lost")

    def run(self, link: Link) -> None:
        """Take part until ``stop``, or until ``starts_anew`` says that another agent has to go on from its marks."""
        self._stopping = False
        self._courier.attach(link)
        fleet, device = self.home.fleet, self.home.device
        base = [topics.pub(fleet, kind) for kind in authority.KINDS]  # first, for the others rest on them
        base += [topics.down(fleet, device, "+")]
        base += [topics.pub(fleet, kind, "+") for kind in (topics.OPEN, topics.CLOSE, topics.BLOB)]
        base += [topics.pub(fleet, topics.REVOCATIONS)]
        base += [topics.pub(fleet, "+", label) for label in epochs.own_labels(device)]
        link.subscribe(base)
        self._follow_group()
        if self._trust.operator_key == self.home.stored.operator_key:
            self._revoked.begin(self.home.stored.revocations)
        self._want_lists()
        link.start()
        while True:
            try:
                event = self._events.get(timeout=self._patience())
            except queue.Empty:
                event = _IDLE_EVENT
            if event is None:
                break
            self._handle(event)
            if isinstance(event, _Message) and event.handled is not None:
                event.handled.set()
            self._upkeep.announce(bool(self.holds))
            if self._upkeep.catch_up(isinstance(event, _Message) and bool(event.topic)):
                self._go_on()
            self._ask()
            self._status.write(self.snapshot)
        if self.starts_anew:
            return
        try:
            self._courier.announce("left", bool(self.holds))
        except _SURVIVABLE as error:  # such as a full outbox; the Last Will says it in the end
            self._refuse(error, topics.STATE)

    def finish(self) -> None:
        """Handle what came about epochs after ``run`` had ended, once the link has stopped: it was acknowledged.

        What follows from it is sent at the next start. A round's messages find their secrets gone then, and OPEN is
        retained, so the rest is dropped.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, _Message) and topics.kind_of(event.topic) in _EPOCH_KINDS:
                    self._handle(event)

    @property
    def holds(self) -> str:
        """What keeps this device from taking part, in words."""
        return self._authority.complaint or self._turned_away or self._holds

    def snapshot(self) -> dict[str, Any]:
        """Return what ``covey-agent status`` shows."""
        return snapshot(
            self.home,
            profile=self.profile.name,
            holds=self.holds,
            grouping=self._epoch.grouping,
            tasks=self._tasks,
            ledger=self.ledger,
            authority=self._authority,
            certificate=self._renewal.snapshot(),
            refusals=self.refusals.counts,
        )

    def _handle(self, event: _Message | _Connected | _Trained) -> None:
        try:
            if isinstance(event, _Trained):
                self._on_trained(event)
            elif isinstance(event, _Connected):
                self._on_connected(event.session_present)
            elif event.topic:
                self._on_message(event.topic, event.payload)
        except _SURVIVABLE as error:
            self._refuse(error, topics.kind_of(event.topic) if isinstance(event, _Message) else "training")
            if isinstance(event, _Message):
                self._authority.set_aside(event.topic, event.payload, error)

    def _refuse(self, error: Exception, where: str) -> None:
        level = self.refusals.note(error, where)
        log.log(level, "%s: refused on %s: %s", self.home.device, where, error)

    def _on_connected(self, session_present: bool) -> None:
        self._fetcher.connected(session_present, self._clock())
        self._upkeep.connected(session_present, bool(self.holds))
        self._want_lists()

    def _want_lists(self) -> None:
        """Wait for the operator's lists whose heads are here."""
        for intake in (self._tokens, self._revoked):
            try:
                intake.want()
            except _SURVIVABLE as error:  # such as a full disk; it is tried again at the next connection
                self._refuse(error, topics.BLOB)

    def _under_way(self) -> set[str]:
        return {task for task, part in self._tasks.items() if part.under_way}

    def _on_message(self, topic: str, payload: bytes) -> None:
        place = topics.parse(topic)
        if place.fleet != self.home.fleet or place.way == "up":
            raise MalformedError(f"{topic} is not for this device", cause="topic")
        if place.kind in _CLEARED and not payload:  # its task has ended; a list that was seen stays
            if place.id in self._tasks:
                self._tasks[place.id].give_up()
            return
        if is_piece(payload):
            piece = Piece.decode(payload)
            blob = self._fetcher.add(piece, self._clock())
            if blob is None:
                return
            if place.kind == topics.BLOB:
                self._on_blob(piece.digest, blob)
                return
            payload = blob
        self._on_signed(place, payload)

    def _on_signed(self, place: topics.Topic, payload: bytes) -> None:
        if place.kind in _EPOCH_KINDS:
            self._courier.carry(self._epoch.receive(place.kind, payload))
            if place.kind == topics.GROUPS:
                self._follow_group()
                self._go_on()
        elif place.kind == topics.OPEN:
            self._on_open(place.id, payload)
        elif place.kind == topics.REVOCATIONS:
            self._revoked.on_head(payload)
            self._go_on()
        elif place.kind in authority.KINDS:
            aside = self._authority.take(place.kind, payload, self._courier)
            self._want_lists()
            for topic, waiting in aside:
                self._handle(_Message(topic, waiting))
            self._go_on()
        elif place.kind == topics.RECALL:
            if self._courier.recall(payload, self.ledger, self._trust.aggregator_key):
                self.starts_anew = True
                self.stop()
        elif place.kind == topics.REFUSED:
            self._turned_away = self._courier.refused(payload, self._trust.aggregator_key)
            log.error("%s: %s", self.home.device, self._turned_away)
        elif place.kind == topics.CERTIFICATE:
            self._renewal.take(payload, self._trust.aggregator_key)
        elif place.kind == topics.HAVE:
            self._courier.send_again(payload, self._trust.aggregator_key)
        else:
            self._on_round(place.kind, payload)

    def _on_blob(self, digest: bytes, blob: bytes) -> None:
        if not (self._revoked.on_blob(digest, blob) or self._tokens.on_blob(digest, blob)):
            self._blobs.put(digest, blob)
        self._fetcher.forget(digest)
        self._go_on()

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
            self.ledger.revocations.check_manifest(opened.manifest.revocations)
            part.opened(opened)
        except PeerError as error:
            self._holds = refusal(error, task)
            raise
        manifest = opened.manifest
        named = {manifest.bundle.digest, manifest.model.digest} | self._revoked.wanted() | self._tokens.wanted()
        if manifest.delta is not None:
            named.add(manifest.delta.blob.digest)
        self._fetcher.keep_only(named)  # what older rounds waited for is served no longer, and uses the budget up
        self._go_on()

    def _on_round(self, kind: str, payload: bytes) -> None:
        message = parse(payload)
        part = self._tasks.get(message.task)
        if part is not None and kind == topics.CLOSE and part.overslept(payload, self._trust):
            return
        if part is None or part.round is None:
            raise StaleError(f"{kind} for a round that this device is not in", cause="stage")
        effects = part.round.receive(kind, payload)
        with self._declining(part, part.round):
            self._courier.carry(effects, part.task)
        if kind == topics.ROSTER and self.home.stored.chain.renewals:
            rotation.confirmed(self.home)
        if kind == topics.CLOSE and part.round.closed is not None:
            for blob in part.close(part.round.closed):
                self._fetcher.want(blob.digest, blob.bytes, self._clock())
        job = part.job()
        if job is not None:
            self._executor.submit(self._train, part, job)
        with self._declining(part, part.round):
            self._courier.carry(part.mask(), part.task)

    def _on_trained(self, event: _Trained) -> None:
        part, round_ = event.participation, event.job.round
        if isinstance(event.result, CancelledError):
            return
        with self._declining(part, round_):
            if isinstance(event.result, CoveyError):
                raise event.result
            part.trained(round_, event.result)
            self._courier.carry(part.mask(), part.task)

    @contextlib.contextmanager
    def _declining(self, part: Participation, round_: DeviceRound) -> Iterator[None]:
        """Leave a round in which something goes wrong on our side, so that nobody waits for what will not come."""
        try:
            yield
        except CoveyError as error:
            if not part.is_over(round_):
                self._holds = f"left round {round_.opened.round} of {part.task!r}: {error}"
                # The words stay here: they may hold a loss or a file's name.
                with contextlib.suppress(StaleError):  # too late to leave
                    effects = round_.decline(error.cause, "nothing of its training is sent")
                    with contextlib.suppress(LocalError):  # no room for this either
                        self._courier.carry(effects, part.task)
            raise

    def _go_on(self) -> None:
        """Join every round whose grouping, bundle and model are there; wait for the rest."""
        if self._stopping or self._upkeep.hushed or self._authority.complaint:
            return
        for task, part in self._tasks.items():
            try:
                for blob in part.missing():
                    self._fetcher.want(blob.digest, blob.bytes, self._clock(), overdue=part.overdue(blob))
                opened = part.ready(self._epoch.grouping)
                if opened is None:
                    continue
                if self._trust.successions.lacks(opened.manifest.succession):
                    self._holds = f"not in {task!r} yet: waiting for the change of the operator's key to be complete"
                    continue
                if opened.manifest.revocations > self.ledger.revocations.held:
                    self._holds = f"not in {task!r} yet: waiting for revocation list {opened.manifest.revocations}"
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
            self._holds = self._turned_away = ""
            part.joined(round_)
            with self._declining(part, round_):
                self._courier.forget(task)
                self._courier.carry(effects, part.task)
            manifest = opened.manifest
            self._blobs.keep_only({manifest.bundle.digest, manifest.model.digest})
            if self._blobs.get(manifest.model.digest) is None and part.weights is not None:
                self._blobs.put(manifest.model.digest, part.weights.astype("<f4", copy=False).tobytes())

    def _train(self, part: Participation, job: Job) -> None:
        """Run on the executor."""
        result: TrainResult | CoveyError
        try:
            plan = job.round.opened.manifest.plan
            seed = self._entropy(SEED_BYTES)
            result = job.trainer.train(
                job.weights, job.data, plan, seed=seed, cancel=lambda: self._stopping or part.is_over(job.round)
            )
        except CoveyError as error:
            result = error
        except Exception as error:
            result = LocalError(f"training failed: {error}", cause="training")
        self._events.put(_Trained(part, job, result))

    def _ask(self) -> None:
        """Ask for what does not come by itself: blobs, and a certificate that ends."""
        for ask in self._fetcher.due(self._clock(), self._courier.online):
            try:
                self._courier.ask(ask)
            except LocalError as error:  # such as a full outbox; the question is put again later
                self._refuse(error, topics.WANT)

        try:
            self._renewal.ask(self._authority.now())
        except _SURVIVABLE as error:
            self._refuse(error, topics.RENEW)

    def _follow_group(self) -> None:
        """Listen to this device's group, and no longer to the one before."""
        link = self._courier.link
        grouping = self._epoch.grouping
        topic = topics.pub(self.home.fleet, "+", grouping.group) if grouping else ""
        if topic == self._group_topic:
            return
        if self._group_topic:
            link.unsubscribe([self._group_topic])
        if topic:
            link.subscribe([topic])
        self._group_topic = topic

    def _patience(self) -> float:
        due, now = self._fetcher.next_due(), self._clock()
        times = [*self._upkeep.due(), *([] if due is None else [due])]
        return min([_IDLE, *(max(0.0, at - now) for at in times)])

    def _load_data(self, bundle: Bundle) -> Dataset:
        return load_npz(self.home.data_path, bundle.manifest)

    def _tested_trainer(self, bundle: Bundle) -> Trainer:
        trainer = Trainer(bundle, threads=self.home.config.threads or self.profile.threads)
        trainer.self_test()
        return trainer
