"""Numbers as people read them."""

from __future__ import annotations

import pytest

from covey_simulator.units import bytes_text, number_text, seconds_text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_900, "1.0 MB"), (2_050_000, "2.0 MB")]
)
def test_bytes(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (119.0, "119.0 s"), (150.0, "2.5 min")]
)
def test_seconds(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_nothing_is_a_dash() -> None:
    assert number_text(None, ".3f") == "\u2013"
    assert number_text(0.5, ".3f") == "0.500"
