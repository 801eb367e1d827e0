"""The coordinate-wise trimmed mean, Covey's against Flower's and scipy's, and the other rules: time and memory.

``./run bench trimmed-mean`` gives all of them the same rows in turns and checks the results. Ours uses two threads, as
it does in the aggregator, the others one, as they do; ours on one thread stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._compare import Row, Side, arguments, peaks, report, take_turns
from benchmarks._flower_env import flower_python
from covey_aggregator.rules import RULES

HERE = Path(__file__).parent
OURS = Side(sys.executable, HERE / "_ours.py")
WORK = "trimmed-mean"
OTHERS = [name for name in RULES if name != WORK]
WARM = 1000


def timed(options: argparse.Namespace, flower: Side | None) -> list[Row]:
    """Measure everything that takes time, the largest model first."""

    def row(name: str, d: int, most: float | None = None, *, work: str = WORK, note: str = "", **turn: Any) -> Row:
        print(f"  {name}", file=sys.stderr)
        size: dict[str, Any] = {"groups": options.groups, "dimension": d}
        if work != "rule":
            size["beta"] = options.beta
        ours, anchor, facts = take_turns(
            OURS,
            turn.get("against", flower),
            work,
            size | turn.get("ours", {}),
            repeat=options.repeat,
            anchor_work=turn.get("anchor_work", WORK),
            anchor_size=turn.get("anchor_size", size | turn.get("anchor", {})),
        )
        return Row(name, "ms", ours, anchor, most=most, note=note, facts=facts)

    largest, *smaller = options.parameters
    plain = {"groups": options.groups, "dimension": largest}
    return [
        row(f"against Flower, d = {largest}", largest, 1 / 10),
        row(f"against Flower, d = {largest}, one thread", largest, ours={"threads": 1}),
        row(f"against scipy, d = {largest}", largest, anchor={"by": "scipy"}),
        row(
            f"all of combining, d = {largest}",
            largest,
            work="combine",
            note="ours: cap the norms of the groups' means, trim; Flower: its trimmed average, which stacks",
        ),
        row(
            f"against a plain mean, d = {largest}",
            largest,
            against=OURS,
            anchor_work="plain-mean",
            anchor_size=plain,
            note="numpy's mean over the same rows, the bare primitive",
        ),
        *(row(f"against Flower, d = {d}", d) for d in smaller),
        *(
            row(
                f"{name} against a plain mean, d = {largest}",
                largest,
                work="rule",
                ours={"name": name},
                against=OURS,
                anchor_work="plain-mean",
                anchor_size=plain,
            )
            for name in OTHERS
        ),
    ]


def memory(options: argparse.Namespace, flower: Side | None) -> list[Row]:
    """Measure the peak above the rows themselves."""
    print("  peak memory", file=sys.stderr)
    d = options.parameters[0]
    size, warm = ({"groups": options.groups, "dimension": n} for n in (d, WARM))
    repeat = min(options.repeat, 5)

    def peak(side: Side | None, work: str, **more: Any) -> list[float]:
        return [] if side is None else peaks(side, work, size | more, repeat=repeat, warm=warm | more)

    share = {"beta": options.beta}
    theirs = peak(flower, WORK, **share)
    return [
        Row(
            f"peak memory, d = {d}",
            "MB",
            peak(OURS, WORK, **share),
            theirs,
            most=1 / 3,
            note="above the rows themselves",
        ),
        Row(
            f"peak memory against scipy, d = {d}",
            "MB",
            peak(OURS, WORK, **share),
            peak(flower, WORK, **share, by="scipy"),
        ),
        Row(f"peak memory of all of combining, d = {d}", "MB", peak(OURS, "combine", **share), theirs),
        *(Row(f"peak memory of {name}, d = {d}", "MB", peak(OURS, "rule", name=name)) for name in OTHERS),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_000_000, 100_000, 10_000])
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--beta", type=float, default=0.1, help="share cut on each side")
    parser.add_argument("--repeat", type=int, default=9, help="pairs that are measured")
    parser.add_argument("--without-flower", action="store_true", help="leave the anchors' column empty")
    options = parser.parse_args(argv)
    python = None if options.without_flower else flower_python()
    flower = None if python is None else Side(python, HERE / "_flower.py")
    versions = OURS.versions() | (flower.versions() if flower else {})
    rows = timed(options, flower) + memory(options, flower)
    return report(f"trimmed mean of {options.groups} rows", rows, versions, options)


if __name__ == "__main__":
    sys.exit(main())
