"""covey_simulator.adversarial: slopes at the samples, also of models with convolutions, pools and normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle
from covey_simulator.adversarial import InputGradient, perturbed

VECTORS = Path(__file__).parents[1] / "modelkit" / "vectors"


@pytest.mark.parametrize("name", ["mlp-dynamo", "cnn2d-torchscript", "transformer-torchscript", "transformer-dynamo"])
def test_slopes_are_those_of_the_loss(name: str) -> None:
    bundle = build_bundle(onnx.load(VECTORS / f"{name}.onnx"), name="m")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, *bundle.manifest.input.shape)).astype(np.float32)
    data = Dataset(x, rng.integers(0, 3, 6))
    gradient, trainer = InputGradient(bundle), Trainer(bundle)
    slope = gradient(bundle.weights, data)
    way = rng.standard_normal(x.shape).astype(np.float32)
    step = np.float32(1e-2)
    up, down = (trainer.evaluate(bundle.weights, Dataset(x + sign * step * way, data.y))[0] for sign in (1, -1))
    # The loss is a mean over samples, the slopes are each sample's own.
    assert float((slope * way).sum()) / len(x) == pytest.approx((up - down) / (2 * float(step)), rel=0.05, abs=2e-3)


def test_samples_move_up_the_loss_within_bounds() -> None:
    bundle = build_bundle(onnx.load(VECTORS / "cnn2d-torchscript.onnx"), name="m")
    rng = np.random.default_rng(3)
    data = Dataset(rng.random((20, 1, 10, 10)).astype(np.float32), rng.integers(0, 3, 20))
    gradient, trainer = InputGradient(bundle), Trainer(bundle)
    moved = perturbed(data, lambda part: gradient(bundle.weights, part), 0.1, 5, (0.0, 1.0))
    assert np.abs(moved.x - data.x).max() <= 0.1 + 1e-6
    assert 0 <= moved.x.min() <= moved.x.max() <= 1
    assert trainer.evaluate(bundle.weights, moved)[0] > trainer.evaluate(bundle.weights, data)[0]
