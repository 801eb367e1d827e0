"""What a flood costs the others: round time with and without one device that floods, through a real broker.

``./run bench flood --devices 20`` runs quiet rounds and then as many in which one device of the fleet sends rubbish,
in one task, and prints the ratio of the two. The flood is dropped by the aggregator's budgets, and the device loses
its place.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._compare import Row, arguments, report
from benchmarks._round_fleet import HERE, BenchFleet, Terms, Usage
from covey_aggregator.records import RoundRecord
from covey_protocol import __version__, topics

MOST = 2.0  # times the quiet round's seconds
FLOODER = "pi-01"


class Flooder:
    """The process that floods, while it is on."""

    def __init__(self, fleet: BenchFleet, rate: int, size: int) -> None:
        self._task = {
            "host": fleet.broker.host,
            "port": fleet.broker.port,
            "topic": topics.up("bench", FLOODER, topics.UNMASK),
            "rate": rate,
            "size": size,
        }
        self._process: subprocess.Popen[str] | None = None
        self.sent = 0

    def begin(self) -> None:
        """Flood from now on."""
        words = [sys.executable, str(HERE / "_flooder.py")]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._task) + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Stop, if it was begun."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            out, _ = self._process.communicate(timeout=10)
            self.sent = json.loads(out)["sent"]
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None


def rounds(fleet: BenchFleet, flooder: Flooder, options: argparse.Namespace) -> Iterator[tuple[RoundRecord, Usage]]:
    """Run the task; the flood begins when the quiet rounds are over."""
    for record, usage in fleet.run(options.seconds):
        state = "flooded" if record.round > 1 + options.rounds else "quiet"
        print(
            f"  round {record.round}.{record.attempt}, {state}: {record.seconds:.2f} s, {record.accepted} of "
            f"{options.devices} devices, {record.groups_aborted} of {record.groups} groups aborted",
            file=sys.stderr,
        )
        yield record, usage
        if record.round == 1 + options.rounds:
            flooder.begin()


def measure(options: argparse.Namespace) -> list[Row]:
    """Run the fleet and return what it took.

    Raises:
        RuntimeError: Others than the flooder lost their place in a round.
    """
    terms = Terms(
        devices=options.devices,
        parameters=options.parameters,
        rounds=1 + 2 * options.rounds + 1,  # the first of each kind stands apart: bundles, and a flood that just begins
        group_size=options.group_size,
        per_process=options.per_process,
        memory=True,
        observe=True,
    )
    with tempfile.TemporaryDirectory(prefix="covey-bench-", dir=options.folder) as folder:
        print(f"  setting up {terms.devices} devices", file=sys.stderr)
        with BenchFleet(Path(folder), terms) as fleet:
            flooder = Flooder(fleet, options.rate, options.size)
            try:
                seen = list(rounds(fleet, flooder, options))
            finally:
                flooder.end()
    quiet = [record for record, _ in seen[1 : 1 + options.rounds]]
    flooded = [record for record, _ in seen[2 + options.rounds :]]
    lost = [f"{record.round}.{record.attempt}" for record in flooded if record.accepted < terms.devices - 1]
    if lost:
        raise RuntimeError(f"others than the flooder lost their place in rounds {', '.join(lost)}")
    note = f"{flooder.sent} messages of {options.size} bytes, {options.rate} a second"
    return [
        Row("a quiet round", "s", [record.seconds for record in quiet]),
        Row(
            "a round while one device floods",
            "s",
            [record.seconds for record in flooded],
            [record.seconds for record in quiet],
            most=MOST,
            note=note,
        ),
        Row("devices that keep their place", "x", [float(record.accepted) for record in flooded]),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5, help="quiet ones, and as many flooded ones")
    parser.add_argument("--group-size", type=int, default=10)
    parser.add_argument("--per-process", type=int, default=10)
    parser.add_argument("--rate", type=int, default=1000, help="messages a second of the device that floods")
    parser.add_argument("--size", type=int, default=1000, help="their bytes")
    parser.add_argument("--seconds", type=float, default=600, help="give up after so many")
    parser.add_argument("--folder", type=Path, help="where the fleet's files go; the default is a temporary folder")
    options = parser.parse_args(argv)
    name = f"{options.devices} devices, {options.parameters} parameters, one of them floods"
    return report(name, measure(options), {"covey": __version__}, options)


if __name__ == "__main__":
    sys.exit(main())
