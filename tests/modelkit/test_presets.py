"""covey_modelkit.presets: ready-made models are ordinary models."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.modelkit.helpers import normal, run

from covey_modelkit.presets import mlp, softmax
from covey_protocol.errors import ConfigError


@pytest.mark.parametrize("model", [softmax((6,), 4), softmax((1, 2, 3), 4), mlp((6,), 4, (5, 3)), mlp((2, 3), 4)])
def test_presets_are_valid_and_run(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    assert run(model, [normal(np.random.default_rng(0), 7, *shape)])[0].shape == (7, 4)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (mlp((6,), 4, (5,), seed).SerializeToString(deterministic=True) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("shape", "classes", "hidden"),
    [((), 4, (5,)), ((0,), 4, (5,)), ((6, -1), 4, (5,)), ((6,), 1, (5,)), ((6,), 4, (0,))],
)
def test_impossible_sizes_are_refused(shape: tuple[int, ...], classes: int, hidden: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="sizes must be positive"):
        mlp(shape, classes, hidden)
