"""The aggregator's process: one event loop that feeds the coordinator and carries out what it decides.

Messages, time and finished jobs come in; messages go out. Sums, the combination of groups and looks of the probes run
in threads, because libsodium, numpy and onnxruntime release the interpreter there. Nothing that arrives can end the
service: it is counted, logged once with its cause, and dropped.

What happens within a few milliseconds becomes durable with one write to the disk; only then messages go out and those
that came in are acknowledged. So the service may be killed at any instant: what the broker was told to have been taken
is in the journal, and what was published follows from the journal. A disk that cannot be written ends the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from covey_aggregator.attesting import make_sketches
from covey_aggregator.authority import LOUD
from covey_aggregator.budgets import Budgets
from covey_aggregator.combine import Combined, GroupMean, group_mean
from covey_aggregator.coordinator import Coordinator, Phase
from covey_aggregator.files import FolderLock
from covey_aggregator.home import DATABASE_FILE, LOCK_FILE, ServerHome
from covey_aggregator.home_watch import HomeChanged, HomeWatch
from covey_aggregator.link import BrokerLink
from covey_aggregator.probing import Looked
from covey_aggregator.round_run import RoundRun
from covey_aggregator.spool import Spool
from covey_aggregator.standing import Standing, Word
from covey_aggregator.store import Store
from covey_aggregator.transfers import Downloads, Transfers
from covey_aggregator.webhooks import Webhook, Webhooks
from covey_protocol import messages, topics
from covey_protocol.chunks import PIECE_BYTES, PIECE_OVERHEAD, Piece, is_piece, split
from covey_protocol.effects import Deliver, Effect, Expect, Note, Publish
from covey_protocol.envelope import Context, open_signed, sign
from covey_protocol.errors import (
    ConfigError,
    CoveyError,
    LocalError,
    MalformedError,
    PeerError,
    RefusedError,
    StaleError,
)
from covey_protocol.group_round import GroupRound
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Want
from covey_protocol.payload import read, write
from covey_protocol.prg import Ring
from covey_protocol.refusals import Refusals
from covey_protocol.ring import RingScale

log = logging.getLogger("covey.aggregator")

_TICK = 0.1
# Seconds: what comes within them is committed together. On a slow or busy disk they grow with what a commit takes.
_GATHER, _GATHER_MAX = 0.005, 0.1
_POLL = 1.0
_HAVE_SECONDS = 120
_BLOB_SECONDS = 600  # for which the broker keeps pieces for those who are away; later they ask for what they need
_SAMPLE = 200
_ALERT_TEXT = 1000
_MQTT = "mqtt"


class Service:
    """One fleet's aggregator.

    Args:
        home: Its home.
        store: Its database; opened from the home if not given.
        entropy: Source of uniform bytes.
        clock: Monotonic seconds.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        home: ServerHome,
        *,
        store: Store | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._home, self._clock = home, clock
        self.store = store or Store(home.path / DATABASE_FILE)
        self.store.defer()
        self.coordinator = Coordinator(home, self.store, entropy=entropy, wall_clock=wall_clock)
        self.refusals = Refusals()
        budgets = home.settings.budgets
        self.budgets = Budgets(budgets, self.coordinator.registry.knows, entropy(16))
        self._strangers = 0
        self._transfers = Transfers(home.fleet, home.key, budgets.reassembly_bytes)
        self._downloads = Downloads()
        broker = home.settings.broker
        own = [topics.up(home.fleet, "+", "#")]
        self.link = BrokerLink(broker, home.path, own, self.on_message, self._on_connect)
        self._alerts = self.coordinator.chronicle.alerts
        hooks = [Webhook(settings, home.path, home.fleet) for settings in home.settings.alerts.webhooks]
        self._webhooks = Webhooks(hooks, self._alerts, wall_clock=wall_clock)
        self._announced = self._alerts.heard(_MQTT)
        self._jobs = ThreadPoolExecutor(2, "covey-jobs")
        self._combining = False
        self._round: RoundRun | None = None  # the one that transfers belong to
        self._standing = Standing()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gathered: list[Effect] = []
        self._unacknowledged: list[Callable[[], object]] = []
        self._due = asyncio.Event()
        self._connections = 0
        self._watch = HomeWatch(home)
        self.home_changed = False

    async def run(self) -> None:
        """Serve until cancelled, or until ``home_changed`` says that another service has to go on with the home.

        Raises:
            ConfigError: A password or certificate cannot be read, or another process serves this home.
            LocalError: The disk cannot be written.
        """
        self._loop = asyncio.get_running_loop()
        try:
            with FolderLock(self._home.path / LOCK_FILE, "`covey serve`"):
                await self._serve()
        finally:
            self._loop = None
            self._jobs.shutdown(wait=False, cancel_futures=True)
            self.coordinator.close()
            self.store.close()

    async def _serve(self) -> None:
        log.info("aggregator of fleet %s", self._home.fleet)
        self._carry(self.coordinator.tick(self._clock()))  # takes up what was open, before any message comes
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.link.run(), name="covey-link")
                group.create_task(self._tick(), name="covey-tick")
                group.create_task(self._flushing(), name="covey-flush")
                group.create_task(self._webhooks.run(), name="covey-webhooks")
        except BaseExceptionGroup as errors:
            if errors.subgroup(HomeChanged) is not None:
                log.info("the operator's word for this home has changed; going on under it")
                self.home_changed = True
                return
            for kind in (ConfigError, OSError, sqlite3.Error):
                found: BaseException | None = errors.subgroup(kind)
                while isinstance(found, BaseExceptionGroup):
                    found = found.exceptions[0]
                if isinstance(found, ConfigError):
                    raise found from None
                if found is not None:
                    raise LocalError(f"{self._home.path}: {found}", cause="disk") from found
            raise
        finally:
            # Stopped in between: what was gathered is kept, and said by the next start.
            with contextlib.suppress(OSError, sqlite3.Error):
                self.coordinator.commit()

    def on_message(self, topic: str, payload: bytes, acknowledge: Callable[[], object] | None = None) -> None:
        """Take one message; raises only when the disk fails.

        Args:
            topic, payload: The message.
            acknowledge: Called when it need not be delivered again.
        """
        now = self._clock()
        dropped = self.budgets.admit(topic, len(payload), now)
        if dropped:
            self.refusals.counts[dropped] += 1
        else:
            self._take(topic, payload, now)
        if acknowledge is not None:
            self._unacknowledged.append(acknowledge)
        self._wake()

    def _take(self, topic: str, payload: bytes, now: float) -> None:
        try:
            self._dispatch(topic, payload, now)
        except (CoveyError, ValueError) as error:
            level = self.refusals.note(error, topics.kind_of(topic))
            log.log(level, "refused on %s: %s", topic[:_SAMPLE], error)
            if getattr(error, "cause", "") == "second-key":
                self.coordinator.chronicle.second_key(topics.device_of(topic), str(error))
            if isinstance(error, PeerError) and topics.kind_of(topic) == topics.STATE:
                self._carry([*self.coordinator.doorkeeper.turn_away(topics.device_of(topic), payload, error, now)])

    def _dispatch(self, topic: str, payload: bytes, now: float) -> None:
        place = topics.parse(topic)
        if place.fleet != self._home.fleet or place.way != "up":
            raise MalformedError(f"{topic[:_SAMPLE]} is not for this aggregator", cause="topic")
        run = self.coordinator.run
        if run is not None:
            run.bytes_up += len(payload)
        if place.kind == topics.WANT:
            self._on_want(place.device, payload, now)
        elif is_piece(payload):
            if place.kind != topics.MASKED or not place.id:
                raise MalformedError(f"a piece of a blob on {topic[:_SAMPLE]}, or no signed message", cause="unsigned")
            blob = self._transfers.add(place.device, Piece.decode(payload), now)
            if blob is not None:
                self._carry(self.coordinator.vector(place.device, blob, now))
        else:
            self._carry(self.coordinator.receive(place, payload, now))
            if place.kind == topics.STATE:
                self._standing.came_back(place.device, self.coordinator.run, now)

    def _on_want(self, device: str, payload: bytes, now: float) -> None:
        """Send the pieces of a blob that a device lacks."""
        if not self.coordinator.registry.knows(device):
            raise StaleError(f"{device!r} asks for a blob and has not shown an identity", cause="unknown-device")
        context = Context(fleet=self._home.fleet, kind=topics.WANT, sender=device)
        want = read(Want, open_signed(payload, context, self.coordinator.registry.key(device)))
        blob = self.coordinator.blob(want.digest)
        if blob is None:
            raise RefusedError(f"{device!r} asks for a blob that is not served", cause="want")
        for data in self._downloads.answer(device, want, blob, self._piece_bytes, now):
            self._publish(topics.down(self._home.fleet, device, topics.BLOB), data, expiry=_BLOB_SECONDS)

    async def _tick(self) -> None:
        polled = 0.0
        while True:
            now = self._clock()
            try:
                if now - polled >= _POLL:
                    polled = now
                    self._watch.check()
                    self._carry(self._stop_if_asked())
                    self._carry(self.coordinator.poll(now))
                    self._watch_budgets(now)
                if self.link.connected.is_set():
                    self._follow_connection(now)
                    self._carry(self.coordinator.tick(now))
                    self._say_again(self._standing.due(self.coordinator.run, now))
                self._carry(list(self._transfers.stalled(now)))
            except PeerError as error:
                log.log(self.refusals.note(error, "tick"), "%s", error)
            await asyncio.sleep(_TICK)

    def _stop_if_asked(self) -> list[Effect]:
        task = self.coordinator.task
        row = self.store.task(task.name) if task else None
        return self.coordinator.stop_task(row.task.name) if row is not None and row.status == "stopping" else []

    def _watch_budgets(self, now: float) -> None:
        """Name devices that flood, once; sum up the others; make up for states that were dropped."""
        for flood in self.budgets.news(now):
            amount = f"{flood.messages} messages, {flood.bytes} bytes dropped"
            if flood.over:
                self._carry([Note("flood", f"{flood.device} keeps to its budget again; {amount}")])
                continue
            text = f"{flood.device} sends more than its budget; what is beyond it is dropped"
            self.coordinator.chronicle.alerts.flood(flood.device, text)
            self._carry([Note("flood", text)])
        self.coordinator.overlook(self.budgets.flooding, now)
        if self.budgets.strangers >= 2 * self._strangers + 1:  # ever more rarely, however many they are
            log.warning("%d messages of senders without an identity were dropped so far", self.budgets.strangers)
            self._strangers = self.budgets.strangers
        if self.budgets.states_again(now):
            self.link.subscribe_again()

    def _follow_connection(self, now: float) -> None:
        """Stages do not run out while nobody can be heard, and have time left when the broker is back."""
        if self.link.connections != self._connections:
            self._connections = self.link.connections
            self.coordinator.reconnected(now)

    def _carry(self, effects: list[Effect]) -> None:
        """Gather what is to be done once all that led to it is durable."""
        if self.coordinator.run is not self._round:
            self._round = self.coordinator.run
            self._transfers.clear()
            self._standing.clear()
        for effect in effects:
            match effect:
                case Expect():  # says what may come in, and nothing to anybody
                    now = self._clock()
                    self._transfers.expect(effect, now)
                    self.budgets.announced(effect.device, effect.bytes, now)
                case Note(cause, text):
                    self.store.event(cause, text)
                    log.log(logging.WARNING if cause in LOUD else logging.INFO, "%s", text)
                case _:
                    self._gathered.append(effect)
        self._wake()

    def _wake(self) -> None:
        if self._loop is None:
            self._flush()
        else:
            self._due.set()

    async def _flushing(self) -> None:
        pause = _GATHER
        while True:
            await self._due.wait()
            await asyncio.sleep(pause)
            self._due.clear()
            began = time.perf_counter()
            self._flush()
            pause = min(_GATHER_MAX, max(_GATHER, 2 * (time.perf_counter() - began)))

    def _flush(self) -> None:
        """Commit, then act: publish, acknowledge, begin jobs."""
        self.coordinator.commit()
        self._announce()
        effects, self._gathered = self._gathered, []
        for effect in effects:
            match effect:
                case Publish(kind, id, data, retain):
                    self._publish_pieces(topics.pub(self._home.fleet, kind, id), data, kind, retain)
                case Deliver(device, topics.HAVE, data):  # asked again and again; only the newest is worth delivering
                    self._publish(topics.down(self._home.fleet, device, topics.HAVE), data, expiry=_HAVE_SECONDS)
                case Deliver(device, kind, data):
                    self._publish_pieces(topics.down(self._home.fleet, device, kind), data, kind, False)
                case _:
                    raise AssertionError(f"no carrier for {effect}")
        heard, self._unacknowledged = self._unacknowledged, []
        for acknowledge in heard:
            acknowledge()
        self._start_jobs()

    def _announce(self) -> None:
        """Let alerts that are durable go out, to whoever listens for them."""
        last = self._alerts.last()
        self._webhooks.rung(last)
        if last == self._announced:
            return
        if self._home.settings.alerts.mqtt:
            for alert in self._alerts.after(self._announced):
                log.warning("alert %d, %s: %s", alert.id, alert.kind, alert.text)
                body = messages.Alert(
                    number=alert.id,
                    at=int(alert.at),
                    alert=alert.kind,
                    device=alert.device,
                    text=alert.text[:_ALERT_TEXT],
                    task=alert.task,
                    round=alert.round,
                )
                context = Context(fleet=self._home.fleet, kind=topics.ALERT, sender=AGGREGATOR)
                self._publish(topics.pub(self._home.fleet, topics.ALERT), sign(write(body), context, self._home.key))
        self._announced = last
        self._alerts.hear(_MQTT, last)

    @property
    def _piece_bytes(self) -> int:
        """Bytes of a blob in one piece, by what the broker takes at the moment."""
        return min(PIECE_BYTES, self.link.max_payload) - PIECE_OVERHEAD

    def _publish_pieces(self, topic: str, data: bytes, kind: str, retain: bool) -> None:
        if kind != topics.BLOB:
            self._standing.keep(Word(topic, data, retain))
        if kind != topics.BLOB and len(data) <= min(PIECE_BYTES, self.link.max_payload):
            self._publish(topic, data, retain)
            return
        for piece in split(data, self._piece_bytes):
            self._publish(topic, piece.encode(), expiry=_BLOB_SECONDS if kind == topics.BLOB else 0)

    def _publish(self, topic: str, data: bytes, retain: bool = False, expiry: int = 0) -> None:
        if self.coordinator.run is not None:
            self.coordinator.run.bytes_down += len(data)
        try:
            self.link.publish(topic, data, retain=retain, expiry=expiry)
        except LocalError as error:
            log.log(self.refusals.note(error, topics.kind_of(topic)), "%s", error)

    def _on_connect(self, session_present: bool) -> None:
        """Say again what stands, if the broker has forgotten sessions and retained messages; twice harms nobody."""
        if session_present or self.link.connections <= 1:
            return
        self.coordinator.succession.again()
        self.coordinator.authority.again()
        self.coordinator.revocations.again()
        words = self._standing.words()
        log.info("the broker has lost the session; %d messages are published again", len(words))
        self._say_again(words)

    def _say_again(self, words: list[Word]) -> None:
        for topic, data, retain in words:
            self._publish_pieces(topic, data, topics.kind_of(topic), retain)

    def _start_jobs(self) -> None:
        """Hand sketches, sums, the combination and looks of the probes to threads."""
        run = self.coordinator.run
        if self._loop is None:
            return
        look = self.coordinator.probing.job()
        if look is not None:
            self._loop.run_in_executor(self._jobs, look).add_done_callback(self._looked)
        if run is None:
            return
        for shard in self.coordinator.to_sketch():
            sketching = functools.partial(make_sketches, run.attesting.groups(shard), run.spool)
            self._loop.run_in_executor(self._jobs, sketching).add_done_callback(
                functools.partial(self._sketched, run, shard)
            )
        for name in run.to_sum():
            job = self._loop.run_in_executor(self._jobs, functools.partial(_sum, run.groups[name], run.spool))
            job.add_done_callback(functools.partial(self._summed, run, name))
        if self.coordinator.phase is Phase.COMBINING and not self._combining:
            self._combining = True
            work = self.coordinator.combine_inputs()
            self._loop.run_in_executor(self._jobs, work).add_done_callback(functools.partial(self._combined, run))

    def _wanted(self, run: RoundRun, job: asyncio.Future[Any]) -> bool:
        """Whether a job's result is still of use: not if the task was stopped, or the service is, while it ran."""
        return self._loop is not None and not job.cancelled() and self.coordinator.run is run

    def _looked(self, job: asyncio.Future[Looked]) -> None:
        if self._loop is None or job.cancelled():
            return
        failure = job.exception()
        if failure is not None:
            log.error("the probes' look at the last round failed", exc_info=failure)
        self.coordinator.probing.done(job.result() if failure is None else None)
        self._wake()

    def _sketched(self, run: RoundRun, shard: str, job: asyncio.Future[dict[str, Ring]]) -> None:
        if not self._wanted(run, job):
            return
        failure = job.exception()
        if failure is not None:
            log.error("shard %s: the sketches failed", shard, exc_info=failure)
        sketches = job.result() if failure is None else None
        self._carry(self.coordinator.sketched(shard, sketches, f"the sketches failed: {failure}", self._clock()))

    def _summed(self, run: RoundRun, name: str, job: asyncio.Future[_Summed]) -> None:
        if not self._wanted(run, job):
            return
        failure = job.exception()
        if failure is not None:
            log.error("group %s: the sum failed", name, exc_info=failure)
        summed = _Summed(None, f"the sum failed: {failure}") if failure is not None else job.result()
        self._carry(self.coordinator.summed(name, summed.mean, summed.reason, self._clock(), summed.culprits))

    def _combined(self, run: RoundRun, job: asyncio.Future[Combined]) -> None:
        self._combining = False
        if not self._wanted(run, job):
            return
        failure = job.exception()
        if failure is not None:
            log.error("combining the groups failed", exc_info=failure)
            self._carry(self.coordinator.give_up(f"combining the groups failed: {failure}"))
        else:
            self._carry(self.coordinator.combined(job.result(), self._clock()))


class _Summed(NamedTuple):
    """A group's mean, or why there is none and who are proven to have caused that."""

    mean: GroupMean | None
    reason: str = ""
    culprits: tuple[str, ...] = ()


def _sum(group: GroupRound, spool: Spool) -> _Summed:
    """Make one group's mean, or say why there is none; runs in a thread."""
    manifest = group.opened.manifest
    try:
        total, count = group.unmask(spool.ring)
    except PeerError as error:
        return _Summed(None, str(error), error.culprits)
    mean = group_mean(total, count, RingScale.of(manifest))
    if mean is None:
        return _Summed(None, "the sum holds coordinates that no honest members can have produced")
    return _Summed(mean)
