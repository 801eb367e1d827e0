"""covey_agent.trainer: real bundles on real onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.batches import batches
from covey_agent.data import Dataset
from covey_agent.trainer import CancelledError, DivergedError, Trainer, TrainResult
from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol.bundle import Float32
from covey_protocol.errors import ConfigError, MalformedError
from covey_protocol.plan import Plan

SEED = bytes(range(32))


def points(samples: int, *, classes: int = 3, size: int = 4, seed: int = 0) -> Dataset:
    """A learnable task: each class scatters round a point of its own."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, size)) * 2
    y = rng.integers(0, classes, samples)
    return Dataset((centres[y] + rng.standard_normal((samples, size)) * 0.5).astype(np.float32), y)


BUNDLE = build_bundle(mlp((4,), 3, hidden=(8,), seed=1), name="points")
TRAINER = Trainer(BUNDLE)
DATA = points(75)


def train(plan: Plan, *, data: Dataset = DATA, seed: bytes = SEED, **options: Any) -> TrainResult:
    return TRAINER.train(BUNDLE.weights, data, plan, seed=seed, **options)


def numpy_training(data: Dataset, plan: Plan, orders: Iterator[np.ndarray[Any, Any]]) -> Float32:
    """The same training by hand, in float64."""
    w = [view.astype(np.float64) for view in BUNDLE.manifest.views(BUNDLE.weights)]
    v = [np.zeros_like(part) for part in w]
    steps = 0
    while steps < plan.steps_for(len(data)):
        order = next(orders)
        for start in range(0, len(data), plan.batch_size):
            if steps == plan.steps_for(len(data)):
                break
            x, y = data.x[order[start : start + plan.batch_size]], data.y[order[start : start + plan.batch_size]]
            hidden = np.maximum(x @ w[0] + w[1], 0)
            logits = hidden @ w[2] + w[3]
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            error = (p - np.eye(3)[y]) / len(y)
            back = (error @ w[2].T) * (hidden > 0)
            g = [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
            v = [plan.momentum * old + new for old, new in zip(v, g, strict=True)]
            w = [old - plan.learning_rate * new for old, new in zip(w, v, strict=True)]
            steps += 1
    return np.concatenate([part.reshape(-1) for part in w]).astype(np.float32) - BUNDLE.weights


def orders_of(seed: bytes, samples: int) -> Iterator[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(int.from_bytes(seed, "big"))
    while True:
        yield rng.permutation(samples)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(epochs=1, batch_size=25, learning_rate=0.05),
        Plan(epochs=3, batch_size=32, learning_rate=0.05),  # two full batches and one of 11
        Plan(epochs=2, batch_size=200, learning_rate=0.05),  # all in one
        Plan(epochs=1, batch_size=1, learning_rate=0.01, momentum=0.0),
        Plan(steps=1, learning_rate=0.05),
        Plan(steps=7, batch_size=32, learning_rate=0.05),
    ],
)
def test_training_is_what_arithmetic_says(plan: Plan) -> None:
    plan = msgspec.structs.replace(plan, balance=0.0)
    result = train(plan)
    assert result.steps == plan.steps_for(75)
    assert result.samples == 75
    assert result.update.dtype == np.float32
    expected = numpy_training(DATA, plan, orders_of(SEED, 75))
    np.testing.assert_allclose(result.update, expected, rtol=1e-3, atol=1e-5)


def test_classes_are_evened_out_as_the_plan_says() -> None:
    plan = Plan(epochs=3, batch_size=25, learning_rate=0.05, balance=1.25)
    rng = np.random.default_rng(int.from_bytes(SEED, "big"))
    rows = np.concatenate(list(batches(DATA.y, 25, 9, 1.25, rng)))
    passes = iter(rows.reshape(3, 75))
    np.testing.assert_allclose(train(plan).update, numpy_training(DATA, plan, passes), rtol=1e-3, atol=1e-5)
    assert (train(plan).update != train(msgspec.structs.replace(plan, balance=0.0)).update).any()


def test_training_learns() -> None:
    result = train(Plan(epochs=20, learning_rate=0.05))
    assert TRAINER.evaluate(BUNDLE.weights + result.update, points(200, seed=5))[1] > 0.95


def test_evaluation_is_of_the_incoming_model() -> None:
    first, last = train(Plan()), train(Plan(epochs=9))
    assert (first.loss, first.accuracy) == (last.loss, last.accuracy) == TRAINER.evaluate(BUNDLE.weights, DATA)


