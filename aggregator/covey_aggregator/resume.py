"""Going on after a restart: what was open is built up again from the journal, and what may not have been heard is said.

Time that passed while the aggregator was down counts, by the wall clock: that is the only clock there is across a
restart. A wall clock that was set back counts for nothing; one that was set forward lets stages run out, but never
before the grace that every resumption grants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeGuard

from covey_aggregator import spool
from covey_aggregator.grouping import EpochRun
from covey_aggregator.home import ServerHome
from covey_aggregator.journal import RESUMED, Entry, EpochHead, Head, Journal, JournalError, Recorded, RoundHead
from covey_aggregator.models import ModelFolder
from covey_aggregator.records import GroupRecord, RoundRecord
from covey_aggregator.round_run import RoundRun
from covey_aggregator.spool import Spool
from covey_aggregator.store import Store, TaskRow
from covey_protocol import envelope, topics
from covey_protocol.effects import Effect, Note, Publish
from covey_protocol.envelope import Context
from covey_protocol.epochs import Grouping
from covey_protocol.errors import CoveyError, MalformedError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Abort, Close, Delta, Manifest
from covey_protocol.payload import read, write
from covey_protocol.roster import OpenRound, Trust, manifest_digest


class Resumption:
    """What a new process does about what the one before had open.

    Args:
        home, trust: The aggregator's.
        store, journal, models: Where everything is.
        spools: The folder of rounds' files.
    """

    def __init__(
        self, *, home: ServerHome, trust: Trust, store: Store, journal: Journal, spools: Path, models: ModelFolder
    ) -> None:
        self._home, self._trust, self._store = home, trust, store
        self._journal, self._spools, self._models = journal, spools, models
        self._awake = False

    def wake(self) -> list[Effect]:
        """Clear up what no open round needs, and say again what may not have been heard; once."""
        if self._awake:
            return []
        self._awake = True
        try:
            head = self._journal.head()
        except JournalError:
            head = None
        spool.clean(self._spools, spool_label(head.task, head.round, head.attempt) if _is_round(head) else "")
        return [*_words_again(self._store.words(), self._models)]

    def head(self, row: TaskRow, groupings: Sequence[Grouping]) -> tuple[Head | None, list[Effect]]:
        """Return what the journal has open for a task, if it is of use; abort it if not."""
        if not self._journal.is_open:
            return None, []
        try:
            head = self._journal.head()
        except JournalError as error:
            return None, self.abandon(row, groupings, str(error))
        if row.status == "stopping":
            return None, self.abandon(row, groupings, "stopped by the operator", cause="stopped")
        place = (head.task, head.round, head.attempt) if _is_round(head) else (row.task.name, row.round, row.attempt)
        if head is None or (head.task, *place) != (row.task.name, row.task.name, row.round, row.attempt):
            return None, self.abandon(row, groupings, "its journal is of another round")
        return head, []

    def abandon(
        self, row: TaskRow, groupings: Sequence[Grouping], reason: str, *, cause: str = "journal"
    ) -> list[Effect]:
        """Abort what a journal has open that cannot be gone on with."""
        aborts: list[Publish] = []
        recorded = {(r.round, r.attempt) for r in self._store.rounds(row.task.name)}
        with self._store.together():
            if row.round and (row.round, row.attempt) not in recorded:
                body = Abort(cause=cause, reason=reason[:400])
                aborts = [_abort(row.task.name, row.round, row.attempt, each, body, self._home) for each in groupings]
                details = [
                    GroupRecord(group=each.group, members=[], survivors=[], cause=cause, reason=body.reason)
                    for each in groupings
                ]
                record = RoundRecord.aborted(row.round, row.attempt, row.model.hex(), row.task.clip, details)
                self._store.end_round(row.task.name, record, row.model)
            self._store.put_words(aborts)
            self._journal.clear()
        spool.clean(self._spools)
        return [Note("abandoned", f"task {row.task.name}: what was open is aborted: {reason}"), *aborts]

    def round(
        self, head: RoundHead, groupings: Sequence[Grouping], sequences: dict[str, int], now: float, wall: float
    ) -> tuple[RoundRun, list[Effect]]:
        """Return the open round as it was, and what to say again.

        Args:
            head: What it began with.
            groupings: The epoch's groups.
            sequences: Last join sequences, taken back to where they were and brought forward again.
            now, wall: Monotonic and Unix seconds.

        Raises:
            JournalError: It cannot be had.
        """
        entries = self._journal.entries()
        try:
            manifest = read(Manifest, head.manifest)
            self._check_list(manifest)
            kept = Spool.reopen(self._spools, spool_label(head.task, head.round, head.attempt))
        except CoveyError as error:
            raise JournalError(f"its journal is of no use: {error}") from error
        if not groupings or manifest.epoch != groupings[0].epoch:
            raise JournalError(f"its journal is of epoch {manifest.epoch}, whose groups are gone")
        sequences.update(head.sequences)
        run = RoundRun(
            opened=OpenRound(
                head.task, head.round, head.attempt, manifest, manifest_digest(head.manifest), head.manifest
            ),
            groupings=groupings,
            trust=self._trust,
            key=self._home.key,
            sequences=sequences,
            journal=self._journal,
            spool=kept,
            now=now - _elapsed(head, entries, wall),
            watched=head.watched,
            excluded=head.excluded,
        )
        try:
            said = run.replay(entries)
        except JournalError:
            kept.close()
            raise
        again = [effect for effect in said if run.wanted(effect)]
        _resume(run, now)
        opened = open_message(run.opened, head.manifest, self._home)
        return run, [opened, *again, *run.expecting()]

    def _check_list(self, manifest: Manifest) -> None:
        """Refuse a round under an older revocation list: who was in it may be revoked by now."""
        held = self._trust.revocations.held
        if manifest.revocations != held:
            raise MalformedError(f"it is under revocation list {manifest.revocations}, and {held} has come since")
        if manifest.succession != self._trust.successions.version:
            raise MalformedError("the operator's key has changed since")

    def epoch(self, head: EpochHead, now: float, wall: float) -> tuple[EpochRun, list[Effect]]:
        """Return the epoch's opening as it was, and what to say again; arguments and errors as for ``round``."""
        revoked = sorted(name for name, key in head.members.items() if self._trust.revoked(key) is not None)
        if revoked:
            raise JournalError(f"its list names {', '.join(revoked)}, revoked since")
        entries = self._journal.entries()
        run = self.new_epoch(head, now - _elapsed(head, entries, wall))
        again = run.replay(entries)
        _resume(run, now)
        return run, again

    def new_epoch(self, head: EpochHead, began: float) -> EpochRun:
        """Return an epoch's opening at its beginning."""
        return EpochRun(
            fleet=self._home.fleet,
            key=self._home.key,
            epoch=head.epoch,
            members=head.members,
            group_size=head.group_size,
            list_min=head.list_min,
            window=head.window,
            journal=self._journal,
            now=began,
            probation=head.probation,
        )


