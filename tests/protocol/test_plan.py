"""covey_protocol.plan: every range holds however a plan is made."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from covey_protocol import cbor
from covey_protocol.plan import Plan


def test_round_trip() -> None:
    plan = Plan(epochs=3, batch_size=16, learning_rate=0.25, momentum=0.5)
    data = cbor.encode(msgspec.to_builtins(plan))
    assert msgspec.convert(cbor.decode(data, max_bytes=1000), Plan) == plan


def test_absent_fields_have_defaults() -> None:
    assert msgspec.convert({}, Plan) == Plan(
        epochs=1, steps=0, batch_size=32, learning_rate=0.1, momentum=0.9, balance=1.25
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1_001),
        ("steps", -1),
        ("steps", 1_000_001),
        ("batch_size", 0),
        ("batch_size", 65_537),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", 100.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("balance", -0.1),
        ("balance", 2.1),
        ("balance", math.nan),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: float) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=field):
        Plan(**values)
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(values, Plan)


@pytest.mark.parametrize(
    ("plan", "samples", "steps"),
    [
        (Plan(epochs=1, batch_size=32), 64, 2),
        (Plan(epochs=1, batch_size=32), 65, 3),
        (Plan(epochs=4, batch_size=32), 10, 4),
        (Plan(epochs=4, steps=7, batch_size=32), 10, 7),
    ],
)
def test_steps_count_partial_batches(plan: Plan, samples: int, steps: int) -> None:
    assert plan.steps_for(samples) == steps
