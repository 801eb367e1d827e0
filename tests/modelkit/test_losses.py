"""covey_modelkit.gradients.losses: values and slopes against numpy in float64, and each loss from model to device."""

from __future__ import annotations

import numpy as np
import pytest
from tests.modelkit.helpers import classifier, node, normal
from tests.modelkit.slopes import Case, check, compare

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle, mlp
from covey_protocol.errors import ConfigError
from covey_protocol.plan import Plan

LOSSES = ["cross-entropy", "binary-cross-entropy", "mse", "huber"]
RNG = np.random.default_rng(4)


@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_match_finite_differences(loss: str) -> None:
    layers = [node("Gemm", ["x", "w", "b"], "h"), node("Mul", ["h", "two"], "logits")]
    check(compare(Case(layers, {"w": (3, 2), "b": (2,)}, loss=loss, constants={"two": np.array(2, np.float32)})))


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_outputs_of_any_shape(loss: str) -> None:
    check(compare(Case([node("MatMul", ["x", "w"], "logits")], {"w": (3, 4)}, input_shape=(2, 3), loss=loss)))


def test_binary_cross_entropy_takes_in_a_last_sigmoid() -> None:
    weights = {"w": normal(RNG, 3, 1)}
    nodes = [node("MatMul", ["x", "w"], "z"), node("Sigmoid", ["z"], "logits")]
    bundle = build_bundle(classifier(nodes, weights), name="sure", loss="binary-cross-entropy")
    assert bundle.manifest.output == [1]
    assert b"Sigmoid" not in bundle.infer


def task(loss: str) -> Dataset:
    """Something that a small model can learn, for each loss."""
    x = RNG.standard_normal((300, 4)).astype(np.float32)
    hidden = np.tanh(x @ RNG.standard_normal((4, 3)))
    if loss == "cross-entropy":
        return Dataset(x, hidden.argmax(axis=1))
    return Dataset(x, (hidden > 0 if loss == "binary-cross-entropy" else hidden).astype(np.float32))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_trains_on_a_device(loss: str, optimiser: str) -> None:
    bundle = build_bundle(mlp((4,), 3, (16,)), name="small", loss=loss)
    trainer, data = Trainer(bundle), task(loss)
    trainer.self_test()
    before = trainer.evaluate(bundle.weights, data)
    rate = 0.05 if optimiser == "sgd" else 0.01
    plan = Plan(epochs=20, learning_rate=rate, optimiser=optimiser)
    update = trainer.train(bundle.weights, data, plan, seed=bytes(32)).update
    after = trainer.evaluate(bundle.weights + update, data)
    assert after[0] < 0.5 * before[0]
    assert after[1] > 0.85


def test_an_autoencoder_trains_without_targets() -> None:
    bundle = build_bundle(mlp((6,), 6, (3,)), name="narrow", loss="mse", autoencoder=True)
    assert (bundle.manifest.target, bundle.manifest.classes, bundle.manifest.trace.y) == ("input", 0, b"")
    x = (RNG.standard_normal((200, 2)) @ RNG.standard_normal((2, 6))).astype(np.float32)
    trainer = Trainer(bundle)
    trainer.self_test()
    update = trainer.train(bundle.weights, Dataset(x, x), Plan(epochs=40, learning_rate=0.01), seed=bytes(32)).update
    assert trainer.evaluate(bundle.weights + update, Dataset(x, x))[1] > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "cross-entropy", "autoencoder": True}, "an autoencoder has no labels"),
        ({"loss": "mse", "autoencoder": True}, r"\['N', 2\] is not \['N', 4\]"),
        ({"loss": "hinge"}, "'hinge' is unknown"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_bundle(mlp((4,), 2), name="odd", **options)  # type: ignore[arg-type]


def test_targets_of_another_kind_are_refused() -> None:
    trainer = Trainer(build_bundle(mlp((4,), 3), name="numbers", loss="mse"))
    x = np.zeros((5, 4), np.float32)
    for y in (np.zeros(5, np.int64), np.zeros((5, 2), np.float32)):
        with pytest.raises(ConfigError, match=r"targets must be numbers of shape \[3\]"):
            trainer.train(trainer.bundle.weights, Dataset(x, y), Plan(), seed=bytes(32))
