"""covey_protocol.score: losses and shares as numpy and the definitions say, over batches of any size."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from tests.protocol.test_bundle import BUNDLE

from covey_protocol.bundle_manifest import BundleManifest
from covey_protocol.score import Score

RNG = np.random.default_rng(2)
SAMPLES, SIZE = 37, 4
OUTPUT = RNG.standard_normal((SAMPLES, SIZE)).astype(np.float32)
NUMBERS = (OUTPUT + RNG.standard_normal((SAMPLES, SIZE)) * 1.2).astype(np.float32)
BITS = (RNG.random((SAMPLES, SIZE)) < 0.5).astype(np.float32)
LABELS = RNG.integers(0, SIZE, SAMPLES)


def manifest(loss: str, output: list[int]) -> BundleManifest:
    labelled = loss == "cross-entropy"
    target = "labels" if labelled else "values"
    changes: dict[str, Any] = {"loss": loss, "output": output, "target": target}
    return msgspec.structs.replace(BUNDLE.manifest, **changes, classes=SIZE if labelled else 0)


def score(loss: str, output: Any, target: Any, batch: int = 10) -> tuple[float, float]:
    made = Score(manifest(loss, list(output.shape[1:])))
    for start in range(0, len(output), batch):
        made.add(output[start : start + batch], target[start : start + batch])
    return made.result()


def test_labels() -> None:
    loss, right = score("cross-entropy", OUTPUT, LABELS)
    p = np.exp(OUTPUT) / np.exp(OUTPUT).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[np.arange(SAMPLES), LABELS]).mean(), rel=1e-6)
    assert right == (OUTPUT.argmax(axis=1) == LABELS).mean()


def test_yes_and_no() -> None:
    loss, right = score("binary-cross-entropy", OUTPUT, BITS)
    p = 1 / (1 + np.exp(-OUTPUT.astype(np.float64)))
    assert loss == pytest.approx(-(BITS * np.log(p) + (1 - BITS) * np.log(1 - p)).mean(), rel=1e-6)
    assert right == ((p > 0.5) == (BITS == 1)).mean()


def test_yes_and_no_survive_large_logits() -> None:
    loss, _ = score("binary-cross-entropy", OUTPUT * np.float32(1e4), BITS)
    assert np.isfinite(loss)


@pytest.mark.parametrize("shape", [(SAMPLES, SIZE), (SAMPLES, 2, 2)])
def test_numbers(shape: tuple[int, ...]) -> None:
    error = OUTPUT.astype(np.float64) - NUMBERS
    explained = 1 - (error**2).sum() / ((NUMBERS - NUMBERS.mean(axis=0)) ** 2).sum()
    assert 0.05 < explained < 0.95
    huber = np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)
    for loss, each in (("mse", error**2), ("huber", huber)):
        found = score(loss, OUTPUT.reshape(shape), NUMBERS.reshape(shape))
        np.testing.assert_allclose(found, (each.mean(), explained), rtol=1e-5)


def test_worse_than_the_mean_explains_nothing() -> None:
    assert score("mse", -5 * NUMBERS, NUMBERS)[1] == 0


def test_the_mean_itself_explains_nothing() -> None:
    assert score("mse", np.broadcast_to(NUMBERS.mean(axis=0), NUMBERS.shape), NUMBERS)[1] == pytest.approx(0, abs=1e-6)


def test_targets_without_variance_are_met_or_missed() -> None:
    level = np.full_like(NUMBERS, 0.1)
    assert score("mse", level, level) == (0, 1)
    assert score("mse", level + np.float32(0.1), level)[1] == 0


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse", "huber"])
@pytest.mark.parametrize("batch", [1, 36, 100])
def test_batches_make_no_difference(loss: str, batch: int) -> None:
    target = {"cross-entropy": LABELS, "binary-cross-entropy": BITS}.get(loss, NUMBERS)
    assert score(loss, OUTPUT, target, batch) == pytest.approx(score(loss, OUTPUT, target), rel=1e-6)
