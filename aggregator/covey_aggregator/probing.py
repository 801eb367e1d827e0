"""The probes at work in the service: a look at every attested round that is over, and what follows for the next.

A look is asked for as its round is settled, is made in a thread, and is kept in one piece: the probes' book together
with the evidence that follows from it. The next decision on sketches waits for it. So a ruling goes by the same
evidence before and after a restart, whether or not the look was made in between. The sketches of a round that is over
are nowhere but in memory: a crash before its look is kept loses the look, and no look counts twice.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey_aggregator.probes import Gradients, Probes
from covey_aggregator.round_run import RoundRun
from covey_aggregator.store import Store
from covey_aggregator.task import Task
from covey_protocol.errors import StateError
from covey_protocol.model import Weights
from covey_protocol.ring import RingScale

log = logging.getLogger("covey.aggregator")

_PROBES = "probes"

Sketches = dict[bytes, dict[str, NDArray[np.float64]]]
"""In the units of updates, by device, for the seed of each shard."""


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What is known after a look; this is also the form in which it is kept.

    Attributes:
        task: Whose rounds were looked at.
        round, attempt: The last of them.
        names: The devices that something is known of.
        state: The probes' book.
        evidence: What counts against devices in the next attested round.
        excused: Whose updates are those of their own labels, from 0 to 1.
    """

    task: str = ""
    round: int = 0
    attempt: int = 0
    names: list[str] = []
    state: bytes = b""
    evidence: dict[str, float] = {}
    excused: dict[str, float] = {}


@dataclass(frozen=True)
class Asked:
    """A look that is due.

    Attributes:
        task, round, attempt: At which round.
        sketches: Of the groups whose sums came out.
        gradients: Of the task's model.
        load: Reads the model that the round started from.
        known: Devices that may be remembered; the others are forgotten.
    """

    task: str
    round: int
    attempt: int
    sketches: Sketches
    gradients: Gradients
    load: Callable[[], Weights]
    known: frozenset[str]


class Probing:
    """Looks that are due, and what the last one has shown.

    Args:
        store: The aggregator's database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        kept = store.memory(_PROBES)
        self.last = msgspec.msgpack.decode(kept, type=Looked) if kept else Looked()
        self._due: deque[Asked] = deque()
        self._looking = False

    def forget(self, name: str) -> None:
        """Erase what is held about a device."""
        last = self.last
        if name not in last.names:
            return
        kept = msgspec.msgpack.decode(last.state)
        kept["devices"].pop(name, None)
        self.last = msgspec.structs.replace(
            last,
            names=[each for each in last.names if each != name],
            state=msgspec.msgpack.encode(kept),
            evidence={each: value for each, value in last.evidence.items() if each != name},
            excused={each: value for each, value in last.excused.items() if each != name},
        )
        self._store.keep(_PROBES, msgspec.msgpack.encode(self.last))

    def evidence(self, task: Task) -> Mapping[str, float]:
        """Return what counts against devices in a task's next attested round."""
        return self.last.evidence if self._speaks_of(task) else {}

    def excused(self, task: Task) -> Mapping[str, float]:
        """Return how far devices are excused in a task's next attested round, from 0 to 1."""
        return self.last.excused if self._speaks_of(task) else {}

    def _speaks_of(self, task: Task) -> bool:
        return task.probes and task.name == self.last.task

    def ask(self, run: RoundRun, gradients: Gradients, load: Callable[[], Weights], known: Collection[str]) -> None:
        """Ask for a look at a round that was just settled; rounds that showed no sketches need none.

        Args:
            run: The round.
            gradients: Of its task's model.
            load: Reads the model that it started from; called in a thread.
            known: The devices that are in good or bad standing, but neither forgotten, revoked nor banned.
        """
        task, place = run.opened.task, (run.opened.round, run.opened.attempt)
        sketches = sketches_of(run)
        if not sketches or (task == self.last.task and place <= (self.last.round, self.last.attempt)):
            return
        self._due.append(Asked(task, *place, sketches, gradients, load, frozenset(known)))

    @property
    def busy(self) -> bool:
        """Whether a look is due or being made, which the next decision waits for."""
        return self._looking or bool(self._due)

    def job(self) -> Callable[[], Looked] | None:
        """Return the look that is due, once; it runs anywhere, and its result belongs to ``done``."""
        if self._looking or not self._due:
            return None
        self._looking = True
        return partial(look, self.last, self._due.popleft())

    def done(self, looked: Looked | None) -> None:
        """Take and keep what a look has shown; None if it failed, which leaves everything as it was."""
        self._looking = False
        if looked is not None:
            self.last = looked
            self._store.keep(_PROBES, msgspec.msgpack.encode(looked))


def sketches_of(run: RoundRun) -> Sketches:
    """Return a round's sketches, but those of groups without a sum and of liars: they may say anything."""
    manifest, found = run.opened.manifest, Sketches()
    for shard, finding in run.attesting.findings.items():
        summed = [group for group in run.attesting.members_of(shard) if group.aborted is None]
        names = {name for group in summed for name in group.survivors} - set(run.liars)
        reals = finding.in_reals(RingScale.of(manifest))
        if part := {name: sketch for name, sketch in reals.items() if name in names}:
            found[run.attesting.seeds[shard]] = part
    return found


def look(last: Looked, asked: Asked) -> Looked:
    """Look at a round with all that is known of the rounds before. Heavy: call it in a thread.

    Raises:
        ConfigError: The model cannot be read.
    """
    before = last if last.task == asked.task else Looked()
    names = asked.known.intersection(before.names)
    try:
        probes = Probes(asked.gradients, state=before.state or None)
    except StateError as error:  # of another version; better to begin anew than never to look again
        log.warning("task %s: what was known of the devices' pulls is lost: %s", asked.task, error)
        probes, names = Probes(asked.gradients), frozenset()
    for name in before.names:
        if name not in names:
            probes.forget(name)
    probes.look(asked.load(), asked.sketches)
    return Looked(
        task=asked.task,
        round=asked.round,
        attempt=asked.attempt,
        names=sorted(names.union(*asked.sketches.values())),
        state=probes.encode(),
        evidence=probes.evidence(),
        excused=probes.excused(),
    )
