"""covey_protocol.model: every device reaches exactly the model that the server published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_protocol import model
from covey_protocol.digest import content_digest
from covey_protocol.errors import MalformedError


def random_weights(size: int, number: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(number).normal(size=size) * scale).astype(np.float32)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 200), st.integers(0, 2**32), st.floats(1e-30, 1e30))
def test_a_delta_leads_to_the_same_bytes_everywhere(size: int, number: int, scale: float) -> None:
    old, step = random_weights(size, number), random_weights(size, number + 1, scale)
    delta = model.make_delta(step)
    new = model.apply_delta(old, delta)
    assert len(delta) == 4 + 2 * size
    assert new.dtype == np.float32
    assert model.model_digest(new) == model.model_digest(model.apply_delta(old.copy(), bytes(delta)))
    largest = float(np.abs(step).max(initial=0))
    # Half a step of rounding, and float32's own when the sum is formed.
    slack = 0.51 * largest / 32767 + 2**-23 * (largest + float(np.abs(old).max(initial=0)))
    assert np.abs(new.astype(np.float64) - old - step).max(initial=0) <= slack


def test_a_delta_in_bytes() -> None:
    delta = model.make_delta(np.array([1.0, -1.0, 0.5, 0.0], np.float32))
    assert delta == np.float32(1 / 32767).tobytes() + np.array([32767, -32767, 16384, 0], "<i2").tobytes()


def test_no_step_is_a_delta_of_zeros() -> None:
    old = random_weights(5, 1)
    assert np.array_equal(model.apply_delta(old, model.make_delta(np.zeros(5, np.float32))), old)


@pytest.mark.parametrize("change", [-2, -1, 1, 2])
def test_deltas_of_another_size_are_refused(change: int) -> None:
    delta = model.make_delta(np.ones(5, np.float32))
    with pytest.raises(MalformedError):
        model.apply_delta(np.zeros(5, np.float32), delta[:change] if change < 0 else delta + bytes(change))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_deltas_of_infinite_scale_are_refused(scale: float) -> None:
    with pytest.raises(MalformedError):
        model.apply_delta(np.zeros(2, np.float32), np.array(scale, "<f4").tobytes() + bytes(4))


def test_an_infinite_scale_does_not_hide_behind_zeros() -> None:
    with pytest.raises(MalformedError):
        model.apply_delta(np.zeros(0, np.float32), np.array(np.nan, "<f4").tobytes())


def test_deltas_that_leave_the_range_of_float32_are_refused() -> None:
    delta = np.array(3e38, "<f4").tobytes() + np.array([0, 2], "<i2").tobytes()
    with pytest.raises(MalformedError):
        model.apply_delta(np.zeros(2, np.float32), delta)


def test_parameters_travel_as_little_endian_float32() -> None:
    weights = random_weights(9, 2)
    data = model.to_bytes(weights)
    assert data == weights.astype("<f4").tobytes()
    assert np.array_equal(model.from_bytes(data), weights)
    assert model.model_digest(weights) == content_digest(data)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_models_with_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(MalformedError):
        model.from_bytes(np.array([0.0, bad], "<f4").tobytes())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_models_of_part_parameters_are_refused(size: int) -> None:
    with pytest.raises(MalformedError):
        model.from_bytes(bytes(size))
