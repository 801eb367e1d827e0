"""What rounds have shown of the devices: who sits out, whom to trust, when groups are drawn anew, how long stages wait.

The books are kept in the database, so that a restart forgets nothing of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from covey_aggregator.chronicle import Chronicle
from covey_aggregator.conduct import Conduct
from covey_aggregator.regrouping import Regrouping
from covey_aggregator.reputations import Reputations
from covey_aggregator.round_run import RoundRun
from covey_aggregator.store import Store
from covey_aggregator.task import Task
from covey_aggregator.windows import Paces
from covey_protocol.effects import Note
from covey_protocol.epochs import Grouping
from covey_protocol.messages import Windows

_CONDUCT, _REGROUPING, _PACES = "conduct", "regrouping", "paces"
_NO_OFFENCE = ("too-few-accepted", "no-sketches")  # what reputations had to say about it, they say themselves


class Judgement:
    """The books, by name.

    Args:
        store: The aggregator's database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.conduct = Conduct(store.memory(_CONDUCT))
        self.regrouping = Regrouping(store.memory(_REGROUPING))
        self.paces = Paces(store.memory(_PACES))
        self.reputations = Reputations(store)

    def keep(self) -> None:
        """Store who sits out and whether groups are drawn anew."""
        self._store.keep(_CONDUCT, self.conduct.encode())
        self._store.keep(_REGROUPING, self.regrouping.encode())

    def forget(self, name: str) -> None:
        """Erase what is held about a device that the operator has revoked, and store the books."""
        for book in (self.conduct, self.paces, self.reputations):
            book.forget(name)
        self.keep()
        self._store.keep(_PACES, self.paces.encode())
        self.reputations.keep()

    def windows(self, task: Task, groupings: Sequence[Grouping]) -> Windows:
        """Return the windows that the next round announces."""
        if task.sleep or not task.adaptive:
            return task.windows
        groups = [[name for name, _ in grouping.members] for grouping in groupings]
        return self.paces.windows(task.name, task.windows, groups, sketching=task.attestation.on)

    def round_ended(
        self,
        run: RoundRun,
        task: Task,
        groupings: Sequence[Grouping],
        *,
        online: Collection[str],
        put_back: Collection[str],
        rounds_in_epoch: int,
        roster_min: int,
        chronicle: Chronicle,
    ) -> list[Note]:
        """Note who made groups abort and who finished, settle reputations, and see whether groups are to be drawn anew.

        Args:
            run: The round.
            task: Its task.
            groupings: The epoch's groups.
            online: Devices that are there.
            put_back: Those whose groups may be lost to them.
            rounds_in_epoch: Rounds that have closed in this epoch.
            roster_min: The policy's smallest roster.
            chronicle: Where it is written down.

        Returns:
            Whose reputation has changed.
        """
        aborted = {
            name: group
            for name, group in run.groups.items()
            if group.aborted is not None and group.aborted.cause not in _NO_OFFENCE
        }
        closed = [group for group in run.groups.values() if group.aborted is None]
        self.conduct.round_ended(
            {name: group.causers for name, group in aborted.items()},
            {name for group in closed for name in group.revealers},
            {name: group.dealt for name, group in aborted.items() if not group.causers},
            run.proven(),
        )
        notes = self.reputations.round_ended(run, task, chronicle)
        there = set(online) - self.disreputable(task)
        members = {grouping.group: [name for name, _ in grouping.members] for grouping in groupings}
        grouped = {name for names in members.values() for name in names} - set(put_back)
        self.regrouping.round_ended(
            epoch_over=rounds_in_epoch >= task.epoch_rounds,
            rounds_in_epoch=rounds_in_epoch,
            under=[group for group, names in members.items() if len(there.intersection(names)) < roster_min],
            fallen=self.conduct.fallen(members),
            waiting=len(there - grouped - self.conduct.sitting_out()),
            grouped=len(grouped),
            roster_min=roster_min,
            any_closed=bool(closed),
        )
        self.keep()
        self.paces.round_ended(task.name, run.answers, run.opened.manifest.windows, task.windows, grouped)
        self._store.keep(_PACES, self.paces.encode())
        self.reputations.keep()
        return notes

    def unlisted(self, task: Task) -> set[str]:
        """Return the devices that no list of members names: they sit out, are quarantined or banned."""
        return self.conduct.sitting_out() | self.disreputable(task)

    def disreputable(self, task: Task) -> set[str]:
        """Return those of them who poison the model, or are proven to have lied."""
        return self.reputations.out() if task.enforces else self.reputations.banned()
