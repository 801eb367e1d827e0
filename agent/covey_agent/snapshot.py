"""What ``covey-agent status`` shows of a running agent."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from covey_agent.authority import Authority
from covey_agent.home import AgentHome
from covey_agent.participation import Participation
from covey_protocol.digest import short
from covey_protocol.epochs import Grouping
from covey_protocol.ledger import DeviceLedger


def snapshot(
    home: AgentHome,
    *,
    profile: str,
    holds: str,
    grouping: Grouping | None,
    tasks: Mapping[str, Participation],
    ledger: DeviceLedger,
    authority: Authority,
    certificate: int | None,
    refusals: Counter[str],
) -> dict[str, Any]:
    """Return all of it as JSON takes it.

    Args:
        home: Who.
        profile: Name of its firmware profile.
        holds: What keeps it from taking part, in words.
        grouping: Its place in the epoch.
        tasks: Its part in each task.
        ledger: What it has spent.
        authority: Whom it follows.
        certificate: When its TLS certificate ends, in Unix seconds, if it has one.
        refusals: What it has refused, by cause.
    """
    policy = authority.trust.policy
    return {
        "pid": os.getpid(),
        "fleet": home.fleet,
        "device": home.device,
        "profile": profile,
        "epoch": grouping.epoch if grouping else None,
        "group": grouping.group if grouping else None,
        "holds": holds,
        "delegation": authority.snapshot(),
        "certificate": certificate,
        "tasks": {
            task: {
                "round": part.round.opened.round if part.round else None,
                "stage": str(part.round.stage) if part.round else "waiting",
                "rounds_closed": part.closed,
                "model": short(part.model_digest),
            }
            for task, part in tasks.items()
        },
        "exposure": {
            "sets": ledger.exposure(),
            "groupings": len(ledger.exposures()),
            "max": policy.exposure_max or None,
            "by_grouping": ledger.exposures(),
            "forgotten": ledger.forgotten,
        },
        "sketches": {"numbers": ledger.sketched(), "budget": policy.sketch_budget or None},
        "privacy": ledger.privacy.snapshot(policy),
        "refusals": dict(refusals),
    }


def in_words(report: dict[str, Any]) -> str:
    """Say the same for people."""
    lines = [f"{report['device']} of fleet {report['fleet']}: {'running' if report['running'] else 'not running'}"]
    if report.get("group"):
        lines.append(f"group {report['group']} (epoch {report['epoch']})")
    if report.get("holds"):
        lines.append(f"held back: {report['holds']}")
    delegation = report.get("delegation")
    if delegation and delegation["expires"] and not delegation["expired"]:
        lines.append(f"follows the aggregator until {_day(delegation['expires'])}, under policy {delegation['policy']}")
    if report.get("certificate"):
        lines.append(f"broker certificate until {_day(report['certificate'])}")
    for name, task in (report.get("tasks") or {}).items():
        lines.append(
            f"task {name}: round {task['round']}, {task['stage']}, "
            f"{task['rounds_closed']} rounds closed, model {task['model']}"
        )
    exposure = report.get("exposure")
    if exposure:
        cap = f", of at most {exposure['max']}" if exposure["max"] else ""
        lines.append(f"exposure: {exposure['sets']} different sums in {exposure['groupings']} groupings{cap}")
        if exposure.get("forgotten"):
            lines.append(f"{exposure['forgotten']} of them are joins that were forgotten when the disk was put back")
    sketches = report.get("sketches")
    if sketches:
        cap = f", of at most {sketches['budget']}" if sketches["budget"] else ""
        lines.append(f"sketches: {sketches['numbers']} numbers told{cap}")
    lines += _spent_in_words(report.get("privacy") or {})
    for cause, count in (report.get("refusals") or {}).items():
        lines.append(f"refused {count} messages: {cause}")
    return "\n".join(lines)


def _spent_in_words(spent: dict[str, Any]) -> list[str]:
    if not spent:
        return []
    cap = f", of at most {spent['max']:g}" if spent["max"] else ""
    epsilon = "is not bounded" if spent["epsilon"] is None else f"{spent['epsilon']:.3g}"
    bare = f", {spent['without_noise']} without" if spent["without_noise"] else ""
    return [f"privacy: epsilon {epsilon}{cap} at delta {spent['delta']:g}; {spent['rounds']} rounds with noise{bare}"]


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
