"""Measuring models on held-out data."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.aggregator.fleet import CLASSES, FEATURES, tiny_bundle

from covey_aggregator.evaluate import Evaluator
from covey_modelkit import build_bundle, mlp
from covey_protocol.errors import ConfigError


def save(path: Path, x: object, y: object) -> Path:
    np.savez(path, x=np.asarray(x), y=np.asarray(y))
    return path


def test_loss_and_accuracy_are_those_of_the_plain_computation(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2500, FEATURES)).astype(np.float32)  # more than two batches
    y = rng.integers(0, CLASSES, 2500)
    evaluate = Evaluator(tiny_bundle(), save(tmp_path / "held.npz", x, y))
    weights = rng.normal(size=tiny_bundle().dimension).astype(np.float32)
    matrix, bias = tiny_bundle().manifest.views(weights)
    logits = (x @ matrix + bias).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss, accuracy = evaluate(weights)
    assert loss == pytest.approx(-log_p[np.arange(2500), y].mean(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == y).mean())


def test_large_logits_do_not_overflow(tmp_path: Path) -> None:
    evaluate = Evaluator(tiny_bundle(), save(tmp_path / "held.npz", np.ones((4, FEATURES), np.float32), [0, 1, 2, 0]))
    loss, _ = evaluate(np.full(tiny_bundle().dimension, 1e4, np.float32))
    assert loss == pytest.approx(np.log(3), rel=1e-3)


X = np.zeros((4, FEATURES), np.float32)
BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("x,y\n1,2\n"),
    "one array": lambda path: path.write_bytes(_npy()),
    "cut off": lambda path: path.write_bytes(save(path, X, [0, 1, 2, 0]).read_bytes()[:300]),
    "without y": lambda path: np.savez(path, x=X),
    "pickled": lambda path: np.savez(path, x=np.array([object()] * 4), y=np.zeros(4)),
    "other shape": lambda path: save(path, X[:, 1:], [0, 1, 2, 0]),
    "other length": lambda path: save(path, X, [0, 1]),
    "label too large": lambda path: save(path, X, [0, 1, 2, CLASSES]),
    "negative label": lambda path: save(path, X, [0, 1, 2, -1]),
    "no samples": lambda path: save(path, X[:0], np.zeros(0, np.int64)),
    "not finite": lambda path: save(path, X * np.nan, [0, 1, 2, 0]),
    "words": lambda path: save(path, np.array([["a"] * FEATURES] * 4), [0, 1, 2, 0]),
}


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, X)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", BROKEN)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "held.npz"
    BROKEN[damage](path)
    with pytest.raises(ConfigError, match=r"held\.npz: "):
        Evaluator(tiny_bundle(), path)


def test_a_graph_that_onnxruntime_refuses_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "held.npz", X, [0, 1, 2, 0])
    with pytest.raises(ConfigError, match=r"infer\.onnx of 'tiny' cannot be loaded"):
        Evaluator(dataclasses.replace(tiny_bundle(), infer=b"junk"), path)


def test_numbers_are_measured_by_their_own_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bundle = build_bundle(mlp((FEATURES,), 2), name="numbers", loss="mse")
    x, y = rng.normal(size=(1500, FEATURES)).astype(np.float32), rng.normal(size=(1500, 2))
    loss, explained = Evaluator(bundle, save(tmp_path / "held.npz", x, y))(np.zeros(bundle.dimension, np.float32))
    assert loss == pytest.approx((y**2).mean(), rel=1e-5)
    assert explained == 0
    with pytest.raises(ConfigError, match="y has shape"):
        Evaluator(bundle, save(tmp_path / "held.npz", x, y[:, 0]))


def test_a_model_that_reproduces_its_input_needs_no_y(tmp_path: Path) -> None:
    bundle = build_bundle(mlp((FEATURES,), FEATURES), name="same", loss="huber", autoencoder=True)
    path = tmp_path / "held.npz"
    np.savez(path, x=np.full((5, FEATURES), 3, np.float32))
    loss, _ = Evaluator(bundle, path)(np.zeros(bundle.dimension, np.float32))
    assert loss == pytest.approx(2.5)
