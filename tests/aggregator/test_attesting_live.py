"""Attested rounds over a real broker with real agents: the model learns although one device pulls the other way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.aggregator.live import (
    CLASSES,
    FEATURES,
    SAMPLES,
    Agents,
    Clock,
    Live,
    Tap,
    bundle,
    enrol_agent,
    live_homes,
    live_task,
    until,
)

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer, TrainResult
from covey_aggregator import probing
from covey_aggregator.home import DATABASE_FILE
from covey_aggregator.probing import Asked, Looked
from covey_aggregator.store import Store
from covey_aggregator.task import Attestation
from covey_protocol import envelope, model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.plan import Plan
from covey_simulator.broker import RunningBroker

NAMES = [f"pi-{number}" for number in range(10)]
FLIPPER = NAMES[4]
K = 32
ALIKE = Plan(steps=20, batch_size=SAMPLES, learning_rate=0.5, momentum=0.0)
TRUTH = np.random.default_rng(17).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def labelled(seed: list[int], samples: int) -> dict[str, Any]:
    """Return samples whose labels can be learnt."""
    x = np.random.default_rng(seed).normal(size=(samples, FEATURES)).astype(np.float32)
    return {"x": x, "y": (x @ TRUTH).argmax(axis=1)}


class Flipping(Agents):
    """Agents of which one sends ten times the opposite of what it has learnt, within no bound but the ring's."""

    def _maker(self, name: str) -> Callable[[Bundle], Trainer]:
        make = super()._maker(name)

        def flipped(of: Bundle) -> Trainer:
            trainer = make(of)
            train = trainer.train

            def backwards(weights: Any, data: Dataset, plan: Plan, **options: Any) -> TrainResult:
                result = train(weights, data, plan, **options)
                return TrainResult(**{**vars(result), "update": -10 * result.update})

            trainer.train = backwards  # type: ignore[method-assign]
            return trainer

        return flipped if name == FLIPPER else make


def test_the_service_looks_at_every_round_and_goes_on_where_a_look_fails(
    mosquitto: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads: dict[int, str] = {}

    def look(last: Looked, asked: Asked) -> Looked:
        threads[asked.round] = threading.current_thread().name
        if asked.round == 2:
            raise OSError("no memory")
        return real(last, asked)

    real = probing.look
    monkeypatch.setattr(probing, "look", look)
    operator, home = live_homes(tmp_path, mosquitto)
    np.savez(tmp_path / "held-out.npz", **labelled([99], 400))
    homes = [enrol_agent(tmp_path, operator, home, name) for name in NAMES[:5]]
    with Live(home, clock=Clock()) as live, Agents(homes):
        fields: dict[str, Any] = {"group_size": 5, "devices_min": 5, "attestation": Attestation(sketch=K)}
        task = live_task(tmp_path, rounds=3, held_out=str(tmp_path / "held-out.npz"), probes=True, **fields)
        live.service.store.add_task(task)
        live.until_ended()
        assert live.status() == "done"
        until(lambda: live.call(lambda: live.service.coordinator.probing.last.round) == 3, "the last look")
        last = live.call(lambda: live.service.coordinator.probing.last)
    assert all(name.startswith("covey-jobs") for name in threads.values()), threads
    assert sorted(threads) == [1, 2, 3]
    assert "look at the last round failed" in caplog.text
    devices = msgspec.msgpack.decode(last.state)["devices"]
    assert {name: device["rounds"] for name, device in devices.items()} == dict.fromkeys(NAMES[:5], 2)
    store = Store(home.path / DATABASE_FILE)
    assert probing.Probing(store).last == last
    store.close()


def test_a_sign_flipper_is_left_out_and_the_model_learns(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    np.savez(tmp_path / "held-out.npz", **labelled([99], 400))
    homes = []
    for name in NAMES:
        homes.append(enrol_agent(tmp_path, operator, home, name))
        np.savez(homes[-1].data_path, **labelled(list(name.encode()), 8 * SAMPLES))
    with Tap(mosquitto) as tap, Live(home, clock=Clock()) as live, Flipping(homes) as agents:
        task = live_task(
            tmp_path,
            rounds=3,
            devices_min=len(NAMES),
            group_size=5,
            clip=80.0,  # far above honest norms, as in a first round; it shrinks by half each time
            local=ALIKE,
            held_out=str(tmp_path / "held-out.npz"),
            attestation=Attestation(sketch=K),
        )
        live.service.store.add_task(task)
        live.until_ended()
        assert live.status() == "done"
        records = live.call(lambda: live.service.store.rounds("digits"))
        spent = {name: running.agent.ledger.sketched() for name, running in agents.running.items()}
        shown = agents.running[NAMES[0]].agent.snapshot()["sketches"]
        status = [running.agent.refusals.counts for running in agents.running.values()]
    assert [(record.attested, record.groups_aborted) for record in records] == [(len(NAMES), 0)] * 3
    for record in records:
        assert FLIPPER in {name for detail in record.details for name in detail.rejected}
        assert record.rejected <= 2
    before = bundle().weights
    for record in records:  # the step is that of the others alone
        after = model.from_bytes((home.path / "models" / record.model).read_bytes())
        kept = {name for detail in record.details for name in detail.survivors}
        mine = [u for name, weights, u in agents.seen if name in kept and np.array_equal(weights, before)]
        assert len(mine) == len(kept) == record.accepted
        clear = np.mean([update * min(1.0, record.clip / float(np.linalg.norm(update))) for update in mine], axis=0)
        step = after - before
        assert float(step @ clear) / float(np.linalg.norm(step) * np.linalg.norm(clear)) > 0.95
        before = after
    accuracies = [record.accuracy for record in records if record.accuracy is not None]
    assert accuracies[-1] > 0.3, accuracies
    assert accuracies == sorted(accuracies)
    assert spent == dict.fromkeys(NAMES, 3 * K)
    assert shown == {"numbers": 3 * K, "budget": None}
    assert not [counts for counts in status if set(counts) - {"stage", "stale", "wrong-round", "replayed"}]
    # Nothing that the broker carries tells a sketch: reports are sealed.
    attested = [data for topic, data in tap.heard if topics.kind_of(topic) == topics.ATTEST and "/up/" in topic]
    assert len({envelope.parse(data).payload for data in attested}) == 3 * len(NAMES)