def spool_label(task: str, round_: int, attempt: int) -> str:
    """Return what a round's files are called."""
    return f"{task}-{round_}-{attempt}"


def open_message(opened: OpenRound, body: bytes, home: ServerHome) -> Publish:
    """Return a round's OPEN message; always the same bytes."""
    context = opened.context(home.fleet, topics.OPEN, AGGREGATOR)
    return Publish(topics.OPEN, opened.task, envelope.sign(body, context, home.key), retain=True)


def abort_messages(run: RoundRun, home: ServerHome) -> list[Publish]:
    """Return the ABORT messages of a round's groups that have aborted, as they were published."""
    opened = run.opened
    return [
        _abort(opened.task, opened.round, opened.attempt, group.grouping, group.aborted, home)
        for group in run.groups.values()
        if group.aborted is not None
    ]


def _abort(task: str, round_: int, attempt: int, grouping: Grouping, body: Abort, home: ServerHome) -> Publish:
    context = Context(
        fleet=home.fleet,
        kind=topics.ABORT,
        sender=AGGREGATOR,
        task=task,
        round=round_,
        attempt=attempt,
        roster=grouping.digest(),
    )
    return Publish(topics.ABORT, grouping.group, envelope.sign(write(body), context, home.key))


def _words_again(words: Iterable[Publish], models: ModelFolder) -> list[Publish]:
    """Return what was said last and may not have been heard, with the step that a CLOSE names."""
    again = []
    for word in words:
        if word.kind == topics.CLOSE:
            step = read(Close, envelope.parse(word.data).payload).delta.blob.digest
            blob = models.reload(step)
            again += [Publish(topics.BLOB, step.hex(), blob)] if blob is not None else []
        again.append(word)
    return again


def last_step(words: Iterable[Publish], task: str, model: bytes) -> Delta | None:
    """Return how devices get to a task's model from the one before, if its last CLOSE says so."""
    for word in words:
        if (word.kind, word.id) == (topics.CLOSE, task):
            close = read(Close, envelope.parse(word.data).payload)
            if close.model.digest == model:
                return close.delta
    return None


def _is_round(head: Head | None) -> TypeGuard[RoundHead]:
    return isinstance(head, RoundHead)


def _resume(run: Recorded, now: float) -> None:
    run.take(RESUMED, "", b"", now)
    run.resumed += 1


def _elapsed(head: RoundHead | EpochHead, entries: Sequence[Entry], wall: float) -> float:
    """Return the seconds since the beginning: what the journal has seen at least."""
    seen = max((entry.at for entry in entries), default=0.0)
    return max(seen, wall - head.opened)
