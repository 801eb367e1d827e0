"""Models from PyTorch by both exporters, scikit-learn and Keras: taken as they are, and trained as PyTorch trains them.

``tests/modelkit/vectors/make.py`` has written the models and what their frameworks make of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from tests.modelkit.helpers import Array, run
from tests.modelkit.vectors.make import STEPS, batch

from covey_agent.graphs import Graph, Stepper
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle
from covey_protocol.bundle import GRAD_FILE, Bundle
from covey_protocol.plan import Plan

VECTORS = Path(__file__).parent / "vectors"
PLANS = {
    "sgd": Plan(learning_rate=0.05, momentum=0.9, weight_decay=0.01),
    "adam": Plan(optimiser="adam", learning_rate=0.01, momentum=0.9, beta2=0.99, weight_decay=0.1),
}
MODELS = ["mlp", "cnn1d", "cnn2d", "transformer", "autoencoder", "bits"]


def built(file: str, **options: Any) -> Bundle:
    return build_bundle(onnx.load(VECTORS / f"{file}.onnx"), name="model", **options)


def said(bundle: Bundle, weights: Array, x: Array) -> Array:
    return run(bundle.infer, [*bundle.manifest.views(weights), x])[0]


def softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_are_those_of_pytorch(name: str, exporter: str) -> None:
    with np.load(VECTORS / "losses.npz") as vectors:
        expected, after, (loss, how) = (vectors[f"{name}.{key}"] for key in ("losses", "after", "facts"))
    bundle = built(f"{name}-{exporter}", loss=str(loss), autoencoder=name == "autoencoder")
    Trainer(bundle).self_test()
    manifest, size = bundle.manifest, bundle.manifest.output_size
    sample = tuple(manifest.input.shape)
    rows = np.arange(len(batch(0, sample, str(loss), size)[0]))
    steps = Stepper(Graph(bundle, GRAD_FILE, 1), bundle, bundle.weights, batch=len(rows), plan=PLANS[str(how)])
    losses = [steps.step(*batch(step, sample, str(loss), size), rows) for step in range(STEPS)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    if not manifest.buffers:
        x = batch(0, sample, str(loss), size)[0]
        np.testing.assert_allclose(said(bundle, steps.weights(), x), after, rtol=1e-3, atol=1e-4)


def test_momentum_of_the_wrong_size_would_be_noticed() -> None:
    """The losses above follow every part of the plan: without weight decay they come out otherwise."""
    with np.load(VECTORS / "losses.npz") as vectors:
        expected = vectors["mlp.losses"]
    bundle = built("mlp-dynamo")
    plan = msgspec.structs.replace(PLANS["sgd"], weight_decay=0.0)
    steps = Stepper(Graph(bundle, GRAD_FILE, 1), bundle, bundle.weights, batch=16, plan=plan)
    losses = [steps.step(*batch(step, (6,), "cross-entropy", 3), np.arange(16)) for step in range(STEPS)]
    assert np.abs(np.array(losses) / expected - 1).max() > 1e-4


def test_both_exporters_give_the_same_weights() -> None:
    for name in MODELS:
        sizes = {built(f"{name}-{exporter}", loss="mse").dimension for exporter in ("torchscript", "dynamo")}
        assert len(sizes) == 1, name


@pytest.mark.parametrize("name", ["logistic-three", "logistic-two", "mlp-classifier", "mlp-two"])
def test_classifiers_of_sklearn_say_what_they_said(name: str) -> None:
    bundle = built(f"sklearn-{name}")
    Trainer(bundle).self_test()
    with np.load(VECTORS / "sklearn.npz") as vectors:
        x, expected = vectors["x"], vectors[name]
    np.testing.assert_allclose(softmax(said(bundle, bundle.weights, x)), expected, rtol=1e-4, atol=1e-6)


def test_regressors_of_sklearn_say_what_they_said() -> None:
    bundle = built("sklearn-mlp-regressor", loss="huber")
    with np.load(VECTORS / "sklearn.npz") as vectors:
        x, expected = vectors["x"], vectors["mlp-regressor"]
    np.testing.assert_allclose(said(bundle, bundle.weights, x)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_keras_says_what_it_said() -> None:
    bundle = built("keras")
    Trainer(bundle).self_test()
    with np.load(VECTORS / "keras.npz") as vectors:
        x, expected = vectors["x"], vectors["y"]
    np.testing.assert_allclose(softmax(said(bundle, bundle.weights, x)), expected, rtol=1e-4, atol=1e-6)


def test_vectors_tell_nothing_of_the_machine_they_were_made_on() -> None:
    for path in VECTORS.glob("*.onnx"):
        assert not any(word in path.read_bytes() for word in (b"/tmp/", b"/home/", b"site-packages")), path.name