def test_evaluation_is_what_arithmetic_says() -> None:
    data = points(700)  # more than one batch, the last one smaller
    w = [view.astype(np.float64) for view in BUNDLE.manifest.views(BUNDLE.weights)]
    logits = np.maximum(data.x @ w[0] + w[1], 0) @ w[2] + w[3]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(700), data.y]
    loss, accuracy = TRAINER.evaluate(BUNDLE.weights, data)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert accuracy == (logits.argmax(axis=1) == data.y).mean()


def test_evaluation_survives_large_logits() -> None:
    loss, _ = TRAINER.evaluate(BUNDLE.weights * np.float32(1000), DATA)
    assert np.isfinite(loss)


def test_the_seed_alone_decides() -> None:
    first, again = train(Plan(epochs=2)), train(Plan(epochs=2))
    np.testing.assert_array_equal(first.update, again.update)
    assert (first.update != train(Plan(epochs=2), seed=bytes(32)).update).any()


def test_momentum_starts_at_rest_in_each_round() -> None:
    alone = train(Plan(steps=5))
    train(Plan(epochs=3, learning_rate=0.5))
    np.testing.assert_array_equal(train(Plan(steps=5)).update, alone.update)


def test_results_outlive_later_training() -> None:
    result = train(Plan(steps=5))
    copy = result.update.copy()
    train(Plan(steps=9))
    np.testing.assert_array_equal(result.update, copy)


def test_what_goes_in_is_not_changed() -> None:
    weights, x, y = BUNDLE.weights.copy(), DATA.x.copy(), DATA.y.copy()
    TRAINER.train(weights, DATA, Plan(epochs=2), seed=SEED)
    np.testing.assert_array_equal(weights, BUNDLE.weights)
    np.testing.assert_array_equal(DATA.x, x)
    np.testing.assert_array_equal(DATA.y, y)


def test_threads_do_not_change_the_result() -> None:
    result = Trainer(BUNDLE, threads=2).train(BUNDLE.weights, DATA, Plan(epochs=2), seed=SEED)
    np.testing.assert_allclose(result.update, train(Plan(epochs=2)).update, rtol=1e-3, atol=1e-5)


def test_cancel_is_asked_before_each_batch() -> None:
    done: list[tuple[int, int]] = []
    with pytest.raises(CancelledError):
        train(
            Plan(steps=10),
            cancel=lambda: len(done) == 3,
            progress=lambda step, total: done.append((step, total)),
        )
    assert done == [(1, 10), (2, 10), (3, 10)]


def test_evaluation_can_be_cancelled() -> None:
    asked: list[bool] = []

    def cancel() -> bool:
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(CancelledError):
        TRAINER.evaluate(BUNDLE.weights, points(700), cancel=cancel)


def test_a_trainer_works_on_after_a_cancelled_round() -> None:
    with pytest.raises(CancelledError):
        train(Plan(), cancel=lambda: True)
    assert train(Plan(steps=2)).steps == 2


def test_divergence_is_reported_and_not_returned() -> None:
    with pytest.raises(DivergedError, match="points"):
        TRAINER.train(BUNDLE.weights, DATA, Plan(steps=400, learning_rate=100.0, momentum=0.999), seed=SEED)


def test_a_last_step_into_infinity_is_noticed() -> None:
    trainer = Trainer(build_bundle(softmax((4,), 3), name="linear"))
    data = Dataset(np.full((1, 4), 3e38, np.float32), np.array([0]))
    with pytest.raises(DivergedError, match="weights are not finite"):
        trainer.train(np.zeros(15, np.float32), data, Plan(steps=1, learning_rate=100.0), seed=SEED)


def test_logits_that_overflow_are_noticed() -> None:
    with pytest.raises(DivergedError, match="output"):
        TRAINER.evaluate(np.full(BUNDLE.dimension, 3e38, np.float32), DATA)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (BUNDLE.weights[1:], "must be float32"),
        (BUNDLE.weights.reshape(1, -1), "must be float32"),
        (BUNDLE.weights.astype(np.float64), "must be float32"),
        (np.where(np.arange(BUNDLE.dimension) == 3, np.nan, BUNDLE.weights).astype(np.float32), "not finite"),
    ],
)
def test_unsound_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        TRAINER.train(weights, DATA, Plan(), seed=SEED)
    with pytest.raises(MalformedError, match=message):
        TRAINER.evaluate(weights, DATA)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset(DATA.x[:0], DATA.y[:0]), "no local data"),
        (Dataset(DATA.x[:, :3], DATA.y), "shape"),
        (Dataset(DATA.x, DATA.y + 1), "labels"),
        (Dataset(DATA.x, DATA.y - 1), "labels"),
    ],
)
def test_unfit_data_is_refused(data: Dataset, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Plan(), data=data)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_a_seed_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(ValueError, match="seed"):
        train(Plan(), seed=seed)
