"""covey_modelkit.training: what normalises and drops out trains as it should, and infers as it did."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.modelkit.helpers import Array, classifier, node, normal, run
from tests.modelkit.slopes import BATCH, Case, check, compare, numpy_loss, reference_output

from covey_modelkit import build_bundle
from covey_modelkit.build import build_graphs
from covey_modelkit.differentiate import differentiate
from covey_modelkit.forward import read_forward
from covey_modelkit.gradients import LOSSES
from covey_modelkit.graph import GraphWriter, make_model
from covey_modelkit.training import inference_form
from covey_protocol.errors import ConfigError

RNG = np.random.default_rng(6)
STATISTICS = {"m": np.array([0.3, -0.2], np.float32), "v": np.array([1.5, 0.7], np.float32)}


def normalised(sample: tuple[int, ...], **attributes: Any) -> Case:
    """A batch normalisation of two channels, its input and its output bent."""
    return Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("BatchNormalization", ["h", "s", "b", "m", "v"], "g", **attributes),
            node("Tanh", ["g"], "t"),
            node("Flatten", ["t"], "logits"),
        ],
        {"a": sample, "s": (2,), "b": (2,), "m": (2,), "v": (2,)},
        input_shape=sample,
        loss="mse",
        positive=True,
    )


def as_it_trains(case: Case) -> list[onnx.NodeProto]:
    """The author's nodes with the normalisation told to train, for the reference implementation."""
    made = []
    for part in read_forward(case.model(), loss=case.loss).nodes:
        changed = onnx.NodeProto()
        changed.CopyFrom(part)
        if part.op_type == "BatchNormalization":
            changed.attribute.append(helper.make_attribute("training_mode", 1))
            changed.output.extend(["m.new", "v.new"])
        made.append(changed)
    return made


@pytest.mark.parametrize("sample", [(2,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_batch_normalisation_trains_by_the_batch(sample: tuple[int, ...], epsilon: float) -> None:
    case = normalised(sample, epsilon=epsilon)
    # One factor a channel is undone by the normalisation.
    check(compare(case, nodes=as_it_trains(case)), flat=["a"] if len(sample) == 1 else [])


def graphs_of(case: Case, **options: Any) -> Any:
    return build_graphs(read_forward(case.model(), loss=case.loss), loss=case.loss, target="values", **options)


def test_running_statistics_follow_the_batch_and_are_no_parameters() -> None:
    graphs = graphs_of(normalised((2, 3), momentum=0.8))
    assert (graphs.parameters, graphs.buffers) == (["a", "s", "b"], ["m", "v"])
    x, ones = normal(RNG, BATCH, 2, 3), np.ones((2, 3), np.float32)
    scale, bias = np.ones(2, np.float32), np.zeros(2, np.float32)
    *_, m, v, _ = run(
        graphs.grad, [ones, scale, bias, STATISTICS["m"], STATISTICS["v"], x, np.zeros((BATCH, 6), np.float32)]
    )
    np.testing.assert_allclose(m, 0.8 * STATISTICS["m"] + 0.2 * x.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(v, 0.8 * STATISTICS["v"] + 0.2 * x.var(axis=(0, 2)), rtol=1e-5)


def test_inference_goes_by_running_statistics() -> None:
    graphs = graphs_of(normalised((2,), epsilon=0.1))
    x, one = normal(RNG, 4, 2), np.ones(2, np.float32)
    (output,) = run(graphs.infer, [one, one, one, STATISTICS["m"], STATISTICS["v"], x])
    expected = np.tanh((x - STATISTICS["m"]) / np.sqrt(STATISTICS["v"] + 0.1) + 1)
    np.testing.assert_allclose(output, expected, rtol=1e-5)


def test_a_variance_that_noise_made_negative_does_no_harm() -> None:
    graphs = graphs_of(normalised((2,), epsilon=0.1))
    x, one = normal(RNG, 4, 2), np.ones(2, np.float32)
    (output,) = run(graphs.infer, [one, one, one, STATISTICS["m"], np.array([-0.5, 1], np.float32), x])
    assert np.isfinite(output).all()


def test_a_frozen_normalisation_infers_while_others_train() -> None:
    case = normalised((2,), epsilon=0.1)
    graphs = graphs_of(case, train=["a"])
    assert (graphs.parameters, graphs.buffers) == (["a"], [])
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in case.model().graph.initializer}
    x, y = normal(RNG, 4, 2), np.zeros((4, 2), np.float32)
    (output,) = run(graphs.infer, [stored["a"], x])
    _, loss = run(graphs.grad, [stored["a"], x, y])
    assert float(loss) == pytest.approx(float(np.mean(output**2)), rel=1e-5)


def test_a_frozen_normalisation_passes_gradients() -> None:
    check(compare(normalised((2, 3), epsilon=0.1), train=["a"]))


def test_scale_and_bias_have_gradients_by_running_statistics_too() -> None:
    """Probes and adversarial samples differentiate the graph that infers."""
    case = normalised((2, 3), epsilon=0.1)
    forward = read_forward(case.model(), loss="mse")
    nodes = inference_form(forward, [])
    writer = GraphWriter(forward.shapes, forward.values)
    value, slope = LOSSES["mse"](writer, forward.output, "targets")
    found = differentiate(writer, nodes, {forward.output: slope}, ["s", "b"])
    x, y = normal(RNG, BATCH, 2, 3), normal(RNG, BATCH, 6)
    graph = helper.make_graph(
        [*nodes, *writer.nodes],
        "slopes",
        [helper.make_tensor_value_info(name, 1, None) for name in ("x", "targets")],
        [helper.make_tensor_value_info(name, 1, None) for name in (*found.values(), value)],
        [*forward.constants.values(), *writer.constants],
    )
    slopes = dict(zip(found, run(make_model(graph), [x, y]), strict=False))
    inputs = {name: numpy_helper.to_array(tensor).astype(np.float64) for name, tensor in forward.constants.items()}
    inputs["x"] = x.astype(np.float64)
    for name in ("s", "b"):
        for channel in range(2):
            sides = []
            for way in (1e-5, -1e-5):
                moved = inputs[name].copy()
                moved[channel] += way
                sides.append(numpy_loss("mse", reference_output(nodes, forward, inputs | {name: moved}), y))
            assert slopes[name][channel] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=2e-4, abs=2e-5)


def dropped(sample: tuple[int, ...], ratio: float | None = 0.25) -> Case:
    inputs = ["h"] if ratio is None else ["h", "ratio"]
    constants = {} if ratio is None else {"ratio": np.array(ratio, np.float32)}
    return Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("Dropout", inputs, "g"),
            node("Tanh", ["g"], "t"),
            node("Flatten", ["t"], "logits"),
        ],
        {"a": sample},
        input_shape=sample,
        loss="mse",
        constants=constants,
    )


