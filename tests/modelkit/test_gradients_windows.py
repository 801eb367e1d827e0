"""covey_modelkit.gradients.convolution and pooling: any kernel, stride, dilation, padding and group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.modelkit.helpers import Array, classifier, node, normal, run
from tests.modelkit.slopes import Case, Found, check, compare

from covey_modelkit.build import build_graphs
from covey_modelkit.forward import read_forward
from covey_protocol.errors import ConfigError

QUICK = settings(max_examples=25, deadline=None)


def layer(operator: str, sample: tuple[int, ...], weights: dict[str, tuple[int, ...]], **attributes: Any) -> Case:
    """A scaled sample, one layer, and the mean of what it gives in each channel through tanh."""
    return Case(
        [
            node("Mul", ["x", "a"], "h"),
            node(operator, ["h", *weights], "g", **attributes),
            node("Tanh", ["g"], "t"),
            node("Flatten", ["t"], "logits"),
        ],
        {"a": sample, **weights},
        input_shape=sample,
        loss="mse",
        batch=2,
    )


def spatial(draw: st.DrawFn, rank: int, low: int, high: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))


@st.composite
def geometries(draw: st.DrawFn, *, dilated: bool = True) -> tuple[list[int], dict[str, Any]]:
    """Spatial sizes, and attributes that leave one window at least."""
    rank = draw(st.integers(1, 2))
    kernel = spatial(draw, rank, 1, 3)
    dilations = spatial(draw, rank, 1, 2 if dilated else 1)
    reach = [(width - 1) * step + 1 for width, step in zip(kernel, dilations, strict=True)]
    sizes = [most + draw(st.integers(0, 4)) for most in reach]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": spatial(draw, rank, 1, 3)}
    if dilated:
        attributes["dilations"] = dilations
    how = draw(st.sampled_from(["pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if how == "pads":
        # onnxruntime wants pads of pools to be smaller than the kernel, and refuses some of SAME.
        attributes["pads"] = [draw(st.integers(0, width - 1)) for width in kernel * 2]
    elif how == "VALID" or (max(dilations) == 1 and all(map(int.__ge__, kernel, attributes["strides"]))):
        attributes["auto_pad"] = how
    return sizes, attributes


@QUICK
@given(geometries(), st.sampled_from([(1, 2, 3), (1, 1, 2), (2, 4, 2), (3, 3, 6), (2, 2, 2)]), st.booleans())
def test_convolutions(geometry: tuple[list[int], dict[str, Any]], channels: tuple[int, int, int], bias: bool) -> None:
    sizes, attributes = geometry
    groups, inner, outer = channels
    weights = {"w": (outer, inner // groups, *attributes["kernel_shape"])} | ({"b": (outer,)} if bias else {})
    case = layer("Conv", (inner, *sizes), weights, group=groups, **attributes)
    check(compare(case, along=True), flat=["a", "w", "b"])


@QUICK
@given(geometries(), st.sampled_from([(1, 2, 3), (2, 4, 2)]), st.data())
def test_transposed_convolutions(
    geometry: tuple[list[int], dict[str, Any]], channels: tuple[int, int, int], data: st.DataObject
) -> None:
    sizes, attributes = geometry
    attributes.pop("auto_pad", None)
    groups, inner, outer = channels
    strides = attributes["strides"]
    attributes["output_padding"] = [data.draw(st.integers(0, step - 1)) for step in strides]
    weights = {"w": (inner, outer // groups, *attributes["kernel_shape"]), "b": (outer,)}
    case = layer("ConvTranspose", (inner, *sizes), weights, group=groups, **attributes)
    check(compare(case, along=True), flat=["a", "w", "b"])


@QUICK
@given(geometries(), st.integers(0, 1))
def test_largest_of_windows(geometry: tuple[list[int], dict[str, Any]], ceil: int) -> None:
    sizes, attributes = geometry
    # Where windows reach into padding behind, onnxruntime and ONNX do not agree on how many there are.
    if "auto_pad" in attributes or any(attributes.get("pads", [])):
        ceil = 0
    if any(map(int.__gt__, attributes["strides"], attributes["kernel_shape"])):
        ceil = 0
    case = layer("MaxPool", (2, *sizes), {}, ceil_mode=ceil, **attributes)
    check(compare(case, along=True), flat=["a"])


@QUICK
@given(geometries(dilated=False), st.integers(0, 1))
def test_means_of_windows(geometry: tuple[list[int], dict[str, Any]], padded: int) -> None:
    sizes, attributes = geometry
    case = layer("AveragePool", (2, *sizes), {}, count_include_pad=padded, **attributes)
    check(compare(case, along=True), flat=["a"])


def every_element(case: Case) -> Found:
    found = compare(case)
    check(found)
    return found


@pytest.mark.parametrize(
    ("operator", "sample", "weights", "attributes"),
    [
        ("Conv", (2, 5), {"w": (3, 2, 3), "b": (3,)}, {"pads": [1, 1]}),
        ("Conv", (1, 4, 4), {"w": (2, 1, 3, 3), "b": (2,)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("Conv", (4, 4, 3), {"w": (4, 1, 2, 2)}, {"group": 4}),
        ("Conv", (1, 3, 3, 3), {"w": (1, 1, 2, 2, 2)}, {}),
        ("ConvTranspose", (2, 2, 3), {"w": (2, 1, 2, 2)}, {"strides": [2, 2]}),
        ("MaxPool", (2, 4, 5), {}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("MaxPool", (1, 6), {}, {"kernel_shape": [3]}),
        ("AveragePool", (2, 5, 4), {}, {"kernel_shape": [3, 2], "strides": [2, 1], "ceil_mode": 1}),
        ("GlobalAveragePool", (3, 2, 4), {}, {}),
    ],
)
def test_every_element(
    operator: str, sample: tuple[int, ...], weights: dict[str, tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    every_element(layer(operator, sample, weights, **attributes))


def test_the_first_of_equal_elements_gets_the_gradient() -> None:
    """As PyTorch has it, and never all of them."""
    weights: dict[str, Array] = {"a": np.ones((1, 2, 2), np.float32)}
    nodes = [
        node("Mul", ["x", "a"], "h"),
        node("MaxPool", ["h"], "g", kernel_shape=[2, 2]),
        node("Flatten", ["g"], "logits"),
    ]
    graphs = build_graphs(
        read_forward(classifier(nodes, weights, input_shape=["N", 1, 2, 2]), loss="mse"), loss="mse", target="values"
    )
    slope, _ = run(graphs.grad, [weights["a"], np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 1), np.float32)])
    assert slope.tolist() == [[[2, 0], [0, 0]]]


def test_open_sizes_are_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        node("Mul", ["x", "a"], "h"),
        node("Transpose", ["h"], "t", perm=[1, 2, 0]),
        node("Conv", ["t", "w"], "g"),
        node("Transpose", ["g"], "u", perm=[2, 0, 1]),
        node("ReduceMean", ["u", "last"], "logits", keepdims=0),
    ]
    weights = {"a": normal(rng, 3, 2), "w": normal(rng, 2, 2, 1), "last": np.array([1])}
    with pytest.raises(ConfigError, match=r"'the-g' \(Conv\) works on a tensor of shape"):
        build_graphs(read_forward(classifier(nodes, weights, input_shape=["N", 3, 2])))


def test_output_shapes_of_transposed_convolutions_are_refused() -> None:
    rng = np.random.default_rng(0)
    nodes = [node("ConvTranspose", ["x", "w"], "g", output_shape=[4]), node("Flatten", ["g"], "logits")]
    model = classifier(nodes, {"w": normal(rng, 1, 2, 2)}, input_shape=["N", 1, 3])
    with pytest.raises(ConfigError, match=r"'the-g' \(ConvTranspose\) sets its output_shape"):
        build_graphs(read_forward(model))
