"""covey_protocol.refusals: a flood of bad messages is counted, and said once."""

from __future__ import annotations

import logging

import pytest

from covey_protocol import refusals
from covey_protocol.errors import LocalError, MalformedError, RefusedError, StaleError
from covey_protocol.refusals import Refusals


def test_each_cause_is_said_once_a_place_and_counted_every_time() -> None:
    noted = Refusals()
    levels = [noted.note(RefusedError("no", cause="budget"), place) for place in ("a", "a", "b", "a")]
    assert levels == [logging.WARNING, logging.DEBUG, logging.WARNING, logging.DEBUG]
    assert noted.note(MalformedError("no"), "a") == logging.WARNING
    assert noted.counts == {"budget": 4, "malformed": 1}


def test_what_is_late_is_no_alarm_and_our_own_fault_is_one() -> None:
    noted = Refusals()
    assert noted.note(StaleError("late"), "a") == logging.DEBUG
    assert noted.note(LocalError("ours"), "a") == logging.ERROR
    assert noted.note(ValueError("not ours"), "a") == logging.WARNING
    assert noted.counts == {"stale": 1, "local": 1, "value": 1}


def test_places_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_PLACES_MAX", 3)
    noted = Refusals()
    for place in range(10):
        noted.note(RefusedError("no"), str(place))
    assert len(noted._said) == 3
    assert noted.counts["refused"] == 10
