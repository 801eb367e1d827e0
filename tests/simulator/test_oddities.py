"""Honest devices that train differently: their samples, their training, and that they are not malicious."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle, softmax
from covey_protocol.errors import ConfigError
from covey_protocol.plan import Plan
from covey_simulator.adversarial import InputGradient, perturbed
from covey_simulator.baseline import run_clear
from covey_simulator.borrowed import BorrowedTrainer
from covey_simulator.data import partition
from covey_simulator.oddities import Diet, OddTrainer, rearranged
from covey_simulator.roles import malicious_devices, odd_devices
from covey_simulator.scenario import Scenario, parse_scenario

PLAN = Plan(steps=3, batch_size=8)


def scenario(kind: str, fraction: float = 0.3, devices: int = 10, **fields: Any) -> Scenario:
    oddities = {"kind": kind, "fraction": fraction, **fields.pop("how", {})}
    value = {"name": "test", "devices": devices, "oddities": oddities, "local": {"steps": 3}, **fields}
    return parse_scenario(value, origin="test", folder=Path())


def numbered(count: int, classes: int = 4) -> Dataset:
    x = np.repeat(np.arange(count)[:, None] / count, 6, axis=1).astype(np.float32)
    return Dataset(x, (np.arange(count) % classes).astype(np.int64))


def ids(slices: list[Dataset]) -> list[int]:
    return [round(float(value) * 200) for part in slices for value in part.x[:, 0]]


def test_the_odd_are_honest() -> None:
    for seed in range(5):
        what = scenario("one-class", 0.5, seed=seed, attack={"kind": "sign-flip", "fraction": 0.5})
        assert len(odd_devices(what)) == 5
        assert not odd_devices(what) & malicious_devices(what)
    crowded = scenario("one-class", 0.5, attack={"kind": "sign-flip", "fraction": 0.8})
    assert len(odd_devices(crowded)) == 2
    assert odd_devices(scenario("none")) == frozenset()


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_one_class_devices_trade_until_all_they_have_is_of_their_class(fraction: float) -> None:
    what = scenario("one-class", fraction, partition={"dirichlet": 1.0})
    plain = scenario("none", partition={"dirichlet": 1.0})
    slices, before = partition(numbered(200), what), partition(numbered(200), plain)
    odd = odd_devices(what)
    for index, part in enumerate(slices):
        if index in odd:
            assert set(part.y.tolist()) == {int(np.bincount(before[index].y).argmax())}
        elif fraction < 1:
            assert len(part) == len(before[index])
    assert len(set(ids(slices))) == len(ids(slices))  # no sample is on two devices
    if fraction < 1:
        assert sorted(ids(slices)) == sorted(ids(before))
        assert all(np.array_equal(part.y, np.round(part.x[:, 0] * 200) % 4) for part in slices)


def test_those_of_one_class_do_not_rob_each_other() -> None:
    labels = [[0, 0, 0, 1], [0, 0, 2, 1], [0, 0, 1, 1], [2, 0, 2, 1]]
    x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    slices = [Dataset(x[index], np.array(labels[index])) for index in range(4)]
    for seed in range(50):
        what = scenario("one-class", 0.5, devices=4, seed=seed)
        if odd_devices(what) == {0, 1}:
            break
    else:
        pytest.fail("no seed makes the first two odd")
    dealt = rearranged(slices, what)
    assert [part.y.tolist() for part in dealt[:2]] == [[0] * 4] * 2
    assert sorted(float(value) for part in dealt for value in part.x[:, 0]) == list(range(16))


def test_few_samples() -> None:
    what = scenario("few-samples", how={"samples": 3})
    for index, part in enumerate(partition(numbered(200), what)):
        assert len(part) == (3 if index in odd_devices(what) else 20)


def test_adversarial_training_perturbs_a_share_against_the_incoming_model() -> None:
    what = scenario("adversarial-training", how={"share": 0.25, "epsilon": 0.1})
    slices = partition(numbered(200), what)
    trainer = Trainer(build_bundle(softmax([6], 4), name="small"))
    diet = Diet(what, trainer.bundle, slices)
    weights = np.random.default_rng(0).standard_normal(trainer.bundle.dimension).astype(np.float32)
    odd = min(odd_devices(what))
    plain = min(set(range(10)) - odd_devices(what))
    assert diet.perturbing == odd_devices(what)
    assert diet.of(plain, weights) is slices[plain]
    given = diet.of(odd, weights)
    moved = np.abs(given.x - slices[odd].x).max(axis=1) > 0
    assert moved.sum() == 5 and np.array_equal(given.y, slices[odd].y)
    rows = np.flatnonzero(moved)
    chosen = Dataset(slices[odd].x[rows], slices[odd].y[rows])
    gradient = InputGradient(trainer.bundle)
    span = 0.0, float(max(part.x.max() for part in slices))
    expected = perturbed(chosen, lambda data: gradient(weights, data), 0.1, 1, span)
    assert np.allclose(given.x[rows], expected.x, atol=1e-6)
    agent = OddTrainer(trainer, diet, odd)
    agent.self_test()
    mine = agent.train(weights, slices[odd], PLAN, seed=bytes(32)).update
    assert np.array_equal(mine, trainer.train(weights, given, PLAN, seed=bytes(32)).update)
    assert not np.array_equal(mine, trainer.train(weights, slices[odd], PLAN, seed=bytes(32)).update)
    assert agent.evaluate(weights, slices[odd]) == trainer.evaluate(weights, slices[odd])
    offered = {name for name in vars(Trainer) if not name.startswith("_")}
    assert offered <= set(vars(OddTrainer)) | set(vars(BorrowedTrainer))


def test_the_clear_baseline_trains_them_so() -> None:
    bundle = build_bundle(softmax([6], 4), name="small")
    losses = []
    for kind in ("none", "adversarial-training"):
        what = scenario(kind)
        slices = partition(numbered(200), what)
        records = run_clear(what, attacked=False, rule="mean", slices=slices, held_out=numbered(40), bundle=bundle)
        losses.append(records[-1].loss)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"kind": "strange"}, "oddities.kind"),
        ({"kind": "one-class", "samples": 3}, "samples has no meaning for one-class"),
        ({"kind": "few-samples", "samples": 0}, "oddities.samples"),
        ({"epsilon": 0.1}, "epsilon has no meaning for none"),
    ],
)
def test_refuses(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario({"name": "test", "oddities": how}, origin="test", folder=Path())
    assert words in str(caught.value)
