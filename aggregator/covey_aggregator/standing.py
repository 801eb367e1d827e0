"""What was said last in the open round or epoch, to be said again to whoever may have missed it.

A broker that was restarted may have forgotten what it held for a device. When the aggregator notices that itself, it
says everything again; but a device that comes back only later has still not heard it. So whoever shows up while its
group waits for it has the group's last words said again, once for all who come within a moment.
"""

from __future__ import annotations

from typing import NamedTuple

from covey_aggregator.round_run import RoundRun
from covey_protocol import topics
from covey_protocol.round_table import GroupStage

_MOMENT = 2.0


class Word(NamedTuple):
    """One message as it was published."""

    topic: str
    data: bytes
    retain: bool


class Standing:
    """The last words, by topic."""

    def __init__(self) -> None:
        self._words: dict[str, Word] = {}
        self._due: dict[str, float] = {}

    def keep(self, word: Word) -> None:
        """Note what was just said."""
        self._words[word.topic] = word

    def clear(self) -> None:
        """Forget all of it: another round or epoch begins."""
        self._words.clear()
        self._due.clear()

    def words(self) -> list[Word]:
        """Return all that stands."""
        return list(self._words.values())

    def came_back(self, device: str, run: RoundRun | None, now: float) -> None:
        """Hear that a device has shown up; its group is due in a moment if it waits for it."""
        group = run.waiting_for(device) if run is not None else None
        if group is not None:
            self._due.setdefault(group, now + _MOMENT)

    def due(self, run: RoundRun | None, now: float) -> list[Word]:
        """Return what is to be said again now."""
        groups = [group for group, at in self._due.items() if at <= now]
        for group in groups:
            del self._due[group]
        return [word for group in groups if run is not None for word in self._of(run, group)]

    def _of(self, run: RoundRun, group: str) -> list[Word]:
        """Return what those whom a group still waits for may lack."""
        awaited, joining = run.groups[group].awaited(), run.groups[group].stage is GroupStage.JOINING
        found = []
        for word in self._words.values() if awaited else ():
            place = topics.parse(word.topic)
            grouping = joining and place.kind == topics.GROUPS  # whoever missed the groups cannot join
            if place.id == group or place.device in awaited or grouping:
                found.append(word)
        return found
