"""covey_modelkit.build: the graphs of a bundle train as independent arithmetic says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.modelkit.helpers import Array, classifier, linear, node, normal, run

from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol.bundle import Bundle
from covey_protocol.errors import ConfigError
from covey_protocol.optimiser import Optimiser
from covey_protocol.plan import Plan

# Losses of 20 steps of the model below (seed 0) on the batches below, as `numpy_losses` computes them in float64.
GOLDEN = [
    2.141187627767222,
    2.2146026205074443,
    1.4089318619615945,
    1.492588453350258,
    1.2741013144021969,
    1.3119121217720882,
    1.0507509333056686,
    0.9675000044044548,
    0.9762010445920862,
    1.2514171962881608,
    1.0898770168624332,
    0.9468679475877684,
    0.989508999598761,
    0.9613803668139579,
    0.6729920609058491,
    0.7294994853065362,
    0.7014094984521165,
    0.5244930675431787,
    0.7035053528160647,
    0.5841277536665234,
]
LEARNING_RATE, MOMENTUM, STEPS, BATCH = 0.05, 0.9, 20, 16


def batches() -> list[tuple[Array, Array]]:
    """Batches of a learnable task: labels are the nearest of four fixed points."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((4, 6))
    made = []
    for _ in range(STEPS):
        y = rng.integers(0, 4, BATCH)
        made.append(((centres[y] + 0.5 * rng.standard_normal((BATCH, 6))).astype(np.float32), y))
    return made


def numpy_losses(weights: list[Array]) -> list[float]:
    """Train a perceptron of any depth by hand, in float64."""
    parameters = [weight.astype(np.float64) for weight in weights]
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    losses = []
    for x, y in batches():
        layers = [x.astype(np.float64)]
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            layers.append(layers[-1] @ weight + bias)
            if len(layers) <= len(parameters) // 2:
                layers[-1] = np.maximum(layers[-1], 0)
        logits = layers.pop()
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses.append(float(-np.log(p[np.arange(BATCH), y]).mean()))
        error = (p - np.eye(4)[y]) / BATCH
        gradients: list[Array] = []
        for weight, layer in zip(parameters[-2::-2], layers[::-1], strict=True):
            gradients = [layer.T @ error, error.sum(axis=0), *gradients]
            error = (error @ weight.T) * (layer > 0)
        velocities = [MOMENTUM * v + g for v, g in zip(velocities, gradients, strict=True)]
        parameters = [w - LEARNING_RATE * v for w, v in zip(parameters, velocities, strict=True)]
    return losses


def bundle_losses(bundle: Bundle) -> list[float]:
    weights = bundle.weights.copy()
    optimiser = Optimiser(weights, bundle.dimension, Plan(learning_rate=LEARNING_RATE, momentum=MOMENTUM))
    losses = []
    for x, y in batches():
        *slopes, loss = run(bundle.grad, [*bundle.manifest.views(weights), x, y])
        optimiser.step(np.concatenate([slope.reshape(-1) for slope in slopes]))
        losses.append(float(loss))
    return losses


def test_twenty_steps_follow_the_golden_losses() -> None:
    bundle = build_bundle(mlp((6,), 4, hidden=(8, 5), seed=0), name="golden")
    expected = numpy_losses(bundle.manifest.views(bundle.weights))
    np.testing.assert_allclose(expected, GOLDEN, rtol=1e-9)
    np.testing.assert_allclose(bundle_losses(bundle), GOLDEN, rtol=2e-5)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 8, 7)])
