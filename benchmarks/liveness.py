"""How many groups close while devices drop out, refuse or cheat, and how long rounds take on simulated wires.

``./run bench liveness`` runs the real coordinator and real devices in memory, with a simulated clock: a message takes
0.1 to 0.5 seconds, training five. Seconds are simulated ones, so the figures do not depend on the machine. Drop-outs
are drawn by chance, so a goal counts as missed when it lies more than two standard errors above what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.aggregator.liveness import Outcome, alternating, always, fifth, simulate, sometimes

from covey_protocol import topics

DROPOUT, REFUSERS = 0.85, 0.95


def scenes(devices: int) -> dict[str, tuple[dict[str, Any], float | None, int]]:
    """Return each scene's options, its goal for the share of groups that close, and from which round on it counts."""
    bad = fifth(devices)
    return {
        "nobody drops out": ({}, 1.0, 1),
        "a fifth drops out, half unreported": ({"dropout": 0.2, "reported": 0.5}, DROPOUT, 1),
        "same, whole windows, lost waited for": ({"dropout": 0.2, "reported": 0.5, "task_sleep": True}, DROPOUT, 1),
        "a fifth drops out, all reported lost": ({"dropout": 0.2}, DROPOUT, 1),
        "same, whole windows, lost waited for ": ({"dropout": 0.2, "task_sleep": True}, DROPOUT, 1),
        "a fifth refuses to sign": ({"refusers": dict.fromkeys(bad, always(topics.SURVIVORS))}, REFUSERS, 10),
        "a fifth refuses to unmask": ({"refusers": dict.fromkeys(bad, always(topics.UNMASK))}, REFUSERS, 10),
        "a fifth refuses every other time": (
            {"refusers": dict.fromkeys(bad, sometimes(topics.SURVIVORS))},
            REFUSERS,
            10,
        ),
        "a fifth refuses in changing stages": ({"refusers": dict.fromkeys(bad, alternating)}, REFUSERS, 10),
        "a fifth deals bad shares": ({"poisoners": frozenset(bad)}, REFUSERS, 10),
    }


def line(name: str, outcome: Outcome, first: int) -> str:
    """Return one row of the table."""
    ordered = sorted(outcome.seconds)
    return (
        f"{name:<38} {outcome.share(1):6.1%} {outcome.share(min(first, len(outcome.closed))):9.1%} "
        f"{outcome.early:>6} {outcome.honest_out:8.1%} {ordered[len(ordered) // 2]:>8.1f} {ordered[-1]:>7.1f}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--group-size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="scenes whose names contain this")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--no-goals", action="store_true", help="end with status 0 whatever comes out")
    options = parser.parse_args(argv)
    print(f"{options.devices} devices in groups of {options.group_size}, {options.rounds} rounds, seed {options.seed}")
    print(f"{'':<38} {'closed':>6} {'from goal':>9} {'early':>6} {'honest':>8} {'seconds a round':>16}")
    print(f"{'':<38} {'of all':>6} {'round on':>9} {'epochs':>6} {'out':>8} {'median':>8} {'most':>7}")
    missed, figures = [], {}
    for name, (choices, goal, first) in scenes(options.devices).items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = simulate(
                Path(folder),
                options.devices,
                options.rounds,
                group_size=options.group_size,
                seed=options.seed,
                **choices,
            )
        figures[name.strip()] = asdict(outcome)
        print(line(name, outcome, first), flush=True)
        if goal is None or len(outcome.closed) < first:
            continue
        groups = len(outcome.closed[first - 1 :]) * max(1, options.devices // options.group_size)
        if outcome.share(first) < goal - 2 * math.sqrt(goal * (1 - goal) / groups):
            missed.append(f"{name}: {outcome.share(first):.1%} from round {first} on, the goal is {goal:.0%}")
    for text in missed:
        print(f"missed: {text}")
    if options.json:
        options.json.write_text(json.dumps({"rows": figures}, indent=2), encoding="utf-8")
    return 1 if missed and not options.no_goals else 0


if __name__ == "__main__":
    sys.exit(main())
