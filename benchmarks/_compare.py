"""Side by side: workers that take turns, figures as ratios, a table, and goals that decide the exit status."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MISSED, NOT_JUDGED = 1, 3  # exit statuses

UNITS = {"ms": 1e-3, "s": 1.0, "MB": 1e6, "kB": 1e3, "x": 1.0}


class Worker:
    """A process that runs one side's works.

    Args:
        python: The interpreter, and with it the environment, that it runs in.
        script: Its program.
    """

    def __init__(self, python: Path | str, script: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and return the answer.

        Raises:
            RuntimeError: The work failed or its result is wrong.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Side:
    """Where one side's workers come from."""

    python: Path | str
    script: Path

    def start(self) -> Worker:
        """Start a fresh process."""
        return Worker(self.python, self.script)

    def versions(self) -> dict[str, Any]:
        """Return what this side measures."""
        with self.start() as worker:
            return worker.ask("versions")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: What was measured.
        unit: The unit of the figures shown; the values themselves are seconds, bytes or plain numbers.
        ours, anchor: One value a repetition, taken in turns; empty where a side was not measured.
        most: The goal: the largest ratio to the anchor, or with ``absolute`` the largest value.
        note: What the figure holds, where the name does not say it.
    """

    work: str
    unit: str
    ours: Sequence[float]
    anchor: Sequence[float] = ()
    most: float | None = None
    absolute: bool = False
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """The median of ours over anchor, pair by pair: what slows both down for a while falls out."""
        return _ratio(self.ours, self.anchor)

    @property
    def cpu_ratio(self) -> float | None:
        """The same ratio in processor seconds, which says more than the clock while the machine has other work."""
        return _ratio(self.facts.get("cpu", []), self.facts.get("anchor", {}).get("cpu", []))

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none or nothing to judge it by."""
        figure = statistics.median(self.ours) if self.absolute else self.ratio
        return None if self.most is None or figure is None else figure <= self.most

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        ratio, cpu = ("" if value is None else f"{value:.3f}" for value in (self.ratio, self.cpu_ratio))
        if self.most is None:
            goal, verdict = "", ""
        else:
            goal = f"<= {self.most / UNITS[self.unit]:g} {self.unit}" if self.absolute else f"<= {self.most:.3f}"
            verdict = {True: "met", False: "MISSED", None: "not judged"}[self.met]
        return self.work, self._spread(self.ours), self._spread(self.anchor), ratio, cpu, goal, verdict

    def _spread(self, values: Sequence[float]) -> str:
        if not values:
            return "-"
        scaled = [value / UNITS[self.unit] for value in values]
        middle = f"{statistics.median(scaled):.4g} {self.unit}"
        return middle if len(values) == 1 else f"{middle} [{min(scaled):.3g}..{max(scaled):.3g}]"


def _ratio(ours: Sequence[float], anchor: Sequence[float]) -> float | None:
    if not anchor or min(anchor) <= 0:
        return None
    return statistics.median(one / other for one, other in zip(ours, anchor, strict=True))


def take_turns(
    ours: Side,
    anchor: Side | None,
    work: str,
    size: dict[str, Any],
    *,
    repeat: int,
    anchor_work: str = "",
    anchor_size: dict[str, Any] | None = None,
    each: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> tuple[list[float], list[float], dict[str, Any]]:
    """Time a work on both sides in turns; the first pair is thrown away.

    Args:
        ours, anchor: The sides.
        work, size: Our work and its arguments.
        repeat: Pairs that count.
        anchor_work, anchor_size: The anchor's, where they differ.
        each: Called with the facts of each of our runs that count.

    Returns:
        Seconds of ours and of the anchor, and the facts of the last runs, the anchor's under ``anchor``.
    """
    sides = [(ours, work, size)]
    if anchor is not None:
        sides.append((anchor, anchor_work or work, size if anchor_size is None else anchor_size))
    workers = [side.start() for side, _, _ in sides]
    try:
        for worker, (_, name, arguments) in zip(workers, sides, strict=True):
            worker.ask("make", work=name, size=arguments)
        answers = [[worker.ask("run") for worker in workers] for _ in range(repeat + 1)][1:]
    finally:
        for worker in workers:
            worker.close()
    for pair in answers:
        each(_facts(pair[0]))
    columns = [[float(pair[side]["seconds"]) for pair in answers] for side in range(len(sides))]
    facts: dict[str, Any] = _facts(answers[-1][0])
    facts["cpu"] = [float(pair[0]["cpu"]) for pair in answers]
    if anchor is None:
        return columns[0], [], facts
    facts["anchor"] = _facts(answers[-1][1])
    facts["anchor"]["cpu"] = [float(pair[1]["cpu"]) for pair in answers]
    _same_inputs(facts)
    return columns[0], columns[1], facts


def peaks(side: Side, work: str, size: dict[str, Any], *, repeat: int, warm: dict[str, Any]) -> list[float]:
    """Return a work's peak of extra memory in bytes, each time in a fresh process.

    Args:
        side: Where it runs.
        work: Its name.
        size: Its arguments.
        repeat: How often.
        warm: Arguments of a small run before it, so that imports and tables do not count.
    """
    result = []
    for _ in range(repeat):
        with side.start() as worker:
            worker.ask("make", work=work, size=warm)
            worker.ask("run")
            worker.ask("make", work=work, size=size)
            result.append(float(worker.ask("peak")["bytes"]))
    return result


def _facts(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("seconds", "cpu", "bytes")}


def _same_inputs(facts: dict[str, Any]) -> None:
    mine, theirs = facts.get("inputs"), facts["anchor"].get("inputs")
    if mine != theirs:
        raise RuntimeError(f"the two sides worked on different inputs: {mine} and {theirs}")


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    parser.add_argument("--no-goals", action="store_true", help="print only; goals do not decide the exit status")
    return parser


def report(name: str, rows: Sequence[Row], versions: dict[str, Any], options: argparse.Namespace) -> int:
    """Print the table, write the JSON file and return the exit status."""
    print(f"{name}: " + ", ".join(f"{what} {version}" for what, version in versions.items()))
    print(f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print("medians [least..most]; a ratio is the median over pairs measured in turns\n")
    print_table(("work", "ours", "anchor", "ratio", "of cpu", "goal", ""), [row.cells() for row in rows])
    for row in rows:
        if row.note:
            print(f"- {row.work}: {row.note}")
    if options.json:
        document = {
            "benchmark": name,
            "versions": versions,
            "machine": {"architecture": platform.machine(), "processors": os.cpu_count(), "load": os.getloadavg()[0]},
            "rows": [{**asdict(row), "ratio": row.ratio, "cpu_ratio": row.cpu_ratio, "met": row.met} for row in rows],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.no_goals:
        return 0
    return verdict(rows)


def verdict(rows: Sequence[Row]) -> int:
    """Say which goals were missed or could not be judged, and return the exit status."""
    missed = [row.work for row in rows if row.met is False]
    open_ = [row.work for row in rows if row.most is not None and row.met is None]
    if missed:
        print("\nmissed: " + "; ".join(missed), file=sys.stderr)
        return MISSED
    if open_:
        print("\nnot judged, for want of an anchor: " + "; ".join(open_), file=sys.stderr)
        return NOT_JUDGED
    return 0


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
