"""What rounds have shown of the devices: who sits out, whether groups are drawn anew, and how long stages wait.

The three books are kept in the database, so that a restart forgets nothing of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from covey_aggregator.conduct import Conduct
from covey_aggregator.regrouping import Regrouping
from covey_aggregator.round_run import RoundRun
from covey_aggregator.store import Store
from covey_aggregator.task import Task
from covey_aggregator.windows import Paces
from covey_protocol.epochs import Grouping
from covey_protocol.messages import Windows

_CONDUCT, _REGROUPING, _PACES = "conduct", "regrouping", "paces"


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

    def keep(self) -> None:
        """Store who sits out and whether groups are drawn anew."""
        self._store.keep(_CONDUCT, self.conduct.encode())
        self._store.keep(_REGROUPING, self.regrouping.encode())

    def windows(self, task: Task, groupings: Sequence[Grouping]) -> Windows:
        """Return the windows that the next round announces."""
        if task.sleep or not task.adaptive:
            return task.windows
        return self.paces.windows(
            task.name, task.windows, [[name for name, _ in grouping.members] for grouping in groupings]
        )

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
    ) -> None:
        """Note who made groups abort and who finished, and whether the groups are to be drawn anew.

        Args:
            run: The round.
            task: Its task.
            groupings: The epoch's groups.
            online: Devices that are there.
            put_back: Those whose groups may be lost to them.
            rounds_in_epoch: Rounds that have closed in this epoch.
            roster_min: The policy's smallest roster.
        """
        aborted = {name: group for name, group in run.groups.items() if group.aborted is not None}
        closed = [group for group in run.groups.values() if group.aborted is None]
        self.conduct.round_ended(
            {name: group.causers for name, group in aborted.items()},
            {name for group in closed for name in group.revealers},
            {name: group.dealt for name, group in aborted.items() if not group.causers},
            run.proven(),
        )
        there = set(online)
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
