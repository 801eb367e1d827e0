"""What a fleet of real agents learns over a broker is what the fast level makes of the same vectors, bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.trainer import Trainer, TrainResult
from covey_aggregator.combine import combine, group_mean
from covey_aggregator.home import DATABASE_FILE
from covey_aggregator.probes import Gradients, Probes
from covey_aggregator.probing import Probing
from covey_aggregator.records import RoundRecord
from covey_aggregator.store import Store
from covey_protocol import model, ring
from covey_protocol.device_attestation import DeviceAttestation
from covey_protocol.device_round import DeviceRound
from covey_protocol.epochs import Grouping
from covey_protocol.messages import Attest, Manifest
from covey_protocol.model import Weights
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics, RingScale
from covey_simulator.data import device_names, load_corpus, make_bundle, partition, write_slices
from covey_simulator.engine.draws import Draws
from covey_simulator.engine.judge import Heard, make_judge
from covey_simulator.engine.parts import Order, Work
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
        self.rhos: dict[tuple[int, int], bytes] = {}
        self._here = threading.local()
        trained, encode, recorder = DeviceRound.trained, ring.encode, self

        def watched(self: DeviceRound, update: Weights, metrics: Metrics) -> Any:
            place = self.opened.round, self.opened.attempt
            result = TrainResult(update.copy(), metrics.loss, metrics.accuracy, int(metrics.samples), 1)
            clips = type(self).clip is DeviceRound.clip
            recorder.works.setdefault(place, {})[self.name] = Work(result, clips=clips)
            recorder.manifests[place] = self.opened.manifest
            recorder.groupings[self._grouping.group] = self._grouping
            recorder._here.place = self.name, *place
            return trained(self, update, metrics)

        def noted(
            update: Weights, metrics: Metrics, scale: RingScale, seed: bytes, factor: float, *, clips: bool
        ) -> Ring:
            recorder.seeds[recorder._here.place] = seed
            return encode(update, metrics, scale, seed, factor, clips=clips)

        seed = DeviceAttestation.seed

        def attested(self: DeviceAttestation, attest: Attest) -> bytes:
            rho = seed(self, attest)
            assert recorder.rhos.setdefault((self.opened.round, self.opened.attempt), rho) == rho
            return rho

        monkeypatch.setattr(DeviceAttestation, "seed", attested)
        monkeypatch.setattr(DeviceRound, "trained", watched)
        monkeypatch.setattr(ring, "encode", noted)


class Recorded(Draws):
    """The draws of real devices."""

    def __init__(self, scenario: Scenario, recorder: Recorder) -> None:
        super().__init__(scenario)
        self._recorder = recorder

    def rounding(self, device: str, round_: int, attempt: int) -> bytes:
        return self._recorder.seeds[device, round_, attempt]

    def shard_seed(self, shard: str, round_: int, attempt: int) -> bytes:
        return self._recorder.rhos[round_, attempt]


PLAIN: dict[str, Any] = {"devices": 12, "rounds": 3, "group_size": 4, "clip": 1.5}
ATTESTED: dict[str, Any] = {
    "devices": 16,
    "rounds": 4,
    "group_size": 8,
    "clip": 2.5,
    "attestation": {"sketch": 16},
    "adaptive_clip": True,
    "probes": True,
    "attack": {"kind": "sign-flip", "fraction": 0.125, "scale": 4.0},
}


NOISY: dict[str, Any] = {**PLAIN, "group_size": 6, "privacy": {"epsilon": 200, "a_min": 5}}


@pytest.mark.parametrize(
    "fields", [PLAIN, NOISY, ATTESTED], ids=["without sketches", "with noise", "with sketches, under attack"]
)
def test_over_a_broker_the_same_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    scenario = parse_scenario({"name": "level", "local": {"steps": 5}, **fields}, origin="test", folder=Path())
    corpus = load_corpus(scenario)
    bundle, slices = make_bundle(scenario, corpus), partition(corpus.train, scenario)
    recorder = Recorder(monkeypatch)
    records = over_a_broker(tmp_path, scenario, bundle, slices, corpus.held_out)
    monkeypatch.undo()
    rounds = PlainRounds(Recorded(scenario, recorder), group_size=scenario.group_size)
    probes = Probes(Gradients(bundle, corpus.held_out.x, corpus.held_out.y)) if scenario.probes else None
    judge = make_judge(scenario, probes)
    books: dict[int, bytes] = {}
    judge.admit(device_names(scenario.devices))
    trainer, weights = Trainer(bundle), bundle.weights.copy()
    groupings = sorted(recorder.groupings.values(), key=lambda grouping: grouping.group)
    assert len(records) == scenario.rounds and len(groupings) == scenario.devices // scenario.group_size
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
            sketch=manifest.sketch,
            lot=1,
            watched=lambda members: True,
            noise=manifest.noise,
            a_min=manifest.a_min,
        )
        outcome = rounds.run(order, groupings, frozenset(), judge.accept)
        details = {detail.group: detail for detail in record.details}
        means = {}
        for name, group in outcome.groups.items():
            assert list(group.summed) == details[name].survivors, f"the set A of round {record.round}"
            assert group.total is not None
            mean = group_mean(group.total, len(group.summed), outcome.scale)
            assert mean is not None
            means[name] = mean
        contamination = max(scenario.contamination, judge.contamination() or 0.0)
        rule = scenario.across_groups
        weights = combine(weights, means, rule=rule, contamination=contamination, evaluator=None).weights
        judge.look(order.weights, outcome)
        books[record.round] = probes.encode() if probes is not None else b""
        judge.settle(Heard(answered=frozenset(order.works)))
        loss, accuracy = trainer.evaluate(weights, corpus.held_out)
        assert record.accuracy == accuracy
        assert record.loss == pytest.approx(loss, rel=1e-5)
    if scenario.attesting is not None:
        assert any(detail.rejected for record in records for detail in record.details)
        assert all(record.clip < scenario.clip for record in records[1:])
        same_book(tmp_path / "home", books)


def same_book(home: Path, books: dict[int, bytes]) -> None:
    """The service has looked at the same; the look at the last round may have come too late."""
    store = Store(home / DATABASE_FILE)
    last = Probing(store).last
    store.close()
    assert last.round >= len(books) - 1
    looked, rehearsed = (msgspec.msgpack.decode(book)["devices"] for book in (last.state, books[last.round]))
    assert looked.keys() == rehearsed.keys() == set(last.names)
    for name, device in looked.items():
        assert device["rounds"] == rehearsed[name]["rounds"] == last.round
        for field in ("squares", "products"):
            mine, theirs = (np.frombuffer(it[field], "<f4") for it in (device, rehearsed[name]))
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4 * float(np.abs(theirs).max()))


def over_a_broker(folder: Path, scenario: Scenario, bundle: Any, slices: Any, held_out: Any) -> list[RoundRecord]:
    data = write_slices(slices, folder / "data")
    (folder / "model.bundle").write_bytes(bundle.encode())
    np.savez(folder / "held-out.npz", x=held_out.x, y=held_out.y)
    with Fleet(folder, scenario, slices=slices, data=data, prefer="mosquitto") as fleet:
        fleet.start_task(folder / "model.bundle", folder / "held-out.npz")
        return list(fleet.rounds())
