"""Rounds and reports for the tests, made up but complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from covey_simulator.records import DeviceRecord, Report, RoundRecord
from covey_simulator.report import build_report
from covey_simulator.scenario import Scenario, demo_scenario


def rounds(*accuracies: float | None, **changes: Any) -> list[RoundRecord]:
    """Return one record for each accuracy."""
    fields: dict[str, Any] = {
        "participants": 30,
        "accepted": 29,
        "dropped": 1,
        "groups": 5,
        "seconds": 2.5,
        "stage_seconds": {"join": 0.5, "masked": 2.0},
        "bytes_up": 30 * 9000,
        "bytes_down": 30 * 21000,
        **changes,
    }
    return [
        RoundRecord(round=number, accuracy=accuracy, loss=None if accuracy is None else 1 - accuracy, **fields)
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def device(number: int, *, malicious: bool) -> DeviceRecord:
    """Return a device that was found out if it is malicious."""
    state, at = ("quarantined", 5) if malicious else ("trusted", None)
    return DeviceRecord(name=f"pi-{number}", malicious=malicious, state=state, quarantined_at=at)


def report(scenario: Scenario | None = None, accuracies: Sequence[float] = (), **changes: Any) -> Report:
    """Return the report of a demo that went well."""
    scenario = scenario or demo_scenario()
    accuracies = accuracies or [0.8, *[0.93] * (scenario.rounds - 1)]
    fields: dict[str, Any] = {
        "rounds": rounds(*accuracies),
        "devices": [device(n, malicious=n < scenario.malicious_count) for n in range(scenario.devices)],
        "undefended": rounds(*[0.5] * scenario.rounds),
        "no_attack": rounds(*[0.96] * scenario.rounds),
        "seconds": 31.0,
        **changes,
    }
    return build_report(scenario, **fields)
