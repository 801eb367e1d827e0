"""What the aggregator does next: gather devices, draw groups, run rounds, close tasks.

No sockets, threads or clocks: messages and times come in, effects go out, and heavy work (sums, combining, looks of the
probes) is handed to the caller as a job and comes back by ``summed``, ``combined`` and ``probing.done``. Every
transition is in the store before its effects are returned, and durable when ``commit`` returns, which the caller calls
before it carries effects out. A coordinator on a store in which a round or an epoch is open takes it up again with its
first ``tick``, which has to come before any message. One task runs at a time; others wait in the order in which they
were started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from functools import partial

import msgspec

from covey_aggregator.authority import AuthorityDesk
from covey_aggregator.certificates import CertificateDesk
from covey_aggregator.chronicle import Chronicle
from covey_aggregator.combine import Combined, GroupMean, combine
from covey_aggregator.desk import Desk
from covey_aggregator.doorkeeper import Doorkeeper
from covey_aggregator.grouping import EPOCH_NUMBER, EpochRun
from covey_aggregator.home import MODELS, SPOOLS, ServerHome
from covey_aggregator.journal import GRACE, EpochHead, Journal, JournalError, RoundHead
from covey_aggregator.judgement import Judgement
from covey_aggregator.models import ModelFolder
from covey_aggregator.registry import WENT_BACK, Registry
from covey_aggregator.resume import Resumption, abort_messages, last_step, open_message, spool_label
from covey_aggregator.revocations import RevocationDesk, settle
from covey_aggregator.round_run import ROUND_KINDS, RoundRun
from covey_aggregator.running import RunningTask
from covey_aggregator.spool import SECRET_BYTES, Spool
from covey_aggregator.store import Store, TaskRow
from covey_aggregator.succession_desk import SuccessionDesk
from covey_aggregator.task import Task
from covey_protocol import topics
from covey_protocol.effects import Deliver, Effect, Note, Publish
from covey_protocol.errors import ConfigError, CoveyError, PeerError, RefusedError, StaleError
from covey_protocol.machine import Machine
from covey_protocol.masking import public_key
from covey_protocol.messages import Manifest
from covey_protocol.payload import write
from covey_protocol.prg import Ring
from covey_protocol.proofs import verify
from covey_protocol.recall import write_recall
from covey_protocol.ring import RingScale
from covey_protocol.roster import OpenRound, Trust, manifest_digest
from covey_protocol.round_table import GroupStage
from covey_protocol.thresholds import ROSTER_MIN


class Phase(StrEnum):
    """What the coordinator is doing."""

    IDLE = "idle"
    GATHERING = "gathering"
    GROUPING = "grouping"
    ROUND = "round"
    COMBINING = "combining"


TABLE = {
    Phase.IDLE: {"task": Phase.GATHERING},
    Phase.GATHERING: {"enough": Phase.GROUPING, "grouped": Phase.ROUND, "end": Phase.IDLE},
    Phase.GROUPING: {"groups": Phase.ROUND, "failed": Phase.GATHERING, "end": Phase.IDLE},
    Phase.ROUND: {"over": Phase.COMBINING, "failed": Phase.GATHERING, "end": Phase.IDLE},
    Phase.COMBINING: {"next": Phase.GATHERING, "end": Phase.IDLE},
}

_RECALL_SECONDS = 10.0  # a device is told how far it was at most so often
_ROUNDS_IN_EPOCH = "rounds-in-epoch"
_LOOK_BACK = 10  # rounds by which a model is seen to get worse


class Coordinator:
    """The aggregator's decisions.

    Args:
        home: The server's home.
        store: Its database.
        entropy: Source of uniform bytes.
        wall_clock: Unix seconds, for expiries and records.
    """

    def __init__(
        self,
        home: ServerHome,
        store: Store,
        *,
        entropy: Callable[[int], bytes],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._home, self._store, self._entropy, self._wall = home, store, entropy, wall_clock
        self._trust: Trust = home.trust(store.pins())
        settle(store, operator_key=home.operator_key, fleet=home.fleet, succession=home.succession)
        self.succession = SuccessionDesk(home.succession, store)
        self.authority = AuthorityDesk(home, wall_clock)
        self.revocations = RevocationDesk(self._trust, store)
        self.registry = Registry(self._trust, store)
        self.doorkeeper = Doorkeeper(home, self._trust)
        self._certificates = CertificateDesk(home, store, self.registry, wall_clock)
        self.models = ModelFolder(home.path / MODELS, lambda: {row.model for row in store.tasks()})
        self._machine = Machine(TABLE, Phase.IDLE, "coordinator")
        self._groupings = store.groupings()
        self._rounds_in_epoch = store.number(_ROUNDS_IN_EPOCH)
        self._judgement = Judgement(store)
        self.probing = self._judgement.reputations.probing
        self.chronicle = Chronicle(store, home.settings.alerts, wall_clock)
        self._desk = Desk(store, self._judgement.reputations, self.chronicle)
        if not self._groupings:
            self._judgement.regrouping.ask("there are no groups yet")
        self._running: RunningTask | None = None
        self._epoch: EpochRun | None = None
        self.run: RoundRun | None = None
        self._last_arrival = 0.0
        self._recalled: dict[str, float] = {}
        self._put_back: set[str] = set()  # recalled, and not heard in a round since: their groups may be lost to them
        self._journal = Journal(store)
        self._spools = home.path / SPOOLS
        self._resumption = Resumption(
            home=home,
            trust=self._trust,
            store=store,
            journal=self._journal,
            spools=self._spools,
            models=self.models,
        )
        self._over: list[Spool] = []  # of rounds whose end is not durable yet

    def commit(self) -> None:
        """Make everything durable that has happened so far; to be called before its effects are carried out."""
        if self.run is not None:
            self.run.spool.sync()  # before the journal names what is in it
        self._store.commit()
        while self._over:
            self._over.pop().remove()

    def close(self) -> None:
        """Let go of files; what is open stays open for the next start."""
        if self.run is not None:
            self.run.spool.close()

    def reconnected(self, now: float) -> None:
        """Hear that the broker was away and is back: devices get time to answer what they could not."""
        for open_ in (self.run, self._epoch):
            if open_ is not None:
                open_.take(GRACE, "", b"", now)

    @property
    def phase(self) -> Phase:
        """What is going on."""
        return self._machine.state

    @property
    def task(self) -> Task | None:
        """The task that runs."""
        return self._running.task if self._running else None

    def receive(self, topic: topics.Topic, data: bytes, now: float) -> list[Effect]:
        """Take a device's message.

        Raises:
            PeerError: It breaks a rule; nothing has changed.
        """
        device, kind = topic.device, topic.kind
        if kind == topics.STATE:
            try:
                seen = self.registry.state(device, data, self._wall())
            except StaleError as error:
                if error.cause != WENT_BACK:
                    raise
                return self._recall(device, error, now)
            self._last_arrival = now if seen.arrived else self._last_arrival
            self._presence(device, seen.status, now)
            return [Note("enrolled", f"{device} has joined the fleet")] if seen.new else []
        if not self.registry.knows(device):
            raise StaleError(f"{kind} from {device!r}, who has not shown an identity", cause="unknown-device")
        if kind == topics.RENEW:
            return self._certificates.receive(device, data)
        if kind in (topics.COMMITMENT, topics.OPENING):
            if self._epoch is None:
                raise StaleError(f"{kind} from {device!r}: no epoch is being opened", cause="stage")
            return self._epoch.receive(kind, device, data, now) + self._after(now)
        if kind in ROUND_KINDS:
            if self.run is None:
                raise StaleError(f"{kind} from {device!r}: no round is open", cause="stage")
            return self._on_round(kind, device, data, now) + self._after(now)
        raise StaleError(f"{kind} is not for the coordinator", cause="kind")

    def _on_round(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        assert self.run is not None
        if kind == topics.JOIN and device in self._put_back:
            self._put_back.discard(device)
            self.run.returned(device, now)
        try:
            effects = self.run.receive(kind, device, data, now)
        except RefusedError as error:
            if kind != topics.JOIN or error.cause != "sequence":
                raise
            return self._recall(device, error, now)
        if kind == topics.JOIN:
            self.registry.joined(device, data, self.run.group_of(device).grouping.digest())
        return self._guard(effects)

    def _recall(self, device: str, error: PeerError, now: float) -> list[Effect]:
        """Tell a device whose disk seems to have been put back what it has said last, now and then.

        Raises:
            PeerError: ``error``, if it was told a moment ago: somebody may be playing old messages back.
        """
        if now < self._recalled.get(device, 0.0):
            raise error
        self._recalled[device] = now + _RECALL_SECONDS
        data = write_recall(self.registry.recall(device), fleet=self._home.fleet, device=device, key=self._home.key)
        self._put_back.add(device)
        if self.run is not None:
            self.run.lost(device, now, grace=0.0)
        text = f"{error}: its disk was put back to an older state, or copied; it is told how far it was"
        return [Note(WENT_BACK, text), Deliver(device, topics.RECALL, data)]

    def _presence(self, device: str, status: str, now: float) -> None:
        """Let the round know who is there, unless its devices sleep, and are lost from time to time for that reason."""
        if self.run is None or self.task is None or self.task.sleep:
            return
        if status == "online":
            self.run.returned(device, now)
        else:
            self.run.lost(device, now)

    def overlook(self, devices: Collection[str], now: float) -> None:
        """Wait for none of these in the round that is open: what they say may not be heard."""
        if self.run is not None:
            for device in devices:
                self.run.lost(device, now, grace=0.0)

    def vector(self, device: str, blob: bytes, now: float) -> list[Effect]:
        """Take a masked vector that was put together from its pieces.

        Raises:
            PeerError: It is not expected, or not the one that was signed.
        """
        if self.run is None:
            raise StaleError(f"masked vector of {device!r}: no round is open", cause="stage")
        if not self.registry.knows(device):  # revoked since it signed for the vector
            raise StaleError(f"masked vector of {device!r}, who is not known", cause="unknown-device")
        return self._guard(self.run.vector(device, blob, now)) + self._after(now)

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: start what waits, end what has run out."""
        # Whom devices are to follow stands before all else, which rests on it.
        effects: list[Effect] = [*self.succession.poll(), *self.authority.poll(), *self._resumption.wake()]
        if self._epoch is not None:
            effects += self._epoch.tick(now)
        if self.run is not None:
            effects += self._guard(self.run.tick(now))
        return effects + self._after(now)

    def poll(self, now: float) -> list[Effect]:
        """Take up what other processes have left in the store: a newer revocation list, and the operator's orders.

        Raises:
            PeerError: What they left is not the operator's.
        """
        before = self._trust.revocations.held
        effects: list[Effect] = [*self.revocations.poll(), *self._desk.poll()]
        if self._trust.revocations.held == before:
            return effects
        gone = self.registry.drop_revoked()
        if gone:
            effects.append(Note("revoked", f"revoked by the operator: {', '.join(sorted(gone))}"))
        if self._epoch is not None and self._epoch.lists(gone):  # no group is drawn from a list that names them
            self._end_run(list(self._store.words()))
            self._machine.advance("failed")
        if self.run is not None:
            effects += self._guard(self.run.new_list(now))
        return effects + self._after(now)

    def blob(self, digest: bytes) -> bytes | None:
        """Return a blob that devices may ask for."""
        return self.models.serve(digest) or self.revocations.serve(digest) or self.succession.serve(digest)

    def to_sketch(self) -> list[str]:
        """Return the shards whose sketches are to be made now; a look at the last round comes before their decision."""
        return [] if self.run is None or self.probing.busy else self.run.to_sketch()

    def sketched(self, shard: str, sketches: Mapping[str, Ring] | None, reason: str, now: float) -> list[Effect]:
        """Take a shard's sketches from the job that made them, or why there are none, and decide on them."""
        running, run = self._busy()
        if sketches is None:
            return run.undecided(shard, reason, now) + self._after(now)
        finding = run.attesting.finding(shard, sketches)
        accepted = self._judgement.reputations.decide(finding, run, running.task)
        return run.decided(msgspec.structs.replace(finding, accepted=accepted), now) + self._after(now)

    def summed(
        self,
        group: str,
        mean: GroupMean | None,
        reason: str,
        now: float,
        culprits: Sequence[str] = (),
    ) -> list[Effect]:
        """Take a group's sum from the job that made it, or why there is none and who are to blame if any are."""
        if self.run is None or group not in self.run.groups:
            return []
        self._keep_proofs(self.run)  # a group without a sum is not summed again after a restart
        return self.run.summed(group, mean, reason, now, culprits) + self._after(now)

    def combined(self, outcome: Combined, now: float) -> list[Effect]:
        """Take the new model from the job that made it: store, sign and publish it."""
        running, run = self._busy()
        blob = running.adopt(outcome.delta)
        if running.model.digest == run.opened.manifest.model.digest:
            # No movement at all: the next round still needs a model that nobody has signed a set for.
            blob = running.dither()
        record = running.record(run, outcome, now)
        close = running.close(run, record, self._home.fleet, self._home.key)
        with self._store.together():
            self._store.end_round(running.task.name, record, running.model.digest)
            self._end_run([*abort_messages(run, self._home), close])
        effects: list[Effect] = [close, blob, Note("round", running.note(record))]
        running.failures = 0
        self._rounds_in_epoch += 1
        self._store.set_number(_ROUNDS_IN_EPOCH, self._rounds_in_epoch)
        effects += self._judge(run)
        if running.finished:
            return effects + self._finish(running, "done", "")
        running.round, running.attempt = running.round + 1, 0
        self._machine.advance("next")
        return effects + self._after(now)

    def combine_inputs(self) -> Callable[[], Combined]:
        """Return the combining job, which runs anywhere."""
        running, run = self._busy()
        reputations = self._judgement.reputations
        return partial(
            combine,
            running.weights,
            dict(run.means),
            rule=running.task.across_groups,
            contamination=reputations.contamination(running.task, run),
            evaluator=running.evaluator,
            influence=reputations.influence(running.task, run),
        )

    def stop_task(self, name: str) -> list[Effect]:
        """End a task before its time."""
        if self._running is None or self._running.task.name != name:
            return []
        reason = "stopped by the operator"
        aborts: list[Publish] = []
        if self.run is not None:
            for group in self.run.groups.values():
                if group.stage is not GroupStage.CLOSED and group.aborted is None:
                    group.abort("stopped", reason)
            aborts = abort_messages(self.run, self._home)
        return [*aborts, *self._finish(self._running, "stopped", reason, aborts)]

    def give_up(self, reason: str) -> list[Effect]:
        """End the running task because of a failure of our own."""
        assert self._running is not None
        return self._finish(self._running, "failed", reason)

    # What follows from the present state

    def _after(self, now: float) -> list[Effect]:
        """Move on as far as the present state allows."""
        effects: list[Effect] = []
        while True:
            phase = self.phase
            if phase is Phase.IDLE:
                effects += self._next_task(now)
            elif phase is Phase.GATHERING:
                effects += self._gathered(now)
            elif phase is Phase.GROUPING and self._epoch is not None and self._epoch.over:
                effects += self._grouped(now)
            elif phase is Phase.ROUND and self.run is not None and self.run.over:
                effects += self._round_over(now)
            if self.phase is phase:
                return effects

    def _next_task(self, now: float) -> list[Effect]:
        waiting = [row for row in self._store.tasks() if row.status in ("stopping", "running", "queued")]
        if not waiting:
            return []
        row = sorted(waiting, key=lambda candidate: candidate.status == "queued")[0]
        head, effects = self._resumption.head(row, self._groupings)
        try:
            closed = {r.round for r in self._store.rounds(row.task.name) if r.groups_aborted < r.groups}
            # An open round goes on with its model, spent or not.
            is_spent = self._store.is_spent if not isinstance(head, RoundHead) else lambda _: False
            self._running = RunningTask.load(row, closed, self.models, self._entropy, is_spent)
            dimension = len(self._running.weights)
            self._running.sketch = row.task.attestation.size(dimension, self._home.policy)
            noise = row.task.noise(dimension, self._home.policy)
            self._running.noise = noise.multiplier if noise is not None else 0.0
            if self._running.sketch and noise is None:
                RingScale(row.task.clip, ROSTER_MIN).check_sketch(dimension, self._running.sketch)
            elif row.task.probes and not self._running.sketch:
                raise ConfigError("probes look at sketches, and the policy or the model allows none")
        except CoveyError as error:
            effects += self._resumption.abandon(row, self._groupings, str(error)) if head is not None else []
            self._store.set_status(row.task.name, "failed", str(error))
            return [*effects, Note("task-failed", f"task {row.task.name}: {error}")]
        self._machine.advance("task")
        self._last_arrival = now
        if row.status == "stopping":
            return [*effects, *self.stop_task(row.task.name)]
        if self._running.over:  # the power went between its last round and its end
            return [*effects, *self._finish(self._running, "done", "")]
        if head is not None:
            return effects + self._resume(row, head, now)
        self._running.delta = last_step(self._store.words(), row.task.name, self._running.model.digest)
        self._store.set_status(row.task.name, "running")
        return [*effects, Note("task", f"task {row.task.name}: gathering devices")]

    def _resume(self, row: TaskRow, head: RoundHead | EpochHead, now: float) -> list[Effect]:
        """Go on with what was open, or abort it and say why."""
        assert self._running is not None
        self._running.failures = head.failures
        name, wall = row.task.name, self._wall()
        try:
            if isinstance(head, EpochHead):
                self._epoch, again = self._resumption.epoch(head, now, wall)
                self._machine.advance("enough")
                since, times = now - self._epoch.started, self._epoch.resumed
                what = f"opening of epoch {self._epoch.epoch}"
            else:
                run, again = self._resumption.round(head, self._groupings, self.registry.sequences, now, wall)
                self.run, self._running.delta, self._running.announced = run, run.opened.manifest.delta, True
                if self._running.delta is not None:
                    self.models.reload(self._running.delta.blob.digest)
                self._machine.advance("grouped")
                since, times = now - run.started, run.resumed
                arrived, members = run.arrived()
                what = f"round {head.round}.{head.attempt} with {arrived} of {members} masked vectors"
        except JournalError as error:
            self.registry.reload_sequences()
            effects = self._resumption.abandon(row, self._groupings, str(error))
            # The task begins anew: the next attempt needs a model that nobody has masked for.
            self._machine.advance("end")
            self._running = None
            return effects
        return [Note("resumed", f"task {name}: {what} resumed after {since:.0f} s, for the {times}. time"), *again]

    def _end_run(self, words: list[Publish]) -> None:
        """Note that nothing is open any more, and what was said last."""
        if self.run is not None:
            self._over.append(self.run.spool)
        self.run, self._epoch = None, None
        self._journal.clear()
        self._store.put_words(words)

    # The next round

    def _gathered(self, now: float) -> list[Effect]:
        assert self._running is not None
        task, online = self._running.task, self._present()
        expired, notes = self.authority.expired()
        if expired:
            return [*notes]
        if self._groupings and not self._judgement.regrouping.reason and self._viable():
            self._machine.advance("grouped")
            return self._open_round(now)
        first = (self._running.round, self._running.attempt) == (1, 0)
        needed = max(self._home.policy.list_min, task.devices_min if first else 0)
        missing = len(online) < needed or len(self._listed()) < self._home.policy.list_min
        if missing or now < self._last_arrival + task.settle:
            return []
        self._judgement.conduct.sentence(online)
        self._judgement.keep()
        head = EpochHead(
            task=task.name,
            epoch=self._store.number(EPOCH_NUMBER) + 1,
            members=self._listed(),
            group_size=task.group_size,
            list_min=self._home.policy.list_min,
            window=task.windows.join,
            failures=self._running.failures,
            opened=self._wall(),
            probation=sorted(self._judgement.reputations.newcomers(self._listed())),
        )
        with self._store.together():
            self._store.set_number(EPOCH_NUMBER, head.epoch)
            self._journal.begin(head)
        self._epoch = self._resumption.new_epoch(head, now)
        self._machine.advance("enough")
        out = sorted(self._judgement.unlisted(task).intersection(online).difference(head.members))
        without = f", without {', '.join(out)}" if out else ""
        reason = self._judgement.regrouping.reason or "groups are too small"
        note = Note("epoch", f"epoch {self._epoch.epoch} of {len(self._listed())} devices{without}: {reason}")
        return [note, *self._epoch.start(now)]

    def _present(self) -> dict[str, bytes]:
        """Return names and keys of the devices that count as there: where devices sleep, those that are lost do too."""
        assert self._running is not None
        return self.registry.online(or_lost=self._running.task.sleep)

    def _viable(self) -> bool:
        """Whether any group still has enough members that are there."""
        online = self._present()
        return any(
            sum(name in online for name, _ in grouping.members) >= self._home.policy.roster_min
            for grouping in self._groupings
        )

    def _grouped(self, now: float) -> list[Effect]:
        assert self._epoch is not None and self._running is not None
        groupings, said = self._epoch.groupings(), self._epoch.published
        self._end_run([*said])
        if not groupings:
            self._machine.advance("failed")
            self._last_arrival = now
            return self._failed("no groups came about")
        self._judgement.conduct.regrouped()
        self._judgement.regrouping.grouped()
        self._put_back.clear()
        self._judgement.keep()
        self._store.put_groupings(groupings)
        self._groupings, self._rounds_in_epoch = groupings, 0
        self._admit()
        self._store.set_number(_ROUNDS_IN_EPOCH, 0)
        self._machine.advance("groups")
        sizes = sorted(len(grouping.members) for grouping in groupings)
        return [Note("groups", f"{len(groupings)} groups of {sizes[0]} to {sizes[-1]}"), *self._open_round(now)]

    def _admit(self) -> None:
        """Have a reputation for every member of the groups."""
        self._judgement.reputations.admit(self._groupings, self.registry.identities())
        self._judgement.reputations.keep()

    def _open_round(self, now: float) -> list[Effect]:
        assert self._running is not None
        running, task, reputations = self._running, self._running.task, self._judgement.reputations
        running.attempt += 1
        if not reputations.ready(self._groupings):  # they were drawn before there were reputations
            self._admit()
        spool = Spool.create(
            self._spools, spool_label(task.name, running.round, running.attempt), self._entropy(SECRET_BYTES)
        )
        manifest = Manifest(
            epoch=self._groupings[0].epoch,
            bundle=running.bundle,
            model=running.model,
            delta=running.delta,
            plan=task.local,
            clip=reputations.clip(task),
            sketch=running.sketch,
            lot=task.attestation.lot,
            noise=running.noise,
            a_min=task.privacy.a_min,
            n_min=max(self._home.policy.roster_min, task.privacy.a_min),
            n_max=max(ROSTER_MIN, *(len(grouping.members) for grouping in self._groupings)),
            windows=self._judgement.windows(task, self._groupings),
            sealing_key=public_key(spool.secret),
            revocations=self._trust.revocations.held,
            succession=self._trust.successions.version,
        )
        try:
            RingScale.of(manifest)
        except ConfigError as error:  # the groups came out larger than the task was checked for
            return self._finish(running, "failed", str(error))
        body = write(manifest)
        opened = OpenRound(task.name, running.round, running.attempt, manifest, manifest_digest(body), body)
        members = {name for grouping in self._groupings for name, _ in grouping.members}
        head = RoundHead(
            task=task.name,
            round=running.round,
            attempt=running.attempt,
            manifest=body,
            sequences={name: self.registry.sequences.get(name, 0) for name in members},
            failures=running.failures,
            opened=self._wall(),
            watched=reputations.watched(self._groupings),
            excluded=reputations.excluded(self._groupings, task),
        )
        with self._store.together():
            self._store.begin_round(task.name, running.round, running.attempt, manifest.model.digest)
            self._journal.begin(head)
        self.run = RoundRun(
            opened=opened,
            groupings=self._groupings,
            trust=self._trust,
            key=self._home.key,
            sequences=self.registry.sequences,
            journal=self._journal,
            spool=spool,
            now=now,
            watched=head.watched,
            excluded=head.excluded,
        )
        for name in [*([] if task.sleep else self.registry.absent()), *self._put_back]:
            self.run.lost(name, now, grace=0.0)
        return [self.authority.time(), open_message(opened, body, self._home), *running.announcement()]

    def _guard(self, effects: list[Effect]) -> list[Effect]:
        """Before devices can mask, remember that this model is spent; before a roster, the join sequences."""
        assert self.run is not None
        model = self.run.opened.manifest.model.digest
        if self.run.reached_masking and not self._store.is_spent(model):
            self._store.spend(model)
        published = {effect.id for effect in effects if isinstance(effect, Publish) and effect.kind == topics.ROSTER}
        for group in published:
            self.registry.save_sequences([name for name, _ in self.run.groups[group].grouping.members])
        return effects

    def _round_over(self, now: float) -> list[Effect]:
        running, run = self._busy()
        if run.means:
            self._machine.advance("over")
            return []
        record, aborts = running.record(run, None, now), abort_messages(run, self._home)
        with self._store.together():
            self._store.end_round(running.task.name, record, running.model.digest)
            self._end_run([*aborts])
        self._machine.advance("failed")
        effects: list[Effect] = [running.dither()] if run.reached_masking else []
        effects += self._judge(run)
        self._last_arrival = now
        return effects + self._failed(f"round {running.round}.{running.attempt}: every group aborted")

    def _keep_proofs(self, run: RoundRun) -> None:
        """Keep proofs that members of this round's groups have lied, each checked as anybody else would check it."""
        known = self._store.proofs()
        for group in run.groups.values():
            for name, proof in list(group.proofs.items()):  # the job that sums another group may be adding to its own
                if name in known:
                    continue
                try:
                    verdict = verify(
                        proof,
                        operator_key=self._home.operator_key,
                        fleet=self._home.fleet,
                        former=self._trust.successions.former,
                    )
                except PeerError as error:  # then nobody else would believe it either
                    self._store.event("proof", f"the proof that {name} has lied does not hold: {error}")
                    continue
                self._store.put_proof(name, verdict.words, proof)
                self.chronicle.banned(name, verdict.words, proof, task=verdict.task, round_=verdict.round)

    def _judge(self, run: RoundRun) -> list[Note]:
        assert self._running is not None
        self._keep_proofs(run)
        name = self._running.task.name
        records = self._store.rounds(name, after=max(0, self._running.round - _LOOK_BACK))
        self.chronicle.round_over(name, records)
        notes = self._judgement.round_ended(
            run,
            self._running.task,
            self._groupings,
            online=self._present(),
            put_back=self._put_back,
            rounds_in_epoch=self._rounds_in_epoch,
            roster_min=self._home.policy.roster_min,
            chronicle=self.chronicle,
        )
        if self._running.gradients is not None:
            known = self._judgement.reputations.known().intersection(self.registry.identities())
            load = partial(self.models.load, run.opened.manifest.model.digest)
            self.probing.ask(run, self._running.gradients, load, known)
        return notes

    def _listed(self) -> dict[str, bytes]:
        """Return the devices to group: those that are there and in good standing.

        If too few would be left, those who sit out are let in again, but nobody who poisons the model.
        """
        assert self._running is not None
        judgement, task, least = self._judgement, self._running.task, self._home.policy.list_min
        for out in (judgement.unlisted(task), judgement.disreputable(task)):
            listed = {name: key for name, key in self._present().items() if name not in out}
            if len(listed) >= least:
                break
        return listed

    def _failed(self, reason: str) -> list[Effect]:
        assert self._running is not None
        self._running.failures += 1
        if self._running.failures >= self._running.task.attempts:
            return self._finish(self._running, "failed", f"{reason} ({self._running.failures} times in a row)")
        return [Note("round-failed", reason)]

    def _finish(
        self, running: RunningTask, status: str, reason: str, words: list[Publish] | None = None
    ) -> list[Effect]:
        """End the task; ``words`` are said again after a restart, beside the end of its OPEN."""
        clear = Publish(topics.OPEN, running.task.name, b"", retain=True)
        with self._store.together():
            self._store.set_status(running.task.name, status, reason)
            self._end_run(list(dict.fromkeys([*(self._store.words() if words is None else words), clear])))
        self._machine.advance("end")
        self._running = None
        return [clear, Note("task", f"task {running.task.name}: {status}{': ' + reason if reason else ''}")]

    def _busy(self) -> tuple[RunningTask, RoundRun]:
        assert self._running is not None and self.run is not None
        return self._running, self.run
