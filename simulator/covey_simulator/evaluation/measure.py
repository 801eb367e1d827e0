"""One cell of the evaluation: Covey's own run, and what others would have made of the same fleet."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_aggregator.rules.mean import Mean
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_aggregator.rules.trimmed_mean import trimmed_mean
from covey_protocol.bundle import Float32
from covey_simulator.attacks import malicious_devices
from covey_simulator.chronicle import Chronicle
from covey_simulator.data import device_names, load_corpus, make_bundle, partition
from covey_simulator.engine.attendance import Attendance
from covey_simulator.engine.conductor import Step
from covey_simulator.engine.learners import Learners
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.evaluation.grid import Cell
from covey_simulator.live import PlainDisplay
from covey_simulator.records import RoundRecord
from covey_simulator.run import Material, over_a_broker
from covey_simulator.scenario import Scenario

Part = Literal["covey", "fedavg", "trimmed-mean", "multi-krum", "groups"]

BASELINES: tuple[Part, ...] = ("fedavg", "trimmed-mean", "multi-krum", "groups")
LAST_ROUNDS = 3  # accuracy is the mean over so many


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one part of a cell.

    Attributes:
        accuracy: On held-out samples, the mean of the last rounds.
        attack_success: See ``attacks.attack_success``; None where the attack has no such goal.
        rounds: How many were run.
        malicious, honest: How many devices.
        began: The round in which the attack begins.
        malicious_expelled, honest_expelled: How many were quarantined or banned after each round.
        honest_excluded: Mean share of honest devices that attested and were refused without being expelled.
        failed_rounds: Rounds in which no group closed.
        groups_aborted: Share of groups.
        exposure: In the median, how many rounds a malicious device took part in, from the attack's beginning until it
            was expelled or the run ended.
        seconds: How long it took.
    """

    accuracy: float
    attack_success: float | None
    rounds: int
    malicious: int
    honest: int
    began: int = 1
    malicious_expelled: list[int] = []
    honest_expelled: list[int] = []
    honest_excluded: float = 0.0
    failed_rounds: int = 0
    groups_aborted: float = 0.0
    exposure: float = 0.0
    seconds: float = 0.0

    def expelled_by(self, rounds: int) -> float:
        """Return the share of malicious devices that were expelled within so many rounds of the attack."""
        if not self.malicious_expelled:
            return 0.0
        at = min(self.began - 1 + rounds, len(self.malicious_expelled))
        return self.malicious_expelled[at - 1] / max(1, self.malicious)

    def rounds_to(self, share: float) -> int | None:
        """Return how many rounds of the attack it took to expel a share of the malicious, or None."""
        needed = math.ceil(share * self.malicious)
        late = self.malicious_expelled[self.began - 1 :]
        return next((count for count, expelled in enumerate(late, 1) if expelled >= needed > 0), None)

    @property
    def false_alarms(self) -> float:
        """The largest share of honest devices that was ever expelled."""
        return max(self.honest_expelled, default=0) / max(1, self.honest)


@dataclass(frozen=True, eq=False)
class _Fleet:
    scenario: Scenario
    trainer: Trainer
    slices: Sequence[Dataset]
    held_out: Dataset
    malicious: frozenset[int]


def measure(cell: Cell, part: Part) -> Result:
    """Run one part of a cell.

    Raises:
        ConfigError: The cell's scenario cannot be run.
    """
    started = time.perf_counter()
    fleet = _fleet(cell.scenario())
    if part == "covey" and cell.level == "broker":
        result = _broker(fleet)
    elif part == "covey":
        result = _covey(fleet)
    elif part == "groups":
        result = _groups(fleet)
    else:
        result = _clear(fleet, part)
    return msgspec.structs.replace(result, seconds=time.perf_counter() - started)


def _fleet(scenario: Scenario) -> _Fleet:
    corpus = load_corpus(scenario)
    malicious = malicious_devices(scenario) if scenario.malicious_count else frozenset[int]()
    trainer = _trainer(msgspec.json.encode((scenario.data, scenario.model)), scenario)
    return _Fleet(scenario, trainer, partition(corpus.train, scenario), corpus.held_out, malicious)


_trainers: dict[bytes, Trainer] = {}


def _trainer(key: bytes, scenario: Scenario) -> Trainer:
    """Return a trainer, made once for each data set and model: a bundle takes a second to build."""
    if key not in _trainers:
        _trainers[key] = Trainer(make_bundle(scenario, load_corpus(scenario)))
    return _trainers[key]


def _covey(fleet: _Fleet) -> Result:
    watch = _Watch(fleet)
    play = rehearse(fleet.scenario, fleet.trainer, fleet.slices, fleet.held_out, on_step=watch)
    names = device_names(fleet.scenario.devices)
    hostile = {names[index] for index in fleet.malicious}
    records = play.records
    groups = sum(record.groups + record.groups_aborted for record in records)
    return Result(
        accuracy=_late_mean([record.accuracy for record in records]),
        attack_success=play.attack_success,
        rounds=len(records),
        malicious=len(hostile),
        honest=len(names) - len(hostile),
        began=_began(fleet.scenario),
        malicious_expelled=[len(expelled & hostile) for expelled in play.expelled],
        honest_expelled=[len(expelled - hostile) for expelled in play.expelled],
        honest_excluded=watch.refused / max(1, watch.attested),
        failed_rounds=sum(record.failed for record in records),
        groups_aborted=sum(record.groups_aborted for record in records) / max(1, groups),
        exposure=float(np.median(list(watch.joined.values()))) if watch.joined else 0.0,
    )


