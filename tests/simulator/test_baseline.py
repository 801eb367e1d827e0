"""The clear baseline: the same every time, honest about what it is, and good enough to compare with."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_protocol.bundle import Bundle
from covey_protocol.errors import ConfigError
from covey_protocol.ring import clip_norm
from covey_simulator.attack_settings import Attack
from covey_simulator.baseline import RoundRecord, run_clear
from covey_simulator.data import Corpus, load_corpus, make_bundle, partition
from covey_simulator.records import final_accuracy
from covey_simulator.scenario import Local, Scenario, demo_scenario


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(demo_scenario())


@pytest.fixture(scope="module")
def bundle(corpus: Corpus) -> Bundle:
    return make_bundle(demo_scenario(), corpus)


def run(scenario: Scenario, corpus: Corpus, bundle: Bundle, **changes: Any) -> list[RoundRecord]:
    arguments: dict[str, Any] = {"attacked": True, "rule": "mean", **changes}
    slices = partition(corpus.train, scenario)
    return run_clear(scenario, slices=slices, held_out=corpus.held_out, bundle=bundle, **arguments)


def losses(records: list[RoundRecord]) -> list[float | None]:
    return [record.loss for record in records]


def test_the_demo_learns_in_the_clear_and_under_attack(corpus: Corpus, bundle: Bundle) -> None:
    scenario = demo_scenario(scale=1.0)
    assert (final_accuracy(run(scenario, corpus, bundle, attacked=False)) or 0) >= 0.93
    assert (final_accuracy(run(scenario, corpus, bundle, rule="trimmed-mean")) or 0) >= 0.88


def test_is_the_same_every_time(corpus: Corpus, bundle: Bundle) -> None:
    scenario = demo_scenario(rounds=2)
    once = run(scenario, corpus, bundle)
    assert losses(once) == losses(run(scenario, corpus, bundle))
    assert losses(once) != losses(run(scenario, corpus, bundle, attacked=False))
    assert losses(once) != losses(run(scenario, corpus, bundle, rule="median"))


def test_one_round_is_the_mean_of_clipped_updates(corpus: Corpus, bundle: Bundle) -> None:
    scenario = msgspec.structs.replace(demo_scenario(devices=4, rounds=1, attack="none"), clip=2.0)
    slices = partition(corpus.train, scenario)
    trainer = Trainer(bundle)
    updates = [
        trainer.train(bundle.weights, part, scenario.plan, seed=scenario.seed_for("training", 1, index)).update
        for index, part in enumerate(slices)
    ]
    assert min(np.linalg.norm(update) for update in updates) > 2.0
    mean = np.mean([clip_norm(update, 2.0)[0] for update in updates], axis=0)
    loss, accuracy = trainer.evaluate((bundle.weights + mean).astype(np.float32), corpus.held_out)
    (record,) = run(scenario, corpus, bundle)
    assert record.loss == pytest.approx(loss, rel=1e-5)
    assert record.accuracy == accuracy


def test_records_what_happened(corpus: Corpus, bundle: Bundle) -> None:
    told: list[RoundRecord] = []
    scenario = demo_scenario(rounds=2)
    records = run(scenario, corpus, bundle, rule="trimmed-mean", on_round=told.append)
    assert told == records
    assert [record.round for record in records] == [1, 2]
    last = records[-1]
    assert (last.participants, last.accepted, last.dropped, last.groups, last.groups_aborted) == (30, 30, 0, 5, 0)
    assert sum(last.stage_seconds.values()) == pytest.approx(last.seconds)
    assert (last.bytes_up, last.bytes_down, last.federated_accuracy) == (0, 0, None)


def test_attackers_wait_for_their_round(corpus: Corpus, bundle: Bundle) -> None:
    scenario = demo_scenario(rounds=3)
    scenario = msgspec.structs.replace(scenario, attack=msgspec.structs.replace(scenario.attack, start_round=3))
    attacked, calm = (losses(run(scenario, corpus, bundle, attacked=flag)) for flag in (True, False))
    assert attacked[:2] == calm[:2]
    assert attacked[2] != calm[2]


def test_a_wave_is_not_there_before_it_joins(corpus: Corpus, bundle: Bundle) -> None:
    wave = Attack(kind="sybil-wave", fraction=0.2, start_round=2)
    scenario = msgspec.structs.replace(demo_scenario(rounds=2), attack=wave, transport="direct", masking="simulated")
    before, after = run(scenario, corpus, bundle)
    assert (before.participants, before.accepted, before.dropped) == (24, 24, 0)
    assert (after.participants, after.accepted, after.dropped) == (30, 30, 0)


def test_divergence_is_a_drop_out(corpus: Corpus, bundle: Bundle) -> None:
    plan = Local(steps=30, batch_size=8, learning_rate=100.0, momentum=0.99)
    scenario = msgspec.structs.replace(demo_scenario(devices=8, rounds=1), local=plan)
    wild = Dataset(corpus.train.x * np.float32(1e12), corpus.train.y)
    slices = [wild, *partition(corpus.train, demo_scenario(devices=8))[1:]]
    arguments: dict[str, Any] = {"attacked": False, "rule": "mean", "held_out": corpus.held_out, "bundle": bundle}
    (record,) = run_clear(scenario, slices=slices, **arguments)
    assert record.dropped >= 1
    assert record.accepted == 8 - record.dropped
    (record,) = run_clear(scenario, slices=[wild] * 8, **arguments)
    assert (record.accepted, record.groups, record.groups_aborted, record.failed) == (0, 0, 1, True)


def test_says_loudly_that_it_is_clear(corpus: Corpus, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "covey.simulator.baseline"):
        run(demo_scenario(devices=4, rounds=1), corpus, bundle)
    assert "CLEAR" in caplog.text
    assert "no masks" in caplog.text


def test_refuses_what_does_not_fit(corpus: Corpus, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="krum"):
        run(demo_scenario(), corpus, bundle, rule="krum")
    with pytest.raises(ValueError, match="1 slices for 30 devices"):
        run_clear(
            demo_scenario(),
            attacked=False,
            rule="mean",
            slices=[corpus.train],
            held_out=corpus.held_out,
            bundle=bundle,
        )
