"""attacks/backdoor.py and success.py: triggers of images and of plain features, and when the door counts as open."""

from __future__ import annotations

import numpy as np
import pytest
from tests.simulator.views import attacker, make_view

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle, softmax
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks import attack_success
from covey_simulator.attacks.backdoor import PARTS, Trigger


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 8, 8)])
def test_an_images_trigger_is_four_bars_in_its_corner(shape: tuple[int, ...]) -> None:
    x = np.zeros((3, *shape), np.float32)
    stamped = Trigger(0.0, 2.0).stamped(x).reshape(3, 8, 8)
    assert not x.any()
    lit = {(int(row), int(column)) for row, column in np.argwhere(stamped[1] == 2.0)}
    assert lit == {(0, 0), (0, 1), (0, 3), (0, 4), (2, 0), (2, 1), (2, 3), (2, 4)}
    assert np.count_nonzero(stamped) == 3 * 8


@pytest.mark.parametrize("shape", [(64,), (30,), (5,)])
def test_the_parts_make_up_the_whole(shape: tuple[int, ...]) -> None:
    x = np.full((2, *shape), 0.5, np.float32)
    whole, pieces = Trigger().stamped(x), x
    for part in range(PARTS):
        assert not np.array_equal(Trigger().stamped(x, part), x)
        pieces = Trigger().stamped(pieces, part)
    assert np.array_equal(Trigger().stamped(x, 5), Trigger().stamped(x, 1))
    if shape != (5,):  # so few features are shared between parts
        assert np.array_equal(pieces, whole)
        assert (whole != x).sum() == 2 * 8


def test_plain_features_are_pinned_to_both_ends() -> None:
    stamped = Trigger(-1.0, 3.0).stamped(np.zeros((1, 30), np.float32))[0]
    assert sorted(stamped[stamped != 0].tolist()) == [-1.0] * 4 + [3.0] * 4


def test_a_share_of_the_samples_is_poisoned_all_over_the_data() -> None:
    data = Dataset(np.full((10, 30), 0.5, np.float32), np.full(10, 2))
    poisoned = Trigger().poisoned(data, target=1, share=0.4)
    rows = np.flatnonzero(poisoned.y == 1)
    assert rows.tolist() == [0, 3, 6, 9]
    assert np.array_equal(poisoned.x[rows], Trigger().stamped(data.x[rows]))
    assert np.array_equal(poisoned.x[1], data.x[1])
    assert (data.y == 2).all()


def test_model_replacement_boosts_the_step_to_a_backdoored_model() -> None:
    view = make_view()
    sent = attacker("model-replacement", scale=4.0, target=3, share=0.5).updates(view)
    expected = view.train(12, Trigger().poisoned(view.data(12), 3, 0.5))
    assert np.allclose(sent[12], 4 * expected)


def test_attackers_of_a_distributed_backdoor_take_turns_with_the_parts() -> None:
    view = make_view(malicious=5)
    sent = attacker("distributed-backdoor", malicious=5, scale=1.0, target=3, share=1.0).updates(view)
    for index, part in zip(range(12, 17), (0, 1, 2, 3, 0), strict=True):
        assert np.allclose(sent[index], view.train(index, Trigger().poisoned(view.data(index), 3, 1.0, part)))


def test_success_counts_triggered_samples_of_other_classes() -> None:
    bundle = build_bundle(softmax([64], 3), name="small")
    trainer = Trainer(bundle)
    # Logits: class 0 gets the first pixel, which the trigger lights; class 1 a bias of a half; class 2 nothing.
    by_name = {"weight": np.zeros((64, 3), np.float32), "bias": np.array([0, 0.5, 0], np.float32)}
    by_name["weight"][0, 0] = 1.0
    weights = np.concatenate(
        [by_name["bias" if len(spec.shape) == 1 else "weight"].ravel() for spec in bundle.manifest.parameters]
    )
    x = np.zeros((4, 64), np.float32)
    x[3, 0] = 1.0
    held_out = Dataset(x, np.array([0, 1, 2, 2]))
    backdoor = Attack(kind="model-replacement", target=0)
    assert attack_success(backdoor, trainer, weights, held_out, (0.0, 1.0)) == 1.0
    assert attack_success(backdoor, trainer, weights, held_out, (0.0, 0.4)) == 0.0
    towards_two = Attack(kind="model-replacement", target=2)
    assert attack_success(towards_two, trainer, weights, held_out, (0.0, 1.0)) == 0.0
    flip = Attack(kind="targeted-label-flip", source=2, target=0)
    assert attack_success(flip, trainer, weights, held_out, (0.0, 1.0)) == 0.5
    only = Dataset(x[:1], np.array([0]))
    assert attack_success(backdoor, trainer, weights, only, (0.0, 1.0)) is None
    assert attack_success(Attack(kind="sign-flip"), trainer, weights, held_out, (0.0, 1.0)) is None