def _broker(fleet: _Fleet) -> Result:
    """Run the real fleet; what its last model gives away is not asked."""
    records, chronicle = list[RoundRecord](), Chronicle()
    material = Material(fleet.trainer.bundle, fleet.slices, fleet.held_out)
    display = PlainDisplay(fleet.scenario, io.StringIO())
    with tempfile.TemporaryDirectory(prefix="covey-evaluate-") as folder:
        over_a_broker(fleet.scenario, material, Path(folder), display, records, chronicle, "mosquitto")
    names = device_names(fleet.scenario.devices)
    hostile = {names[index] for index in fleet.malicious}
    honest_attested = sum(record.attested for record in records) or 1
    groups = sum(record.groups + record.groups_aborted for record in records)
    return Result(
        accuracy=_late_mean([record.accuracy for record in records]),
        attack_success=None,
        rounds=len(records),
        malicious=len(hostile),
        honest=len(names) - len(hostile),
        began=_began(fleet.scenario),
        malicious_expelled=[len(expelled & hostile) for expelled in chronicle.expelled],
        honest_expelled=[len(expelled - hostile) for expelled in chronicle.expelled],
        honest_excluded=sum(record.honest_rejected for record in records) / honest_attested,
        failed_rounds=sum(record.failed for record in records),
        groups_aborted=sum(record.groups_aborted for record in records) / max(1, groups),
    )


class _Watch:
    """Counts what a run's records do not say: honest devices refused, and malicious ones' rounds."""

    def __init__(self, fleet: _Fleet) -> None:
        names = device_names(fleet.scenario.devices)
        self._hostile = {names[index] for index in fleet.malicious}
        self._began = _began(fleet.scenario)
        self.refused = self.attested = 0
        self.joined = dict.fromkeys(sorted(self._hostile), 0)

    def __call__(self, step: Step) -> None:
        if step.accepted is not None:
            honest = set(step.outcome.sketches) - self._hostile - step.expelled
            self.attested += len(honest)
            self.refused += len(honest - step.accepted)
        if step.record.round >= self._began:
            for group in step.outcome.groups.values():
                for name in self._hostile.intersection(group.joined) - step.expelled:
                    self.joined[name] += 1


def _groups(fleet: _Fleet) -> Result:
    """Run masked groups without sketches, with a trimmed mean that is told the true share of malicious devices."""
    scenario = fleet.scenario
    told = min(0.49, len(fleet.malicious) / scenario.devices)
    bare = msgspec.structs.replace(scenario, attestation=False, signatures=False, contamination=told)
    return _covey(_Fleet(bare, fleet.trainer, fleet.slices, fleet.held_out, fleet.malicious))


def _clear(fleet: _Fleet, part: Part) -> Result:
    """Run a rule on clear updates; each sees every device's update in full."""
    scenario, trainer = fleet.scenario, fleet.trainer
    learners = Learners(scenario, trainer, fleet.slices, fleet.malicious)
    attendance = Attendance(scenario, fleet.malicious)
    weights, accuracies = trainer.bundle.weights.copy(), list[float | None]()
    for number in range(1, scenario.rounds + 1):
        silent = attendance.silent_from(number, 1)
        present = [index for index in attendance.present(number) if index not in silent]
        works = learners.works(number, weights, present=present, clip=scenario.clip)
        if works:
            updates = learners.updates(works, scenario.clip)
            rows = [updates[index] for index in sorted(updates)]
            spoilt = sum(index in fleet.malicious for index in updates)
            weights = weights + _RULES[part](rows, spoilt)
        accuracies.append(trainer.evaluate(weights, fleet.held_out)[1])
    return Result(
        accuracy=_late_mean(accuracies),
        attack_success=learners.success(weights, fleet.held_out),
        rounds=scenario.rounds,
        malicious=len(fleet.malicious),
        honest=scenario.devices - len(fleet.malicious),
        began=_began(scenario),
    )


def _trimmed(rows: list[Float32], spoilt: int) -> Float32:
    """Cut as many devices on each side as are malicious."""
    return trimmed_mean(rows, min(spoilt, (len(rows) - 1) // 2))


_RULES: dict[Part, Callable[[list[Float32], int], Float32]] = {
    "fedavg": Mean(),
    "trimmed-mean": _trimmed,
    "multi-krum": MultiKrum(),
}


def _began(scenario: Scenario) -> int:
    return max(scenario.attack.start_round, scenario.attack.joins_at)


def _late_mean(accuracies: Sequence[float | None]) -> float:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return float(np.mean(known[-LAST_ROUNDS:])) if known else 0.0
