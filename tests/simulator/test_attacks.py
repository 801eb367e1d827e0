"""attacks/: coalitions, when they start, what they see, and that a poisoner stays a trainer in all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.data import Dataset
from covey_agent.trainer import CancelledError, Trainer
from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol.errors import ConfigError
from covey_protocol.plan import Plan
from covey_protocol.ring import clip_norm
from covey_simulator.adversarial import InputGradient
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks import Coalition, PoisoningTrainer, make_attacker, malicious_devices
from covey_simulator.borrowed import BorrowedTrainer
from covey_simulator.scenario import Local, Scenario, demo_scenario

SEED = bytes(32)
PLAN = Plan(steps=5, batch_size=8)
HOSTILE = frozenset({2, 5})


@pytest.fixture(scope="module")
def honest() -> Trainer:
    return Trainer(build_bundle(softmax([6], 3), name="small"))


@pytest.fixture(scope="module")
def slices() -> list[Dataset]:
    return [samples(seed) for seed in range(6)]


def samples(seed: int) -> Dataset:
    x = np.random.default_rng(seed).random((40, 6)).astype(np.float32)
    return Dataset(x, x[:, :3].argmax(axis=1).astype(np.int64))


def scenario_with(kind: Any, clip: float = 9.0, **settings: Any) -> Scenario:
    attack = Attack(kind=kind, fraction=2 / 6, **settings)
    return Scenario(name="small", devices=6, attack=attack, clip=clip, local=Local(steps=5, batch_size=8))


def coalition_of(
    trainer: Trainer, slices: Sequence[Dataset], kind: Any, clip: float = 9.0, **settings: Any
) -> Coalition:
    return Coalition(scenario_with(kind, clip, **settings), trainer, slices, HOSTILE)


def trained(trainer: Trainer, scenario: Scenario, data: Dataset, number: int, index: int) -> Any:
    seed = scenario.seed_for("training", number, index)
    return trainer.train(trainer.bundle.weights, data, scenario.plan, seed=seed).update


@pytest.mark.parametrize(("kind", "scale", "factor"), [("sign-flip", 2.0, -2.0), ("scaling", 3.0, 3.0)])
def test_multiples_of_what_the_device_would_have_sent(
    honest: Trainer, slices: list[Dataset], kind: str, scale: float, factor: float
) -> None:
    coalition = coalition_of(honest, slices, kind, scale=scale)
    true = trained(honest, coalition.scenario, slices[5], 1, 5)
    result = PoisoningTrainer(honest, coalition, 5).train(honest.bundle.weights, slices[5], PLAN, seed=SEED)
    assert np.array_equal(result.update, np.float32(factor) * true)
    assert result.update.dtype == np.float32
    assert (result.loss, result.accuracy) == honest.evaluate(honest.bundle.weights, slices[5])
    assert (result.samples, result.steps) == (40, 5)


def test_label_flip_trains_on_the_mirrored_labels(honest: Trainer, slices: list[Dataset]) -> None:
    coalition = coalition_of(honest, slices, "label-flip")
    flipped = Dataset(slices[2].x, 2 - slices[2].y)
    sent = coalition.update_of(2, honest.bundle.weights)
    assert np.array_equal(sent, trained(honest, coalition.scenario, flipped, 1, 2))
    assert not np.array_equal(sent, trained(honest, coalition.scenario, slices[2], 1, 2))


def test_poisoners_of_data_alone_clip_and_all_others_do_not(honest: Trainer, slices: list[Dataset]) -> None:
    weights = honest.bundle.weights
    stock, free = (coalition_of(honest, slices, kind, clip=0.01) for kind in ("label-flip", "sign-flip"))
    assert np.linalg.norm(stock.update_of(2, weights)) == pytest.approx(0.01, rel=1e-5)
    boosted = coalition_of(honest, slices, "scaling", clip=0.01, scale=1e6)
    assert stock.scenario.attack.stock and not free.scenario.attack.stock
    assert np.abs(boosted.update_of(2, weights)).max() == np.float32(0.01)
    assert np.linalg.norm(boosted.update_of(2, weights)) > 0.011


def test_sleeps_until_its_round_as_models_come_in(honest: Trainer, slices: list[Dataset]) -> None:
    coalition = coalition_of(honest, slices, "sign-flip", start_round=3)
    sleeper = PoisoningTrainer(honest, coalition, 2)
    first = honest.bundle.weights
    second, third = first + np.float32(0.1), first + np.float32(0.2)
    harmful = []
    # The second round needs two attempts; both have the same model.
    for number, weights in ((1, first), (2, second), (2, second), (3, third)):
        seed = coalition.scenario.seed_for("training", number, 2)
        true = honest.train(weights, slices[2], PLAN, seed=seed).update
        harmful.append(not np.array_equal(sleeper.train(weights, slices[2], PLAN, seed=SEED).update, true))
    assert harmful == [False, False, False, True]


def test_believes_who_tells_it_the_round(honest: Trainer, slices: list[Dataset]) -> None:
    number = 4
    scenario = scenario_with("sign-flip", start_round=5)
    coalition = Coalition(scenario, honest, slices, HOSTILE, round_number=lambda: number)
    weights = honest.bundle.weights
    assert np.array_equal(coalition.update_of(2, weights), trained(honest, scenario, slices[2], 4, 2))
    number = 5
    later = weights + np.float32(1e-6)
    assert coalition.update_of(2, later) @ trained(honest, scenario, slices[2], 5, 2) < 0


def test_sees_every_honest_update_as_it_is_sent(honest: Trainer, slices: list[Dataset]) -> None:
    coalition = coalition_of(honest, slices, "sign-flip", clip=0.01)
    seen: list[Any] = []
    coalition.attacker.updates = lambda view: seen.append(view) or dict(view.own)  # type: ignore[method-assign,func-returns-value]
    coalition.updates(number=7, weights=honest.bundle.weights, present=[0, 5])
    (view,) = seen
    assert (view.round, view.clip, view.classes, list(view.honest), list(view.own)) == (7, 0.01, 3, [0, 1, 3, 4], [5])
    expected = clip_norm(trained(honest, coalition.scenario, slices[3], 7, 3), 0.01)[0]
    assert np.array_equal(view.honest[3], expected)
    with pytest.raises(KeyError):
        view.own[2]
    assert np.array_equal(view.data(5).x, slices[5].x)
    given = {0: np.ones(honest.bundle.dimension, np.float32)}
    coalition.updates(number=8, weights=honest.bundle.weights + np.float32(1), honest=given, clip=2.0)
    assert seen[1].honest is given and seen[1].clip == 2.0
    assert [len(view.history) for view in seen] == [1, 2]
    assert seen[1].rng.random() != view.rng.random()


def test_trains_nobody_whom_the_attack_does_not_look_at(honest: Trainer, slices: list[Dataset]) -> None:
    coalition = coalition_of(honest, slices, "sign-flip")
    trained_with: list[Any] = []
    plain = coalition._train
    coalition._train = lambda *given: trained_with.append(given[0]) or plain(*given)  # type: ignore[method-assign,func-returns-value]
    for index in (2, 5, 2):
        coalition.update_of(index, honest.bundle.weights)
    assert sorted(trained_with) == [2, 5]


def test_a_training_that_diverges_counts_as_nothing_learnt(honest: Trainer, slices: list[Dataset]) -> None:
    scenario = msgspec.structs.replace(
        scenario_with("sign-flip"), local=Local(steps=50, learning_rate=100.0, momentum=0.99)
    )
    wild = Dataset(slices[0].x * np.float32(1e20), slices[0].y)
    coalition = Coalition(scenario, honest, [wild] * 6, HOSTILE)
    assert not coalition.update_of(2, honest.bundle.weights).any()


@pytest.mark.parametrize(("kind", "field"), [("targeted-label-flip", "source"), ("model-replacement", "target")])
def test_a_class_that_the_model_does_not_have_is_refused(
    honest: Trainer, slices: list[Dataset], kind: str, field: str
) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{field} is 3, the model has classes 0 to 2"):
        coalition_of(honest, slices, kind, **{field: 3})
    coalition_of(honest, slices, kind, **{field: 2})


def test_is_a_trainer_in_all_else(honest: Trainer, slices: list[Dataset]) -> None:
    false = PoisoningTrainer(honest, coalition_of(honest, slices, "sign-flip"), 2)
    data = slices[2]
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
    assert offered <= set(vars(PoisoningTrainer)) | set(vars(BorrowedTrainer))


def test_the_seed_chooses_who_is_malicious() -> None:
    chosen = malicious_devices(demo_scenario())
    assert len(chosen) == 6
    assert chosen <= set(range(30))
    assert chosen == malicious_devices(demo_scenario())
    assert len({malicious_devices(demo_scenario(seed=seed)) for seed in range(5)}) == 5
    assert malicious_devices(demo_scenario(attack="none")) == frozenset()
    with pytest.raises(ValueError, match="without attack"):
        make_attacker(demo_scenario(attack="none"), frozenset())


def test_input_gradient_is_that_of_the_loss() -> None:
    trainer = Trainer(build_bundle(mlp([6], 3, hidden=[5]), name="small"))
    data = samples(0)
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(trainer.bundle.dimension).astype(np.float32)
    found = InputGradient(trainer.bundle)(weights, data)
    assert found.shape == data.x.shape
    for row, column in ((0, 0), (3, 4), (39, 5)):
        moved = []
        for step in (-1e-2, 1e-2):
            x = data.x[row : row + 1].copy()
            x[0, column] += np.float32(step)
            moved.append(trainer.evaluate(weights, Dataset(x, data.y[row : row + 1]))[0])
        assert found[row, column] == pytest.approx((moved[1] - moved[0]) / 2e-2, rel=0.02, abs=1e-3)
