"""What a fleet of real agents learns over a broker is what the fast level makes of the same vectors, bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.trainer import Trainer, TrainResult
from covey_aggregator.combine import combine, group_mean
from covey_aggregator.records import RoundRecord
from covey_protocol import model, ring
from covey_protocol.device_round import DeviceRound
from covey_protocol.epochs import Grouping
from covey_protocol.messages import Manifest
from covey_protocol.model import Weights
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics, RingScale
from covey_simulator.data import load_corpus, make_bundle, partition, write_slices
from covey_simulator.engine.draws import Draws
from covey_simulator.engine.parts import Finding, Order, Work
from covey_simulator.engine.plain import PlainRounds
from covey_simulator.fleet import Fleet
from covey_simulator.scenario import Scenario, parse_scenario


class Recorder:
    """Notes what real devices encode, and under which seed, while they do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.works: dict[tuple[int, int], dict[str, Work]] = {}
        self.seeds: dict[tuple[str, int, int], bytes] = {}
        self.manifests: dict[tuple[int, int], Manifest] = {}
        self.groupings: dict[str, Grouping] = {}
        self._here = threading.local()
        trained, encode, recorder = DeviceRound.trained, ring.encode, self

        def watched(self: DeviceRound, update: Weights, metrics: Metrics) -> Any:
            place = self.opened.round, self.opened.attempt
            result = TrainResult(update.copy(), metrics.loss, metrics.accuracy, int(metrics.samples), 1)
            recorder.works.setdefault(place, {})[self.name] = Work(result)
            recorder.manifests[place] = self.opened.manifest
            recorder.groupings[self._grouping.group] = self._grouping
            recorder._here.place = self.name, *place
            return trained(self, update, metrics)

        def noted(update: Weights, metrics: Metrics, scale: RingScale, seed: bytes, factor: float = 1.0) -> Ring:
            recorder.seeds[recorder._here.place] = seed
            return encode(update, metrics, scale, seed, factor)

        monkeypatch.setattr(DeviceRound, "trained", watched)
        monkeypatch.setattr(ring, "encode", noted)


class Recorded(Draws):
    """The draws of real devices."""

    def __init__(self, scenario: Scenario, seeds: dict[tuple[str, int, int], bytes]) -> None:
        super().__init__(scenario)
        self._seeds = seeds

    def rounding(self, device: str, round_: int, attempt: int) -> bytes:
        return self._seeds[device, round_, attempt]


def test_over_a_broker_the_same_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"name": "level", "devices": 12, "rounds": 3, "group_size": 4, "local": {"steps": 5}, "clip": 1.5}
    scenario = parse_scenario(value, origin="test", folder=Path())
    corpus = load_corpus(scenario)
    bundle, slices = make_bundle(scenario, corpus), partition(corpus.train, scenario)
    recorder = Recorder(monkeypatch)
    records = over_a_broker(tmp_path, scenario, bundle, slices, corpus.held_out)
    monkeypatch.undo()
    rounds = PlainRounds(Recorded(scenario, recorder.seeds), group_size=scenario.group_size)
    trainer, weights = Trainer(bundle), bundle.weights.copy()
    groupings = sorted(recorder.groupings.values(), key=lambda grouping: grouping.group)
    assert len(records) == 3 and len(groupings) == 3
    for record in records:
        place = record.round, record.attempt
        manifest = recorder.manifests[place]
        assert manifest.model.digest == model.model_digest(weights), f"the model of round {record.round}"
        order = Order(
            round=record.round,
            attempt=record.attempt,
            weights=weights,
            clip=manifest.clip,
            works=recorder.works[place],
            silent_from={},
            sketch=0,
            lot=1,
            watched=lambda members: True,
        )
        outcome = rounds.run(order, groupings, frozenset(), everybody)
        means = {}
        for name, group in outcome.groups.items():
            assert group.total is not None and len(group.summed) == 4
            mean = group_mean(group.total, len(group.summed), outcome.scale)
            assert mean is not None
            means[name] = mean
        rule, contamination = scenario.across_groups, scenario.contamination
        weights = combine(weights, means, rule=rule, contamination=contamination, evaluator=None).weights
        loss, accuracy = trainer.evaluate(weights, corpus.held_out)
        assert record.accuracy == accuracy
        assert record.loss == pytest.approx(loss, rel=1e-5)


def everybody(finding: Finding) -> frozenset[str]:
    return frozenset(finding.sketches)


def over_a_broker(folder: Path, scenario: Scenario, bundle: Any, slices: Any, held_out: Any) -> list[RoundRecord]:
    data = write_slices(slices, folder / "data")
    (folder / "model.bundle").write_bytes(bundle.encode())
    np.savez(folder / "held-out.npz", x=held_out.x, y=held_out.y)
    with Fleet(folder, scenario, slices=slices, data=data, prefer="mosquitto") as fleet:
        fleet.start_task(folder / "model.bundle", folder / "held-out.npz")
        return list(fleet.rounds())
