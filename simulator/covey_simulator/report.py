"""``report.json``: what a simulated fleet did, with the clear baselines beside it and a verdict in words."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from covey_simulator.records import (
    Baseline,
    Detection,
    DeviceRecord,
    Report,
    RoundRecord,
    Verdict,
    final_accuracy,
)
from covey_simulator.scenario import Scenario
from covey_simulator.verdict import judge

__all__ = [
    "Baseline",
    "Detection",
    "DeviceRecord",
    "Report",
    "RoundRecord",
    "Verdict",
    "build_report",
    "final_accuracy",
    "installed_versions",
    "judge",
    "write_atomically",
    "write_report",
]


def build_report(
    scenario: Scenario,
    *,
    rounds: Sequence[RoundRecord],
    devices: Sequence[DeviceRecord],
    undefended: Sequence[RoundRecord] = (),
    no_attack: Sequence[RoundRecord] = (),
    seconds: float,
    failures: Sequence[str] = (),
    attack_success: float | None = None,
    versions: Mapping[str, str] | None = None,
) -> Report:
    """Put a run's report together and judge it.

    Args:
        scenario: What was asked for.
        rounds: What the fleet did, in order.
        devices: How each device ended.
        undefended: The clear baseline under attack with the plain mean; empty if it was not run.
        no_attack: The clear baseline without attack; empty if it was not run.
        seconds: Wall-clock time of the whole run.
        failures: What went wrong beyond the rounds' own records, one sentence each; any of them fails the run.
        attack_success: See ``Report``.
        versions: Of what it ran on; by default those of this process.
    """
    baselines = {
        key: Baseline(label=label, attacked=attacked, rule="mean", rounds=list(run), final_accuracy=final_accuracy(run))
        for key, label, attacked, run in (
            ("undefended", "undefended, in the clear: no masks, plain mean", True, undefended),
            ("no_attack", "no attack, in the clear: no masks, plain mean", False, no_attack),
        )
        if run
    }
    reached, detection = final_accuracy(rounds), _detection(devices)
    return Report(
        name=scenario.name,
        verdict=judge(scenario, rounds, baselines, failures, expelled=detection.malicious_quarantined),
        final_accuracy=reached,
        rounds=list(rounds),
        devices=list(devices),
        detection=detection,
        attack_success=attack_success,
        epsilon=rounds[-1].epsilon if rounds else None,
        baselines=baselines,
        config=_config(scenario),
        versions=dict(versions if versions is not None else installed_versions()),
        seconds=seconds,
    )


def _config(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario as plain values, without the settings that its kinds of attack and oddity have no use for."""
    config: dict[str, Any] = msgspec.to_builtins(scenario)
    for part in ("attack", "oddities"):
        config[part] = {name: value for name, value in config[part].items() if value is not None}
    return config


def installed_versions() -> dict[str, str]:
    """Return the versions of Covey, of what computes for it, and of Python and the system."""
    found = {"covey": "", "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in ("covey", "msgspec", "numpy", "onnxruntime", "paho-mqtt", "PyNaCl"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_report(report: Report, path: Path) -> None:
    """Write ``report.json`` so that it is either there in full or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside its place, sync it, and move it there; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _detection(devices: Sequence[DeviceRecord]) -> Detection:
    malicious = [device for device in devices if device.malicious]
    expelled = sorted(device.quarantined_at for device in malicious if device.quarantined_at is not None)
    honest = sum(device.quarantined_at is not None for device in devices if not device.malicious)
    needed = -(-9 * len(malicious) // 10)
    reached = expelled[needed - 1] if 0 < needed <= len(expelled) else None
    return Detection(malicious_quarantined=len(expelled), honest_quarantined=honest, rounds_to_90=reached)