def test_any_depth_trains_as_arithmetic_says(hidden: tuple[int, ...]) -> None:
    bundle = build_bundle(mlp((6,), 4, hidden=hidden, seed=3), name="deep")
    expected = numpy_losses(bundle.manifest.views(bundle.weights))
    np.testing.assert_allclose(bundle_losses(bundle), expected, rtol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_any_batch_size_runs(rows: int) -> None:
    bundle = build_bundle(softmax((2, 3), 4), name="test")
    views = bundle.manifest.views(bundle.weights)
    x = normal(np.random.default_rng(0), rows, 2, 3)
    assert run(bundle.infer, [*views, x])[0].shape == (rows, 4)
    assert run(bundle.grad, [*views, x, np.zeros(rows, np.int64)])[-1].shape == ()


def test_graphs_are_standard() -> None:
    bundle = build_bundle(mlp((2, 3), 4), name="test")
    for content in (bundle.grad, bundle.infer):
        model = onnx.load_from_string(content)
        assert model.ir_version <= 10
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert {part.domain for part in model.graph.node} == {""}
        assert not model.functions
        onnx.checker.check_model(model, full_check=True)


def test_weights_are_not_stored_in_the_graphs() -> None:
    bundle = build_bundle(mlp((64,), 10), name="test")
    for content in (bundle.grad, bundle.infer):
        assert sum(len(tensor.raw_data) for tensor in onnx.load_from_string(content).graph.initializer) < 100


def test_the_manifest_says_what_the_model_is() -> None:
    bundle = build_bundle(mlp((2, 3), 4, hidden=(5,)), name="shapes")
    manifest = bundle.manifest
    assert (manifest.name, manifest.loss, manifest.opset, manifest.classes) == ("shapes", "cross-entropy", 18, 4)
    assert (manifest.input.name, manifest.input.shape) == ("x", [2, 3])
    assert [(spec.name, spec.shape) for spec in manifest.parameters] == [
        ("hidden1.weight", [6, 5]),
        ("hidden1.bias", [5]),
        ("output.weight", [5, 4]),
        ("output.bias", [4]),
    ]
    assert bundle.dimension == bundle.weights.size == 6 * 5 + 5 + 5 * 4 + 4


def test_building_twice_gives_the_same_bytes() -> None:
    first, second = (build_bundle(mlp((6,), 4), name="test").encode() for _ in range(2))
    assert first == second


def test_names_that_collide_with_ours_do_no_harm() -> None:
    rng = np.random.default_rng(1)
    weights = {"labels": normal(rng, 3, 4), "momentum": normal(rng, 4, 2), "loss": normal(rng, 2)}
    nodes = [node("MatMul", ["x", "labels"], "constant"), node("Relu", ["constant"], "gradient.loss")]
    nodes += [node("Gemm", ["gradient.loss", "momentum", "loss"], "velocity.labels")]
    bundle = build_bundle(classifier(nodes, weights, output="velocity.labels"), name="test")
    assert [spec.name for spec in bundle.manifest.parameters] == ["labels", "momentum", "loss"]
    assert bundle.manifest.trace.losses[-1] < bundle.manifest.trace.losses[0]


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'hinge' is unknown.*cross-entropy"):
        build_bundle(linear(), name="test", loss="hinge")


def test_a_model_without_weights_is_refused() -> None:
    model = classifier([node("Relu", ["x"], "logits")], {})
    with pytest.raises(ConfigError, match="nothing to train"):
        build_bundle(model, name="test")


def test_weights_that_are_not_finite_are_refused() -> None:
    model = classifier([node("Gemm", ["x", "w"], "logits")], {"w": np.full((3, 2), np.nan, np.float32)})
    with pytest.raises(ConfigError, match="not finite"):
        build_bundle(model, name="test")


@pytest.mark.parametrize(("name", "shape"), [("w", (4, 2)), ("b", (5,))])
def test_sizes_that_only_the_runtime_notices_are_refused(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    weights = {"w": normal(rng, 3, 2), "b": normal(rng, 2), name: normal(rng, *shape)}
    model = classifier([node("Gemm", ["x", "w", "b"], "logits")], weights)
    with pytest.raises(ConfigError):
        build_bundle(model, name="test")


@pytest.mark.parametrize("name", ["", "../escape", "two words", "x" * 65])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        build_bundle(linear(), name=name)


def head() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    weights = {"body.w": normal(rng, 3, 4), "head.w": normal(rng, 4, 2), "head.b": normal(rng, 2)}
    nodes = [node("MatMul", ["x", "body.w"], "h"), node("Relu", ["h"], "r")]
    return classifier([*nodes, node("Gemm", ["r", "head.w", "head.b"], "logits")], weights)


def test_frozen_layers_are_part_of_the_graphs() -> None:
    bundle = build_bundle(head(), name="head", train=["head.*"])
    assert [spec.name for spec in bundle.manifest.parameters] == ["head.w", "head.b"]
    assert bundle.dimension == 10
    x = normal(np.random.default_rng(2), 5, 3)
    outputs = [
        run(made.infer, [*made.manifest.views(made.weights), x]) for made in (bundle, build_bundle(head(), name="a"))
    ]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    assert "gradient.h" not in {part.name for part in onnx.load_from_string(bundle.grad).graph.node}


def test_patterns_that_fit_no_weight_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no weight is called 'tail\.\*'; there are body\.w, head\.w, head\.b"):
        build_bundle(head(), name="head", train=["head.*", "tail.*"])
