"""A fleet in memory whose messages take time, with devices that drop out and devices that refuse.

The coordinator and the devices are the real ones; only wires and clock are simulated. Who drops out in a round falls
silent with a message drawn by chance, is back before the next round opens, and may or may not be reported lost by the
broker meanwhile. Refusers hear everything and keep messages back.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.aggregator.fleet import Device, Fleet

from covey_protocol import topics
from covey_protocol.device_round import DeviceRound
from covey_protocol.effects import Effect, Publish
from covey_protocol.messages import Windows

SENT = (topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK)
WINDOWS = Windows(join=20, shares=20, masked=120, survivors=20, unmask=20)

# Before join, after join, after dealing, after masking, before signing, before unmasking: the first message that does
# not come. Who dies behind its vector and who dies before it signs look the same.
MOMENTS = (topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.SURVIVORS, topics.UNMASK)

Refusal = Callable[[random.Random, int], str]


def always(kind: str) -> Refusal:
    """Keep one kind of message back in every round."""
    return lambda chance, round_: kind


def sometimes(kind: str, share: float = 0.5) -> Refusal:
    """Keep it back in some rounds."""
    return lambda chance, round_: kind if chance.random() < share else ""


def alternating(chance: random.Random, round_: int) -> str:
    """Refuse in another stage each round."""
    return SENT[1:][round_ % 4]


class SharePoisoner(DeviceRound):
    """Deals shares of a self-mask that is not the one it has published."""

    def _on_roster(self, body: bytes) -> list[Effect]:
        true = self._round_secrets()
        wrong = self._round_secrets().masking
        self._secrets = dataclasses.replace(true, self_mask=wrong)
        try:
            return super()._on_roster(body)
        finally:
            self._secrets = true


@dataclass
class Wires:
    """Messages on their way: each takes its time, and none overtakes another on the same wire."""

    chance: random.Random
    pace: Mapping[str, float]
    training: float
    now: float = 0.0
    _due: list[tuple[float, int, partial[None]]] = field(default_factory=list)
    _last: dict[tuple[str, str], float] = field(default_factory=dict)
    _count: int = 0

    def append(self, job: partial[None]) -> None:
        """Put a call of ``to_device`` or ``to_server`` on its way."""
        name, kind = job.args[0], job.args[1]
        wire = (job.func.__name__, name)
        seconds = self.pace.get(name, 0.2) * self.chance.uniform(0.5, 1.5)
        if wire[0] == "to_server" and kind == topics.MASKED and not job.args[3]:
            seconds += self.training * self.pace.get(name, 0.2) / 0.2
        due = max(self.now + seconds, self._last.get(wire, 0.0))
        self._last[wire] = due
        self._count += 1
        heapq.heappush(self._due, (due, self._count, job))

    def clear(self) -> None:
        """Lose everything."""
        self._due.clear()

    def __bool__(self) -> bool:
        """Whether something has arrived."""
        return bool(self._due) and self._due[0][0] <= self.now

    def next(self, otherwise: float) -> float:
        """Return when the next thing happens, ``otherwise`` at the latest."""
        return min(otherwise, self._due[0][0]) if self._due else otherwise

    def popleft(self) -> partial[None]:
        """Take what has arrived first."""
        return heapq.heappop(self._due)[2]


class TimedFleet(Fleet):
    """A fleet on slow wires.

    Args:
        folder: Where its homes are.
        devices: How many.
        seed: Of everything that is drawn.
        dropout: Share of the devices' rounds that are broken off, at a moment drawn by chance.
        reported: Share of the drop-outs that the broker reports, within seconds.
        refusers: What some devices keep back in each round.
        poisoners: Devices that deal bad shares.
        training: Seconds that a device of usual pace trains.
    """

    def __init__(
        self,
        folder: Path,
        devices: int,
        *,
        seed: int = 0,
        dropout: float = 0.0,
        reported: float = 1.0,
        refusers: Mapping[str, Refusal] | None = None,
        poisoners: frozenset[str] = frozenset(),
        training: float = 5.0,
    ) -> None:
        self.chance = random.Random(seed)
        self._dropout, self._reported = dropout, reported
        self._refusers, self._poisoners = dict(refusers or {}), poisoners
        self._breaks: dict[str, str] = {}
        self._refuses: dict[str, str] = {}
        super().__init__(folder, 0)
        names = [f"pi-{number}" for number in range(devices)]
        pace = {name: 0.2 * self.chance.lognormvariate(0, 0.4) for name in names}
        self._queue: Any = Wires(self.chance, pace, training, self.now)
        self.out: list[set[str]] = []
        self.arrive(*names)

    def make_device(self, name: str) -> Device:
        """Make a device whose randomness comes from the seed too: who is grouped with whom depends on it."""
        device = Device(name, self.operator, self.home, self.chance.randbytes)
        if name in self._poisoners:
            device.round_class = SharePoisoner
        return device

    def carry(self, effects: list[Effect]) -> None:
        """Carry out what the coordinator wants; when a round opens, everybody is back, and some will not stay."""
        if any(isinstance(e, Publish) and e.kind == topics.OPEN and e.data for e in effects):
            self._new_round()
        super().carry(effects)

    def _new_round(self) -> None:
        back, self.silent = self.silent, set()
        for name in sorted(back):
            self.announce(name)
        self.out.append(self.coordinator._judgement.conduct.sitting_out())
        self._breaks = {
            name: self.chance.choice(MOMENTS) for name in self.devices if self.chance.random() < self._dropout
        }
        self._refuses = {name: refuse(self.chance, len(self.opened)) for name, refuse in self._refusers.items()}

    def to_server(self, name: str, kind: str, data: bytes, transfer: bool = False) -> None:
        """Bring a device's message to the aggregator, unless the device has just died or refuses."""
        if self._refuses.get(name) == kind:
            return
        if self._breaks.get(name) == kind:
            del self._breaks[name]
            self.silent.add(name)
            if self.chance.random() < self._reported:
                self._queue.append(partial(self._report, name, topics.STATE, len(self.opened), False))
            return
        super().to_server(name, kind, data, transfer)

    def _report(self, name: str, kind: str, round_: int, transfer: bool) -> None:
        if name in self.silent and round_ == len(self.opened):
            self.last_will(name)

    def run_until(self, done: Callable[[], bool], seconds: float = 1e6) -> None:
        """Carry messages when they arrive, and let time pass between them."""
        deadline = self.now + seconds
        while not done():
            if self._queue:
                self._queue.popleft()()
            elif self._jobs and not self.hold_jobs:
                self._jobs.popleft()()
            else:
                assert self.now < deadline, f"{self.coordinator.phase}: {self.notes[-5:]}"
                self.now = self._queue.next(self.now + 0.5)
                self._queue.now = self.now
                self.carry(self.coordinator.tick(self.now))


