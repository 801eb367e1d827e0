"""covey_modelkit.graph: names are never taken twice, and shapes are known or asked for."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from covey_modelkit.graph import GraphWriter, infer_shapes
from covey_protocol.errors import ConfigError


def test_fresh_names_avoid_those_that_are_taken() -> None:
    writer = GraphWriter({"loss": (), "loss.2": ()})
    assert [writer.fresh("loss"), writer.fresh("loss"), writer.fresh("other")] == ["loss.3", "loss.4", "other"]


def test_equal_constants_are_stored_once() -> None:
    writer = GraphWriter({})
    first = writer.constant([1], np.int64)
    assert writer.constant([1], np.int64) == first
    others = {writer.constant([1], np.float32), writer.constant(1, np.int64), writer.constant([2], np.int64)}
    assert len(others | {first}) == len(writer.constants) == 4


def test_an_unknown_shape_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="shape of tensor 'h'"):
        GraphWriter({}).shape("h")


def test_dimensions_without_a_name_differ_from_each_other() -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 3])]
    shapes = infer_shapes(helper.make_graph([helper.make_node("Identity", ["a"], ["c"])], "g", inputs, outputs))
    assert shapes["c"] == ("N", 3)
    assert shapes["a"][1] == shapes["b"][1] == 3
    assert shapes["a"][0] != shapes["b"][0]
