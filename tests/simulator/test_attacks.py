"""Poisoners: what they change, when they start, and that everything else stays a trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from covey_agent.data import Dataset
from covey_agent.trainer import CancelledError, Trainer
from covey_modelkit import build_bundle, softmax
from covey_protocol.plan import Plan
from covey_simulator.attacks import PoisoningTrainer, malicious_devices
from covey_simulator.scenario import Attack, demo_scenario

SEED = bytes(32)
PLAN = Plan(steps=5, batch_size=8)


@pytest.fixture(scope="module")
def honest() -> Trainer:
    return Trainer(build_bundle(softmax([6], 3), name="small"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.random((40, 6)).astype(np.float32)
    return Dataset(x, x[:, :3].argmax(axis=1).astype(np.int64))


def poisoner(honest: Trainer, kind: Any, scale: float = 1.0, start_round: int = 1) -> PoisoningTrainer:
    return PoisoningTrainer(honest, Attack(kind=kind, scale=scale, start_round=start_round))


@pytest.mark.parametrize(("kind", "scale", "factor"), [("sign-flip", 2.0, -2.0), ("scaling", 3.0, 3.0)])
def test_multiples_of_the_honest_update(honest: Trainer, data: Dataset, kind: str, scale: float, factor: float) -> None:
    weights = honest.bundle.weights
    true = honest.train(weights, data, PLAN, seed=SEED)
    false = poisoner(honest, kind, scale).train(weights, data, PLAN, seed=SEED)
    assert np.array_equal(false.update, np.float32(factor) * true.update)
    assert false.update.dtype == np.float32
    assert (false.loss, false.accuracy, false.samples, false.steps) == (true.loss, true.accuracy, 40, 5)


def test_noise_has_the_size_of_the_update_and_nothing_else_of_it(honest: Trainer) -> None:
    wide = Trainer(build_bundle(softmax([400], 3), name="wide"))
    rng = np.random.default_rng(0)
    data = Dataset(rng.random((40, 400)).astype(np.float32), rng.integers(0, 3, 40))
    true = wide.train(wide.bundle.weights, data, PLAN, seed=SEED).update
    noise = poisoner(wide, "gaussian", 2.0).train(wide.bundle.weights, data, PLAN, seed=SEED).update
    assert np.linalg.norm(noise) == pytest.approx(2.0 * np.linalg.norm(true), rel=0.1)
    assert abs(noise @ true) < 0.15 * np.linalg.norm(noise) * np.linalg.norm(true)
    other = poisoner(wide, "gaussian", 2.0).train(wide.bundle.weights, data, PLAN, seed=bytes([1] * 32)).update
    assert not np.array_equal(noise, other)


def test_label_flip_trains_on_the_mirrored_labels(honest: Trainer, data: Dataset) -> None:
    weights = honest.bundle.weights
    flipped = Dataset(data.x, 2 - data.y)
    expected = honest.train(weights, flipped, PLAN, seed=SEED)
    false = poisoner(honest, "label-flip").train(weights, data, PLAN, seed=SEED)
    assert np.array_equal(false.update, expected.update)
    assert not np.array_equal(false.update, honest.train(weights, data, PLAN, seed=SEED).update)


def test_sleeps_until_its_round_as_models_come_in(honest: Trainer, data: Dataset) -> None:
    sleeper = poisoner(honest, "sign-flip", start_round=3)
    first = honest.bundle.weights
    second, third = first + np.float32(0.1), first + np.float32(0.2)
    harmful = []
    # The second round needs two attempts; both have the same model.
    for weights in (first, second, second, third):
        true = honest.train(weights, data, PLAN, seed=SEED).update
        harmful.append(not np.array_equal(sleeper.train(weights, data, PLAN, seed=SEED).update, true))
    assert harmful == [False, False, False, True]


def test_believes_who_tells_it_the_round(honest: Trainer, data: Dataset) -> None:
    number = 4
    attack = Attack(kind="sign-flip", start_round=5)
    sleeper = PoisoningTrainer(honest, attack, round_number=lambda: number)
    true = honest.train(honest.bundle.weights, data, PLAN, seed=SEED).update
    assert np.array_equal(sleeper.train(honest.bundle.weights, data, PLAN, seed=SEED).update, true)
    number = 5
    assert np.array_equal(sleeper.train(honest.bundle.weights, data, PLAN, seed=SEED).update, -true)


def test_is_a_trainer_in_all_else(honest: Trainer, data: Dataset) -> None:
    false = poisoner(honest, "sign-flip")
    assert isinstance(false, Trainer)
    assert false.bundle is honest.bundle
    false.self_test()
    assert false.evaluate(honest.bundle.weights, data) == honest.evaluate(honest.bundle.weights, data)
    seen: list[tuple[int, int]] = []
    false.train(honest.bundle.weights, data, PLAN, seed=SEED, progress=lambda *at: seen.append(at))
    assert seen[-1] == (5, 5)
    with pytest.raises(CancelledError):
        false.train(honest.bundle.weights, data, PLAN, seed=SEED, cancel=lambda: True)


def test_overrides_all_that_a_trainer_offers() -> None:
    # The constructor does not run the trainer's own: a method that is not overridden would find no sessions.
    offered = {name for name in vars(Trainer) if not name.startswith("_")}
    assert offered <= set(vars(PoisoningTrainer))


def test_the_seed_chooses_who_is_malicious() -> None:
    chosen = malicious_devices(demo_scenario())
    assert len(chosen) == 6
    assert chosen <= set(range(30))
    assert chosen == malicious_devices(demo_scenario())
    assert len({malicious_devices(demo_scenario(seed=seed)) for seed in range(5)}) == 5
    assert malicious_devices(demo_scenario(attack="none")) == frozenset()
