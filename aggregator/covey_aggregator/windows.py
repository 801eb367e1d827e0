"""How long a stage waits: for what devices have shown to need, never longer than the task allows.

A window only costs time when somebody is silent whom the broker does not report lost. The book keeps the last answers'
seconds of every device for every stage. A device's pace in a stage is the median of them, so one slow round changes
little. The window that a round announces is ``FACTOR`` times the larger of two paces, and a margin:

- where the stage waits for all of its members, the pace that all but 5% of the devices keep;
- in every group, that of the t-th fastest member: without t answers there is no sum.

Whoever is new, or has missed a window that was shortened, counts as one who needs the task's whole window, until it has
shown three times what it needs: windows that were too short for more than 5%, or for the t-th of a group, are whole
again in the next round. Whoever misses even the whole window tells nothing about paces and is passed over until it
answers.

Late answers can therefore stretch a stage to the task's window and no further, and early ones shorten it for nobody as
long as those who give them are fewer than t of a group and 95% of the fleet.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import median

import msgspec

from covey_protocol.messages import Windows
from covey_protocol.thresholds import threshold

FACTOR = 3.0
MARGIN = 2.0
FLOOR = 5.0
SHARE = 0.95
KEPT = 5
ENOUGH = 3
LOST_GRACE = 5.0
"""Seconds that a stage still waits for a device that is lost: it may reconnect, and its session still delivers."""

FOR_ALL = ("join", "shares", "masked", "attest")
FOR_QUORUM = ("survivors", "accept", "unmask")
FOR_ALL_SKETCHING = (*FOR_ALL, "survivors")  # whose draw is left out of the seed cannot attest
STAGES = (*FOR_ALL, *FOR_QUORUM)


class _Pace(msgspec.Struct, omit_defaults=True):
    """Hundredths of seconds of a device's last answers in one stage, and whether it misses even whole windows."""

    times: list[int] = []
    silent: bool = False

    def seconds(self) -> float | None:
        """Return the device's pace, infinite while it is unknown, None for one who tells nothing."""
        if self.silent:
            return None
        return median(self.times) / 100 if len(self.times) >= ENOUGH else math.inf


class _State(msgspec.Struct):
    task: str = ""
    devices: dict[str, dict[str, _Pace]] = {}


class Answers:
    """What one round shows: who answered after how many seconds, and who let a window run out without being lost."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
        self.missed: dict[str, set[str]] = {stage: set() for stage in STAGES}


class Paces:
    """The book of one task at a time; another task begins a new one.

    Args:
        kept: What ``encode`` returned, or nothing.
    """

    def __init__(self, kept: bytes = b"") -> None:
        self._state = msgspec.json.decode(kept, type=_State) if kept else _State()

    def encode(self) -> bytes:
        """Return the book as it is to be kept."""
        return msgspec.json.encode(self._state)

    def forget(self, name: str) -> None:
        """Erase what is held about a device."""
        self._state.devices.pop(name, None)

    def round_ended(self, task: str, answers: Answers, used: Windows, whole: Windows, members: Collection[str]) -> None:
        """Take what a round has shown.

        Args:
            task: The round's task.
            answers: Who answered when, and who did not.
            used: The windows that the round announced.
            whole: The task's.
            members: The devices that are in groups; others are forgotten.
        """
        if self._state.task != task:
            self._state = _State(task)
        devices = {name: self._state.devices.get(name, {}) for name in members}
        for stage in STAGES:
            shortened = getattr(used, stage) < getattr(whole, stage)
            for name, seconds in answers.seconds[stage].items():
                pace = devices.setdefault(name, {}).setdefault(stage, _Pace())
                pace.times = [*pace.times, math.ceil(100 * max(0.0, seconds))][-KEPT:]
                pace.silent = False
            for name in answers.missed[stage] - answers.seconds[stage].keys():
                pace = devices.setdefault(name, {}).setdefault(stage, _Pace())
                pace.times, pace.silent = [], pace.silent or not shortened
        self._state.devices = {name: devices[name] for name in members if devices[name]}

    def windows(
        self, task: str, whole: Windows, groups: Iterable[Collection[str]], *, sketching: bool = False
    ) -> Windows:
        """Return what the next round is to announce.

        Args:
            task: Its task.
            whole: The task's windows, which are never exceeded.
            groups: The names of each group's members.
            sketching: Whether its devices attest sketches.
        """
        if self._state.task != task:
            return whole
        members, all_ = [list(group) for group in groups], FOR_ALL_SKETCHING if sketching else FOR_ALL
        return Windows(**{name: self._window(name, getattr(whole, name), members, name in all_) for name in STAGES})

    def _window(self, stage: str, whole: float, groups: list[list[str]], for_all: bool) -> float:
        paces = {name: self._pace(name, stage) for group in groups for name in group}
        needed = max((_fastest(group, paces) for group in groups), default=math.inf)
        if for_all:
            needed = max(needed, _share(sorted(pace for pace in paces.values() if pace is not None)))
        return min(whole, max(FLOOR, FACTOR * needed + MARGIN))

    def _pace(self, name: str, stage: str) -> float | None:
        return self._state.devices.get(name, {}).get(stage, _Pace()).seconds()


def _fastest(group: Collection[str], paces: Mapping[str, float | None]) -> float:
    """Return the pace of a group's t-th fastest member."""
    known = sorted(pace for pace in (paces[name] for name in group) if pace is not None)
    place = threshold(len(group)) - 1
    return known[place] if place < len(known) else math.inf


def _share(ordered: list[float]) -> float:
    """Return the pace that all but 5% keep."""
    return ordered[math.ceil(SHARE * len(ordered)) - 1] if ordered else math.inf
