"""Who makes groups abort, and who therefore sits out the next groupings.

An abort costs everybody in the group a round, and every new grouping costs privacy, so neither may be had for the
asking: one abort changes nothing, a group that aborts twice in a row is regrouped, and then without those whose
answers were missing in more than one abort. They come back after a while: a flaky link is no crime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ABORTS_IN_A_ROW = 2
STRIKES = 2
SIT_OUT_ROUNDS = 10


class Conduct:
    """Counts aborts by group and by device; ``rounds`` is the number of rounds ended so far."""

    def __init__(self) -> None:
        self._aborts: dict[str, int] = {}
        self._strikes: dict[str, int] = {}
        self._back_at: dict[str, int] = {}
        self.rounds = 0

    def round_ended(self, causers: Mapping[str, Iterable[str]], finishers: Iterable[str]) -> None:
        """Take a round's outcome.

        Args:
            causers: For every group that aborted, whose answers were missing or wrong.
            finishers: Devices that did their part in a group that closed.
        """
        self.rounds += 1
        self._aborts = {group: self._aborts.get(group, 0) + 1 for group in causers}
        for name in finishers:
            self._strikes.pop(name, None)
        for name in {name for names in causers.values() for name in names}:
            self._strikes[name] = self._strikes.get(name, 0) + 1
            if self._strikes[name] >= STRIKES:
                self._back_at[name] = self.rounds + SIT_OUT_ROUNDS

    def fallen(self) -> list[str]:
        """Return the groups that have aborted often enough to be drawn anew."""
        return sorted(group for group, aborts in self._aborts.items() if aborts >= ABORTS_IN_A_ROW)

    def sitting_out(self) -> set[str]:
        """Return the devices that no list names for now."""
        self._back_at = {name: back for name, back in self._back_at.items() if back > self.rounds}
        return set(self._back_at)

    def regrouped(self) -> None:
        """Forget the groups: new ones were drawn."""
        self._aborts.clear()
