"""``covey privacy``: what rounds have cost in privacy, and what they will."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from covey_aggregator import privacy
from covey_aggregator.cli_device import home_option
from covey_aggregator.home import DATABASE_FILE, open_server
from covey_aggregator.records import RoundRecord
from covey_aggregator.store import Store
from covey_aggregator.task import Task, load_task
from covey_protocol import accounting
from covey_protocol.accounting import Spending
from covey_protocol.bundle import Bundle
from covey_protocol.errors import ConfigError, CoveyError
from covey_protocol.noise import Noise
from covey_protocol.policy import Policy

_MANY = 10


@click.command("privacy")
@click.argument("task", required=False)
@home_option
@click.option(
    "--forecast",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="What the task in this file would cost, before it is started.",
)
@click.option("--devices", is_flag=True, help="Show every device; otherwise those that have spent most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def privacy_command(task: str | None, home: Path, forecast: Path | None, devices: bool, as_json: bool) -> None:
    """Show what tasks have cost and will cost in privacy, as epsilon at their delta; no server has to run.

    What a device has spent in the end is in its own ledger, which refuses rounds beyond the policy's epsilon_max.
    What is shown here is never less, but for rounds of which the server has lost its record.

    \b
    Examples:
      covey privacy --home home
      covey privacy digits --home home --devices
      covey privacy --home home --forecast task.yaml
    """
    policy = open_server(home).policy
    if forecast is not None:
        parts = [_forecast(load_task(forecast), policy, [], origin=str(forecast))]
        everybody: dict[str, Spending] = {}
    else:
        store = Store(home / DATABASE_FILE)
        rows = store.tasks()
        if task is not None and task not in {row.task.name for row in rows}:
            raise ConfigError(f"there is no task {task!r}; see `covey task status`")
        records = {row.task.name: store.rounds(row.task.name) for row in rows}
        parts = [
            {**_forecast(row.task, policy, records[row.task.name]), "status": row.status}
            for row in rows
            if task in (None, row.task.name)
        ]
        everybody = privacy.together(privacy.spent(found) for found in records.values())
    report = {
        "policy": {"epsilon_max": policy.epsilon_max or None, "delta": policy.delta, "noise_min": policy.noise_min},
        "tasks": parts,
        "devices": _by_device(everybody, policy.delta),
    }
    click.echo(json.dumps(report, indent=2) if as_json else _in_words(report, every=devices))


def _forecast(task: Task, policy: Policy, records: Sequence[RoundRecord], origin: str = "") -> dict[str, Any]:
    """Return what a task has cost the device that it cost most, and what it will have cost it at its end."""
    delta = task.privacy.delta
    part: dict[str, Any] = {"task": task.name, "delta": delta, "rounds": task.rounds}
    part["epsilon_target"] = task.privacy.epsilon
    spent = privacy.spent(records)
    most = max(spent.values(), key=lambda found: accounting.epsilon(found, delta), default=accounting.nothing())
    closed = {record.round for record in records if record.groups_aborted < record.groups}
    part |= {"closed": len(closed), "attempts": len(records), "epsilon": _finite(accounting.epsilon(most, delta))}
    try:
        dimension = Bundle.decode(Path(task.bundle).read_bytes()).dimension
        sketch = task.attestation.size(dimension, policy)
        noise = task.privacy.noise(rounds=task.rounds, group_size=task.group_size, dimension=dimension, sketch=sketch)
        privacy.check_policy(noise, policy, rounds=task.rounds, sketch=sketch)
    except (CoveyError, OSError) as error:
        if origin:
            raise ConfigError(f"{origin}: {error}") from error
        return {**part, "noise": None, "epsilon_at_end": None, "unknown": str(error)}
    left = task.rounds - len(closed)
    cost = accounting.everything() if noise is None else accounting.round_cost(noise, sketched=bool(sketch))
    at_end = most + left * cost if left else most
    within = accounting.rounds_within(cost, policy.epsilon_max, policy.delta) if policy.epsilon_max else None
    return {
        **part,
        "noise": _noise(noise),
        "sketch": sketch,
        "epsilon_each": _finite(accounting.epsilon(cost, delta)),
        "epsilon_at_end": _finite(accounting.epsilon(at_end, delta)),
        "rounds_within_policy": within,
    }


def _noise(noise: Noise | None) -> dict[str, float] | None:
    if noise is None:
        return None
    return {"multiplier": noise.multiplier, "honest": noise.honest, "units": noise.units, "variance": noise.variance}


def _by_device(everybody: Mapping[str, Spending], delta: float) -> dict[str, float | None]:
    found = {name: accounting.epsilon(spent, delta) for name, spent in everybody.items()}
    return {name: _finite(found[name]) for name in sorted(found, key=lambda name: (-found[name], name))}


def _finite(value: float) -> float | None:
    """Return a number that JSON can say; None stands for no bound at all."""
    return round(value, 6) if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3g}"


def _in_words(report: dict[str, Any], *, every: bool) -> str:
    policy, lines = report["policy"], []
    if policy["epsilon_max"]:
        lines.append(f"policy: each device stops at epsilon {policy['epsilon_max']:g}, delta {policy['delta']:g}")
    else:
        lines.append("policy: no epsilon_max, so no device ever stops for its privacy")
    for part in report["tasks"]:
        lines.append(
            f"task {part['task']}: {part['closed']} of {part['rounds']} rounds closed; so far epsilon "
            f"{_shown(part['epsilon'])} at delta {part['delta']:g}"
        )
        if "unknown" in part:
            lines.append(f"  what it will cost cannot be told: {part['unknown']}")
            continue
        noise = part["noise"]
        if noise is None:
            lines.append("  no noise: what its rounds tell about a device is not bounded")
            continue
        told = f", sketches of {part['sketch']} numbers counted in" if part["sketch"] else ""
        lines.append(
            f"  noise multiplier {noise['multiplier']:g} over {noise['honest']} honest members{told}; "
            f"at the end epsilon {_shown(part['epsilon_at_end'])}"
        )
        if part["rounds_within_policy"] is not None:
            lines.append(f"  the policy allows a new device {part['rounds_within_policy']} such rounds")
    shown = list(report["devices"].items())
    for name, epsilon in shown if every else shown[:_MANY]:
        lines.append(f"  {name:<24} epsilon {_shown(epsilon)} at delta {policy['delta']:g}, all tasks together")
    if not every and len(shown) > _MANY:
        lines.append(f"  and {len(shown) - _MANY} more that have spent no more than these; see --devices")
    return "\n".join(lines)