@pytest.mark.parametrize("ratio", [None, 0.25, 0.0])
def test_dropout_trains_by_the_numbers_it_is_given(ratio: float | None) -> None:
    case = dropped((2, 3), ratio)
    numbers = RNG.random((BATCH, 2, 3)).astype(np.float32)
    numbers[0, 0, 0] = 0.25  # the ratio itself is kept, as in PyTorch
    share = 0.5 if ratio is None else ratio
    mask = (numbers >= share) / (1 - share)
    forward = read_forward(case.model(), loss="mse")
    nodes = [node("Mul", ["h", "mask"], "g") if part.op_type == "Dropout" else part for part in forward.nodes]
    check(compare(case, nodes=nodes, noise=[numbers], more={"mask": mask.astype(np.float64)}))


def test_dropout_drops_nothing_while_it_infers() -> None:
    graphs = graphs_of(dropped((2, 3)))
    assert graphs.noise == [[2, 3]]
    assert "Dropout" not in {part.op_type for part in graphs.infer.graph.node}
    a, x = normal(RNG, 2, 3), normal(RNG, 4, 2, 3)
    np.testing.assert_allclose(run(graphs.infer, [a, x])[0], np.tanh(a * x).reshape(4, 6), rtol=1e-5)


def training_exports(case: Case) -> onnx.ModelProto:
    """The same as exporters write it for training."""
    model = case.model()
    for part in model.graph.node:
        if part.op_type == "BatchNormalization":
            part.attribute.append(helper.make_attribute("training_mode", 1))
            part.output.extend(["m.out", "v.out"])
        if part.op_type == "Dropout":
            part.input.append("yes")
            part.output.append("mask.out")
            part.attribute.append(helper.make_attribute("seed", 3))
            model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return model


@pytest.mark.parametrize("case", [normalised((2, 3)), dropped((2, 3))], ids=["normalised", "dropped"])
def test_models_exported_for_training_are_the_same(case: Case) -> None:
    made = [build_bundle(model, name="same", loss="mse") for model in (case.model(), training_exports(case))]
    assert made[0].manifest.trace == made[1].manifest.trace
    assert made[0].infer == made[1].infer


def test_dropout_whose_ratio_is_computed_is_refused() -> None:
    nodes = [
        node("Sigmoid", ["w"], "half"),
        node("ReduceMean", ["half"], "ratio", keepdims=0),
        node("MatMul", ["x", "w"], "h"),
        node("Dropout", ["h", "ratio"], "logits"),
    ]
    with pytest.raises(ConfigError, match=r"'the-logits' \(Dropout\) must have a constant ratio"):
        build_graphs(read_forward(classifier(nodes, {"w": normal(RNG, 3, 2)})))


def test_dropout_across_samples_is_refused() -> None:
    nodes = [
        node("Transpose", ["x"], "h", perm=[1, 0]),
        node("Dropout", ["h"], "g"),
        node("Transpose", ["g"], "u", perm=[1, 0]),
        node("MatMul", ["u", "w"], "logits"),
    ]
    with pytest.raises(ConfigError, match="first dimension is the batch"):
        build_graphs(read_forward(classifier(nodes, {"w": normal(RNG, 3, 2)})))


def test_shared_or_computed_statistics_are_refused() -> None:
    stored: dict[str, Array] = {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32), **STATISTICS}
    stored["w"] = normal(RNG, 3, 2)
    first = [node("MatMul", ["x", "w"], "h"), node("BatchNormalization", ["h", "s", "b", "m", "v"], "g")]
    shared = [*first, node("BatchNormalization", ["g", "s", "b", "m", "v"], "logits")]
    with pytest.raises(ConfigError, match="shares statistics 'm'"):
        build_graphs(read_forward(classifier(shared, stored)))
    computed = [
        node("MatMul", ["x", "w"], "h"),
        node("Abs", ["v"], "v2"),
        node("BatchNormalization", ["h", "s", "b", "m", "v2"], "logits"),
    ]
    with pytest.raises(ConfigError, match="computes its statistics"):
        build_graphs(read_forward(classifier(computed, stored)))