@dataclass(frozen=True)
class Outcome:
    """What a simulation has shown.

    Attributes:
        closed: For every round, the share of its groups that closed.
        seconds: For every round, how long it took.
        early: Epochs that were opened before their time.
        honest_out: Share of honest devices that sat out, on average over the rounds.
        refusers_out: Share of the others that sat out in the last round.
    """

    closed: list[float]
    seconds: list[float]
    early: int
    honest_out: float
    refusers_out: float

    def share(self, first: int, last: int = 10**6) -> float:
        """Return the share of groups that closed in some rounds, counted from 1."""
        rounds = self.closed[first - 1 : last]
        return sum(rounds) / len(rounds)


def simulate(folder: Path, devices: int, rounds: int, *, group_size: int = 10, **options: Any) -> Outcome:
    """Run a task to its end; ``options`` are those of ``TimedFleet``, and of the task with ``task_`` before them."""
    task = {key.removeprefix("task_"): options.pop(key) for key in list(options) if key.startswith("task_")}
    fleet = TimedFleet(folder, devices, **options)
    bad = set(options.get("refusers") or {}) | set(options.get("poisoners", ()))
    fleet.start(
        **{
            "rounds": rounds,
            "group_size": group_size,
            "devices_min": devices,
            "windows": WINDOWS,
            "attempts": 99,
            **task,
        }
    )
    assert fleet.finish(seconds=1e7).status == "done"
    records = fleet.records()
    reasons = [note.text for note in fleet.notes if note.cause == "epoch"]
    honest = set(fleet.devices) - bad
    return Outcome(
        closed=[1 - record.groups_aborted / record.groups for record in records],
        seconds=[record.seconds for record in records],
        early=sum("rounds have passed" not in text for text in reasons) - 1,
        honest_out=sum(len(out & honest) for out in fleet.out) / len(fleet.out) / len(honest),
        refusers_out=len(fleet.out[-1] & bad) / max(1, len(bad)),
    )


def fifth(devices: int) -> list[str]:
    """Return the names of every fifth device."""
    return [f"pi-{number}" for number in range(0, devices, 5)]


__all__ = ["Device", "Outcome", "TimedFleet", "alternating", "always", "fifth", "simulate", "sometimes"]
