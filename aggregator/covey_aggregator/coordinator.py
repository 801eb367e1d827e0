"""What the aggregator does next: gather devices, draw groups, run rounds, close tasks.

No sockets, threads or clocks: messages and times come in, effects go out, and heavy work (sums, combining) is handed to
the caller as a job and comes back by ``summed`` and ``combined``. Every transition is in the store before its effects
are returned. One task runs at a time; others wait in the order in which they were started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from nacl.bindings import crypto_scalarmult_base

from covey_aggregator.combine import Combined, GroupMean
from covey_aggregator.conduct import Conduct
from covey_aggregator.evaluate import Evaluator
from covey_aggregator.grouping import EpochRun
from covey_aggregator.home import MODELS, ServerHome
from covey_aggregator.models import ModelFolder
from covey_aggregator.registry import Registry
from covey_aggregator.regrouping import Regrouping
from covey_aggregator.round_run import ROUND_KINDS, RoundRun
from covey_aggregator.running import RunningTask
from covey_aggregator.store import Store
from covey_aggregator.task import Task
from covey_aggregator.windows import Paces
from covey_protocol import envelope, topics
from covey_protocol.digest import digest
from covey_protocol.effects import Effect, Note, Publish
from covey_protocol.errors import CoveyError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.machine import Machine
from covey_protocol.messages import Manifest, Windows
from covey_protocol.model import Weights
from covey_protocol.payload import write
from covey_protocol.roster import OpenRound, Trust
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

_ROUNDS_IN_EPOCH = "rounds-in-epoch"
_CONDUCT, _REGROUPING, _PACES = "conduct", "regrouping", "paces"


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
        self.registry = Registry(self._trust, store)
        self.models = ModelFolder(home.path / MODELS, lambda: {row.model for row in store.tasks()})
        self._machine = Machine(TABLE, Phase.IDLE, "coordinator")
        self._groupings = store.groupings()
        self._rounds_in_epoch = store.number(_ROUNDS_IN_EPOCH)
        self._conduct = Conduct(store.memory(_CONDUCT))
        self._regrouping = Regrouping(store.memory(_REGROUPING))
        self._paces = Paces(store.memory(_PACES))
        if not self._groupings:
            self._regrouping.ask("there are no groups yet")
        self._running: RunningTask | None = None
        self._epoch: EpochRun | None = None
        self.run: RoundRun | None = None
        self._last_arrival = 0.0

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
            seen = self.registry.state(device, data, self._wall())
            self._last_arrival = now if seen.arrived else self._last_arrival
            self._presence(device, seen.status, now)
            return [Note("enrolled", f"{device} has joined the fleet")] if seen.new else []
        if not self.registry.knows(device):
            raise StaleError(f"{kind} from {device!r}, who has not shown an identity", cause="unknown-device")
        if kind in (topics.COMMITMENT, topics.OPENING):
            if self._epoch is None:
                raise StaleError(f"{kind} from {device!r}: no epoch is being opened", cause="stage")
            return self._epoch.receive(kind, device, data, now) + self._after(now)
        if kind in ROUND_KINDS:
            if self.run is None:
                raise StaleError(f"{kind} from {device!r}: no round is open", cause="stage")
            return self._guard(self.run.receive(kind, device, data, now)) + self._after(now)
        raise StaleError(f"{kind} is not for the coordinator", cause="kind")

    def _presence(self, device: str, status: str, now: float) -> None:
        """Let the round know who is there, unless its devices sleep, and are lost from time to time for that reason."""
        if self.run is None or self.task is None or self.task.sleep:
            return
        if status == "online":
            self.run.returned(device)
        else:
            self.run.lost(device, now)

    def vector(self, device: str, blob: bytes, now: float) -> list[Effect]:
        """Take a masked vector that was put together from its pieces.

        Raises:
            PeerError: It is not expected, or not the one that was signed.
        """
        if self.run is None:
            raise StaleError(f"masked vector of {device!r}: no round is open", cause="stage")
        return self._guard(self.run.vector(device, blob, now)) + self._after(now)

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: start what waits, end what has run out."""
        effects: list[Effect] = []
        if self._epoch is not None:
            effects += self._epoch.tick(now)
        if self.run is not None:
            effects += self._guard(self.run.tick(now))
        return effects + self._after(now)

    def summed(self, group: str, mean: GroupMean | None, reason: str, now: float, culprit: str = "") -> list[Effect]:
        """Take a group's sum from the job that made it, or why there is none and who is to blame if one is."""
        if self.run is None or group not in self.run.groups:
            return []
        return self.run.summed(group, mean, reason, now, culprit) + self._after(now)

    def combined(self, outcome: Combined, now: float) -> list[Effect]:
        """Take the new model from the job that made it: store, sign and publish it."""
        running, run = self._busy()
        blob = running.adopt(outcome.delta)
        if running.model.digest == run.opened.manifest.model.digest:
            # No movement at all: the next round still needs a model that nobody has signed a set for.
            blob = running.dither()
        record = running.record(run, outcome, now)
        self._store.end_round(running.task.name, record, running.model.digest)
        close = running.close(run, record, self._home.fleet, self._home.key)
        effects: list[Effect] = [close, blob, Note("round", running.note(record))]
        self.run = None
        running.failures = 0
        self._rounds_in_epoch += 1
        self._store.set_number(_ROUNDS_IN_EPOCH, self._rounds_in_epoch)
        self._judge(run)
        if running.finished:
            return effects + self._finish(running, "done", "")
        running.round, running.attempt = running.round + 1, 0
        self._machine.advance("next")
        return effects + self._after(now)

    def combine_inputs(self) -> tuple[Weights, dict[str, GroupMean], Task, Evaluator | None]:
        """Return what the combining job needs."""
        running, run = self._busy()
        return running.weights, dict(run.means), running.task, running.evaluator

    def stop_task(self, name: str) -> list[Effect]:
        """End a task before its time."""
        if self._running is None or self._running.task.name != name:
            return []
        self.run, self._epoch = None, None
        return self._finish(self._running, "stopped", "stopped by the operator")

    def give_up(self, reason: str) -> list[Effect]:
        """End the running task because of a failure of our own."""
        assert self._running is not None
        self.run = None
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
        try:
            closed = {r.round for r in self._store.rounds(row.task.name) if r.groups_aborted < r.groups}
            self._running = RunningTask.load(row, closed, self.models, self._entropy, self._store.is_spent)
        except CoveyError as error:
            self._store.set_status(row.task.name, "failed", str(error))
            return [Note("task-failed", f"task {row.task.name}: {error}")]
        self._machine.advance("task")
        self._last_arrival = now
        if row.status == "stopping":
            return self.stop_task(row.task.name)
        if self._running.over:  # the power went between its last round and its end
            return self._finish(self._running, "done", "")
        self._store.set_status(row.task.name, "running")
        return [Note("task", f"task {row.task.name}: gathering devices")]

    def _gathered(self, now: float) -> list[Effect]:
        assert self._running is not None
        task, online = self._running.task, self._present()
        if self._groupings and not self._regrouping.reason and self._viable():
            self._machine.advance("grouped")
            return self._open_round(now)
        first = (self._running.round, self._running.attempt) == (1, 0)
        needed = max(self._home.policy.list_min, task.devices_min if first else 0)
        if len(online) < needed or now < self._last_arrival + task.settle:
            return []
        self._conduct.sentence(online)
        self._keep_judgement()
        self._epoch = EpochRun(
            fleet=self._home.fleet,
            key=self._home.key,
            store=self._store,
            members=self._listed(),
            group_size=task.group_size,
            list_min=self._home.policy.list_min,
            window=task.windows.join,
        )
        self._machine.advance("enough")
        out = sorted(self._conduct.sitting_out().intersection(online))
        without = f", without {', '.join(out)}" if out else ""
        reason = self._regrouping.reason or "groups are too small"
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
        groupings = self._epoch.groupings()
        self._epoch = None
        if not groupings:
            self._machine.advance("failed")
            self._last_arrival = now
            return self._failed("no groups came about")
        self._conduct.regrouped()
        self._regrouping.grouped()
        self._keep_judgement()
        self._store.put_groupings(groupings)
        self._groupings, self._rounds_in_epoch = groupings, 0
        self._store.set_number(_ROUNDS_IN_EPOCH, 0)
        self._machine.advance("groups")
        sizes = sorted(len(grouping.members) for grouping in groupings)
        return [Note("groups", f"{len(groupings)} groups of {sizes[0]} to {sizes[-1]}"), *self._open_round(now)]

    def _open_round(self, now: float) -> list[Effect]:
        assert self._running is not None
        running, task = self._running, self._running.task
        running.attempt += 1
        secret = self._entropy(32)
        sealing = (secret, crypto_scalarmult_base(secret))
        manifest = Manifest(
            epoch=self._groupings[0].epoch,
            bundle=running.bundle,
            model=running.model,
            delta=running.delta,
            plan=task.local,
            clip=task.clip,
            n_min=self._home.policy.roster_min,
            n_max=max(ROSTER_MIN, *(len(grouping.members) for grouping in self._groupings)),
            windows=self._windows(task),
            sealing_key=sealing[1],
        )
        body = write(manifest)
        opened = OpenRound(task.name, running.round, running.attempt, manifest, digest(body, person=b"covey-manifest"))
        self._store.begin_round(task.name, running.round, running.attempt, manifest.model.digest)
        self.run = RoundRun(
            opened=opened,
            groupings=self._groupings,
            trust=self._trust,
            key=self._home.key,
            sealing=sealing,
            sequences=self.registry.sequences,
            now=now,
        )
        for name in [] if task.sleep else self.registry.absent():
            self.run.lost(name, now, grace=0.0)
        context = opened.context(self._home.fleet, topics.OPEN, AGGREGATOR)
        publish = Publish(topics.OPEN, task.name, envelope.sign(body, context, self._home.key), retain=True)
        return [publish, *running.announcement()]

    def _windows(self, task: Task) -> Windows:
        """Return the windows that the next round announces."""
        if task.sleep or not task.adaptive:
            return task.windows
        groups = [[name for name, _ in grouping.members] for grouping in self._groupings]
        return self._paces.windows(task.name, task.windows, groups)

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
        record = running.record(run, None, now)
        self._store.end_round(running.task.name, record, running.model.digest)
        self._machine.advance("failed")
        effects: list[Effect] = [running.dither()] if run.reached_masking else []
        self._judge(run)
        self._last_arrival = now
        self.run = None
        return effects + self._failed(f"round {running.round}.{running.attempt}: every group aborted")

    def _judge(self, run: RoundRun) -> None:
        """Note who made groups abort and who finished, and whether the groups are to be drawn anew."""
        aborted = {name: group for name, group in run.groups.items() if group.aborted is not None}
        closed = [group for group in run.groups.values() if group.aborted is None]
        self._conduct.round_ended(
            {name: group.causers for name, group in aborted.items()},
            {name for group in closed for name in group.revealers},
            {name: group.dealt for name, group in aborted.items() if not group.causers},
            run.proven(),
        )
        assert self._running is not None
        online = self._present()
        members = {grouping.group: [name for name, _ in grouping.members] for grouping in self._groupings}
        grouped = {name for names in members.values() for name in names}
        self._regrouping.round_ended(
            epoch_over=self._rounds_in_epoch >= self._running.task.epoch_rounds,
            rounds_in_epoch=self._rounds_in_epoch,
            under=[
                group
                for group, names in members.items()
                if len(online.keys() & set(names)) < self._home.policy.roster_min
            ],
            fallen=self._conduct.fallen(members),
            waiting=len(online.keys() - grouped - self._conduct.sitting_out()),
            grouped=len(grouped),
            roster_min=self._home.policy.roster_min,
            any_closed=bool(closed),
        )
        self._keep_judgement()
        task = self._running.task
        self._paces.round_ended(task.name, run.answers, run.opened.manifest.windows, task.windows, grouped)
        self._store.keep(_PACES, self._paces.encode())

    def _keep_judgement(self) -> None:
        self._store.keep(_CONDUCT, self._conduct.encode())
        self._store.keep(_REGROUPING, self._regrouping.encode())

    def _listed(self) -> dict[str, bytes]:
        """Return the devices to group: those that are there and do not sit out, or all if too few would be left."""
        online, out = self._present(), self._conduct.sitting_out()
        listed = {name: key for name, key in online.items() if name not in out}
        return listed if len(listed) >= self._home.policy.list_min else online

    def _failed(self, reason: str) -> list[Effect]:
        assert self._running is not None
        self._running.failures += 1
        if self._running.failures >= self._running.task.attempts:
            return self._finish(self._running, "failed", f"{reason} ({self._running.failures} times in a row)")
        return [Note("round-failed", reason)]

    def _finish(self, running: RunningTask, status: str, reason: str) -> list[Effect]:
        self._store.set_status(running.task.name, status, reason)
        self._machine.advance("end")
        self._running = None
        text = f"task {running.task.name}: {status}{': ' + reason if reason else ''}"
        return [Publish(topics.OPEN, running.task.name, b"", retain=True), Note("task", text)]

    def _busy(self) -> tuple[RunningTask, RoundRun]:
        assert self._running is not None and self.run is not None
        return self._running, self.run
