"""Whole rounds: a real broker, a real aggregator and real agents on one machine, with training that takes no time.

``./run bench round --devices 100`` prints seconds a round by stage, bytes a device, the aggregator's peak memory, and
which part the processors worked for. The first round stands apart, because in it every device fetches the bundle.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

from benchmarks._compare import Row, arguments, report
from benchmarks._round_fleet import BenchFleet, Terms, Usage
from covey_aggregator.records import RoundRecord
from covey_protocol import __version__

GOALS = {100: 15.0, 1000: 90.0}  # seconds a round, at 100,000 parameters
GOAL_PARAMETERS = 100_000


def measure(options: argparse.Namespace) -> list[Row]:
    """Run the fleet and return what it took."""
    terms = Terms(
        devices=options.devices,
        parameters=options.parameters,
        rounds=options.rounds,
        group_size=options.group_size,
        per_process=options.per_process,
        memory=options.memory_databases,
    )
    with tempfile.TemporaryDirectory(prefix="covey-bench-", dir=options.folder) as folder:
        print(f"  setting up {terms.devices} devices", file=sys.stderr)
        with BenchFleet(Path(folder), terms) as fleet:
            seen: list[tuple[RoundRecord, Usage]] = []
            before = fleet.usage()
            for record, usage in fleet.run(options.seconds):
                stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in record.stage_seconds.items())
                print(
                    f"  round {record.round}.{record.attempt}: {record.seconds:.1f} s ({stages}), {record.accepted} of "
                    f"{terms.devices} devices, {record.groups_aborted} of {record.groups} groups aborted",
                    file=sys.stderr,
                )
                seen.append((record, usage))
            print(f"  refused by devices: {fleet.refusals() or 'nothing'}", file=sys.stderr)
            after, peak = fleet.settled(), float(fleet.server_memory())
            table = rows(seen, terms, fleet.parameters)
            per_round = terms.devices * terms.rounds
            down = (after.down - before.down) / per_round - fleet.bundle_bytes / terms.rounds
            return [
                *table,
                Row("up, a device and round", "kB", [(after.up - before.up) / per_round]),
                Row("down, a device and round", "kB", [down], note="without the bundle, which comes once"),
                Row("aggregator's peak memory", "MB", [peak]),
            ]


def rows(seen: list[tuple[RoundRecord, Usage]], terms: Terms, parameters: int) -> list[Row]:
    """Turn what was seen into the table's rows; a round counts when everybody is in it.

    Raises:
        RuntimeError: A device or a group was lost, so the figures are not those of a whole round.
    """
    for record, _ in seen:
        if record.accepted != terms.devices or record.groups_aborted or record.attempt != 1:
            raise RuntimeError(f"round {record.round}.{record.attempt}: {record.accepted} of {terms.devices} devices")
    first, later = seen[0][0], [record for record, _ in seen[1:]]
    pairs = list(itertools.pairwise(seen))
    goal = GOALS.get(terms.devices) if abs(parameters - GOAL_PARAMETERS) < GOAL_PARAMETERS / 100 else None
    table = [
        Row("first round, bundle included", "s", [first.seconds]),
        Row("a round", "s", [record.seconds for record in later], most=goal, absolute=True),
    ]
    table += [
        Row(f"  {stage}", "s", [record.stage_seconds.get(stage, 0.0) for record in later])
        for stage in later[0].stage_seconds
    ]
    return table + [
        Row(f"processor seconds a round, {part}", "s", [b.cpu[part] - a.cpu[part] for (_, a), (_, b) in pairs])
        for part in ("agents", "aggregator", "broker")
    ]


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=GOAL_PARAMETERS)
    parser.add_argument("--rounds", type=int, default=4, help="at least 2: the first one stands apart")
    parser.add_argument("--group-size", type=int, default=10)
    parser.add_argument(
        "--per-process", type=int, default=50, help="agents in one process, which share its interpreter"
    )
    parser.add_argument("--memory-databases", action="store_true", help="keep the devices' databases off the disk")
    parser.add_argument("--seconds", type=float, default=900, help="give up after so many")
    parser.add_argument("--folder", type=Path, help="where the fleet's files go; the default is a temporary folder")
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    name = f"rounds of {options.devices} devices, {options.parameters} parameters"
    return report(name, measure(options), {"covey": __version__}, options)


if __name__ == "__main__":
    sys.exit(main())
