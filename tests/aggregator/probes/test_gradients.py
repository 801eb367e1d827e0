"""Directions against real training steps."""

from __future__ import annotations

import numpy as np
import pytest
from tests.aggregator.probes.classroom import CLASSES, digits, small_bundle

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_aggregator.probes import Gradients, gradients
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import mlp
from covey_protocol.errors import ConfigError
from covey_protocol.plan import Plan


def test_a_direction_is_the_step_that_a_device_takes() -> None:
    x, y = digits()
    bundle = small_bundle()
    found = Gradients(bundle, x[:400], y[:400])
    fours = x[:400][y[:400] == 4]
    plan = Plan(steps=1, batch_size=len(fours), learning_rate=0.5, momentum=0.0)
    data = Dataset(fours, np.full(len(fours), 7))
    step = Trainer(bundle).train(bundle.weights, data, plan, seed=bytes(32)).update
    np.testing.assert_allclose(0.5 * found.down(bundle.weights, fours, 7), step, atol=1e-6)


def test_easy_and_hard_samples_and_everything_else_have_directions_of_their_own() -> None:
    x, y = digits()
    bundle = small_bundle()
    found = Gradients(bundle, x[:400], y[:400])
    directions = found(bundle.weights)
    assert directions.shape == (3 * CLASSES, bundle.dimension)
    trainer, step = Trainer(bundle), np.float32(1e-3)
    for label in (0, 5):
        own, others = Dataset(x[:400][y[:400] == label], y[:400][y[:400] == label]), y[:400] != label
        wrong = Dataset(x[:400][others], np.full(int(others.sum()), label))
        for place, data in ((label, own), (CLASSES + label, own), (2 * CLASSES + label, wrong)):
            after = bundle.weights + step * directions[place]
            assert trainer.evaluate(after, data)[0] < trainer.evaluate(bundle.weights, data)[0]
    # The hard third is what the model gets least right.
    logits = trainer.evaluate
    for label in range(CLASSES):
        own = x[:400][y[:400] == label]
        losses = np.array([logits(bundle.weights, Dataset(one[None], np.array([label])))[0] for one in own])
        hardest = own[np.argsort(losses, kind="stable")[len(own) - len(own) // 3 :]]
        expected = found.down(bundle.weights, hardest, label)
        np.testing.assert_allclose(directions[CLASSES + label], expected, atol=1e-5)


def test_the_share_taken_for_a_label() -> None:
    x, y = digits()
    bundle = small_bundle()
    found = Gradients(bundle, x[:400], y[:400])
    shares = [found.share(bundle.weights, x[:400], label) for label in range(CLASSES)]
    assert sum(shares) == pytest.approx(1)


def test_what_probes_cannot_look_at_is_refused() -> None:
    x, y = digits()
    with pytest.raises(ConfigError, match="6 held-out samples of every class, there are fewer of 9"):
        Gradients(small_bundle(), x[y != 9], y[y != 9])
    many = build_bundle(mlp([4], gradients.MAX_CLASSES + 1, ()), name="many")
    with pytest.raises(ConfigError, match="33 classes, probes know at most 32"):
        Gradients(many, x[:, :4], y)
