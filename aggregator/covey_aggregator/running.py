"""The task that runs: its model, its place in its rounds, and what is published about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nacl.signing import SigningKey

from covey_aggregator.combine import Combined, dithered
from covey_aggregator.evaluate import Evaluator
from covey_aggregator.models import ModelFolder
from covey_aggregator.probes import Gradients
from covey_aggregator.records import RoundRecord
from covey_aggregator.round_run import RoundRun
from covey_aggregator.store import TaskRow
from covey_aggregator.task import Task
from covey_protocol import envelope, model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.digest import content_digest
from covey_protocol.effects import Publish
from covey_protocol.errors import ConfigError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Blob, Close, Delta
from covey_protocol.model import Weights
from covey_protocol.payload import write
from covey_protocol.ring import RingScale


@dataclass
class RunningTask:
    """One task in progress.

    Attributes:
        task: What its author wrote.
        round, attempt: The next round, or the one that is open; ``attempt`` counts from 1 once it is open.
        weights: The model that the round begins with.
        bundle: Name and size of its bundle.
        evaluator: Measures models on held-out data, where there is any.
        gradients: What the held-out samples would teach, where probes look at that.
        delta: How devices get from the last model to this one.
        failures: Rounds that failed in a row.
        announced: Whether the bundle has been published in this run of the service.
        sketch: Numbers in a sketch, 0 for none.
    """

    task: Task
    round: int
    attempt: int
    weights: Weights
    bundle: Blob
    evaluator: Evaluator | None
    models: ModelFolder
    entropy: Callable[[int], bytes]
    gradients: Gradients | None = None
    delta: Delta | None = None
    failures: int = 0
    announced: bool = False
    sketch: int = 0
    noise: float = 0.0

    @staticmethod
    def load(
        row: TaskRow,
        closed_rounds: set[int],
        models: ModelFolder,
        entropy: Callable[[int], bytes],
        is_spent: Callable[[bytes], bool],
    ) -> RunningTask:
        """Read a task's files; one that was running goes on with its last model in a new attempt.

        Args:
            row: The task in the store.
            closed_rounds: Numbers of the rounds that have closed.
            models: Where models are kept.
            entropy: Source of uniform bytes.
            is_spent: Whether devices may have signed a set for a model, in this task or in one that began alike.

        Raises:
            CoveyError: Bundle, model or held-out data cannot be used.
        """
        try:
            data = models.bundle(row.task.name) if row.model else Path(row.task.bundle).read_bytes()
        except OSError as error:
            raise ConfigError(f"{row.task.bundle}: the bundle cannot be read: {error}") from error
        bundle = Bundle.decode(data)
        models.put_bundle(row.task.name, data)
        closed = row.round in closed_rounds
        evaluator = Evaluator(bundle, Path(row.task.held_out)) if row.task.held_out else None
        running = RunningTask(
            task=row.task,
            round=row.round + 1 if closed else max(1, row.round),
            attempt=0 if closed else row.attempt,
            weights=models.load(row.model) if row.model else bundle.weights,
            bundle=Blob(digest=content_digest(data), bytes=len(data)),
            evaluator=evaluator,
            gradients=Gradients(bundle, *evaluator.samples) if evaluator is not None and row.task.probes else None,
            models=models,
            entropy=entropy,
        )
        models.keep(model.to_bytes(running.weights))
        if is_spent(running.model.digest):
            running.dither()
        return running

    @property
    def model(self) -> Blob:
        """Name and size of the present model."""
        data = model.to_bytes(self.weights)
        return Blob(digest=content_digest(data), bytes=len(data))

    @property
    def finished(self) -> bool:
        """Whether the open round is the last."""
        return self.round >= self.task.rounds

    @property
    def over(self) -> bool:
        """Whether the last round has closed."""
        return self.round > self.task.rounds

    def adopt(self, delta: bytes) -> Publish:
        """Step to the next model; return the delta's publication."""
        base = self.model.digest
        self.weights = model.apply_delta(self.weights, delta)
        self.models.keep(model.to_bytes(self.weights))
        name = self.models.keep(delta)
        self.delta = Delta(base=base, blob=Blob(digest=name, bytes=len(delta)))
        return Publish(topics.BLOB, name.hex(), delta)

    def dither(self) -> Publish:
        """Step to a model of another digest, because devices have signed a set for this one."""
        return self.adopt(dithered(self.weights, self.entropy(32)))

    def announcement(self) -> list[Publish]:
        """Return the bundle's publication, once."""
        if self.announced:
            return []
        self.announced = True
        return [Publish(topics.BLOB, self.bundle.digest.hex(), self.models.bundle(self.task.name))]

    def close(self, run: RoundRun, record: RoundRecord, fleet: str, key: SigningKey) -> Publish:
        """Return the CLOSE message of a round whose new model was adopted."""
        assert self.delta is not None
        close = Close(
            model=self.model,
            delta=self.delta,
            groups_closed=record.groups - record.groups_aborted,
            groups_aborted=record.groups_aborted,
            participants=record.participants,
            accuracy=record.accuracy,
        )
        context = run.opened.context(fleet, topics.CLOSE, AGGREGATOR)
        return Publish(topics.CLOSE, self.task.name, envelope.sign(write(close), context, key))

    def record(self, run: RoundRun, outcome: Combined | None, now: float) -> RoundRecord:
        """Return what is kept of a round; ``outcome`` is None for one in which every group aborted."""
        details = run.details()
        joined = sum(len(detail.members) for detail in details)
        accepted = sum(len(detail.survivors) for detail in details if not detail.cause)
        rejected = sum(len(detail.rejected) for detail in details)
        return RoundRecord(
            round=self.round,
            attempt=self.attempt,
            accuracy=outcome.accuracy if outcome else None,
            loss=outcome.loss if outcome else None,
            federated_accuracy=outcome.federated_accuracy if outcome else None,
            federated_loss=outcome.federated_loss if outcome else None,
            participants=joined,
            accepted=accepted,
            rejected=rejected,
            dropped=joined - accepted - rejected,
            groups=len(run.groups),
            groups_aborted=len(run.groups) - len(run.means),
            seconds=round(now - run.started, 3),
            stage_seconds=run.stage_seconds(),
            bytes_up=run.bytes_up,
            bytes_down=run.bytes_down,
            model=self.model.digest.hex(),
            clip=run.opened.manifest.clip,
            update_norm=outcome.update_norm if outcome else None,
            details=details,
            resumed=run.resumed,
            sketch=run.opened.manifest.sketch,
            attested=sum(len(finding.sketches) for finding in run.attesting.findings.values()),
            flag=outcome.flag if outcome else "",
            noise=RingScale.of(run.opened.manifest).noise,
        )

    def note(self, record: RoundRecord) -> str:
        """Say in words how a round went."""
        accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.3f}"
        accuracy += f", {record.rejected} rejected" if record.rejected else ""
        accuracy += f"; {record.flag}" if record.flag else ""
        return (
            f"task {self.task.name}: round {record.round} closed with {record.accepted} devices in "
            f"{record.groups - record.groups_aborted} of {record.groups} groups in {record.seconds:.1f} s{accuracy}"
        )
