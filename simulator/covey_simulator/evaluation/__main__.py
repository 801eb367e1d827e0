"""``./run evaluate``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from covey_protocol.errors import ConfigError
from covey_simulator.cli import guarded
from covey_simulator.evaluation.goals import Verdict, judge, where
from covey_simulator.evaluation.grid import ATTACKS, SEEDS, SETTINGS, Cell, full_grid, quick_grid
from covey_simulator.evaluation.jobs import CACHE, Cache, Job, jobs_of, run_jobs
from covey_simulator.evaluation.measure import BASELINES, Result
from covey_simulator.evaluation.page import render
from covey_simulator.evaluation.table import Table
from covey_simulator.report import installed_versions, write_atomically
from covey_simulator.units import seconds_text

JSON, PAGE = "evaluate.json", "evaluate.html"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One result in ``evaluate.json``."""

    cell: Cell
    part: str
    result: Result


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of ``evaluate.json``."""

    goals: list[Verdict]
    rows: list[Row]
    versions: dict[str, str]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A small grid of about two minutes, for continuous integration.")
@click.option("--only", "attacks", multiple=True, metavar="ATTACK", help=f"One of: {', '.join(ATTACKS)}.")
@click.option("--setting", "settings", multiple=True, metavar="SETTING", help=f"One of: {', '.join(SETTINGS)}.")
@click.option("--fraction", "fractions", multiple=True, type=float, help="Only this share of malicious devices.")
@click.option("--seeds", metavar="LIST", help="Such as 10,11 or 10-14.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True, help="How many at once.")
@click.option("--no-baselines", is_flag=True, help="Covey's own runs alone.")
@click.option("--no-signed", is_flag=True, help="All runs at the fast level.")
@click.option("--no-broker", is_flag=True, help="No runs over a broker.")
@click.option(
    "--allow-missed",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help="Exit 1 if more goals than these are missed; without it nothing is demanded.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/evaluate"),
    show_default=True,
    help="Folder for evaluate.json, evaluate.html and what is known already.",
)
def evaluate(
    quick: bool,
    attacks: Sequence[str],
    settings: Sequence[str],
    fractions: Sequence[float],
    seeds: str | None,
    processes: int,
    no_baselines: bool,
    no_signed: bool,
    no_broker: bool,
    allow_missed: int | None,
    out: Path,
) -> None:
    """Hold the defence against its goals: settings by attacks by shares of malicious devices by seeds.

    Runs that are known from before are not repeated, unless code that they depend on has changed; so it can be stopped
    at any time and started again. Exits 0 however many goals are met, unless --allow-missed says how many may not be.

    \b
    Examples:
      ./run evaluate --quick
      ./run evaluate --only label-flip --fraction 0.2 --no-baselines
      ./run evaluate --setting breast-cancer --seeds 10,11
      ./run evaluate --quick --no-baselines --no-signed --allow-missed 1
    """
    chosen = _seeds(seeds)
    if quick:
        if settings:
            raise ConfigError("--quick has one setting, leave --setting out")
        cells = quick_grid(seeds=chosen or SEEDS[:1], attacks=attacks, fractions=fractions, signed=not no_signed)
    else:
        cells = full_grid(
            seeds=chosen or SEEDS,
            settings=settings,
            attacks=attacks,
            fractions=fractions,
            signed=not no_signed,
            broker=not no_broker,
        )
    jobs = jobs_of(cells, () if no_baselines else BASELINES)
    progress = _Progress(len(jobs), processes)
    try:
        results = run_jobs(jobs, Cache(out / CACHE), processes=processes, on_result=progress)
    except KeyboardInterrupt:
        click.echo(f"stopped; what is known stays in {out / CACHE}", err=True)
        sys.exit(130)
    missed = _write(results, out, "quick" if quick else "full")
    if allow_missed is not None and missed > allow_missed:
        click.echo(f"{missed} goals are missed where {allow_missed} may be", err=True)
        sys.exit(1)


def _write(results: dict[Job, Result], out: Path, kind: str) -> int:
    """Write the files and print the summary; return how many goals are missed."""
    table = Table(results)
    verdicts = judge(table)
    rows = [Row(cell=job.cell, part=job.part, result=result) for job, result in results.items()]
    found = Evaluation(goals=verdicts, rows=rows, versions=installed_versions())
    write_atomically(out / JSON, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    notes = list(_NOTES)
    if kind == "quick":
        notes.insert(0, "This is the quick grid: fewer rounds, attacks and seeds than the goals are meant for.")
    seconds = sum(result.seconds for result in results.values())
    page = render(table, verdicts, title=f"The {kind} grid", seconds=seconds, notes=notes)
    write_atomically(out / PAGE, page.encode())
    for line in _summary(table, verdicts):
        click.echo(line)
    click.echo(f"{PAGE}: {out / PAGE}\n{JSON}: {out / JSON}")
    return sum(not verdict.met for verdict in verdicts)


_NOTES = (
    "Attackers know everything: all honest updates, each other, and the model. Baselines in the clear see every single "
    "update; trimmed mean, Multi-Krum and the groups without sketches are told how many devices are malicious, Covey "
    "is not.",
    "Parameters were chosen on other seeds than these.",
)


def _summary(table: Table, verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for place in table.places():
        accuracy = table.spread(place, lambda result: result.accuracy)
        if accuracy is None:
            continue
        out = table.spread(place, lambda result: result.expelled_by(result.rounds) if result.malicious else None)
        alarms = table.spread(place, lambda result: result.false_alarms)
        clear = table.spread(place, lambda result: result.accuracy, "fedavg")
        lines.append(
            f"{where(place):44} accuracy {accuracy.mean:.3f}/{accuracy.least:.3f}"
            + (f"  FedAvg {clear.mean:.3f}" if clear else "")
            + (f"  expelled {out.mean:.0%}/{out.least:.0%}" if out else "")
            + (f"  honest expelled {alarms.mean:.1%}/{alarms.most:.1%}" if alarms else "")
        )
    missed = [verdict for verdict in verdicts if not verdict.met]
    lines += [f"missed: {verdict.where}: {verdict.goal} ({verdict.found})" for verdict in missed]
    return [*lines, f"{len(verdicts) - len(missed)} of {len(verdicts)} goals are met"]


class _Progress:
    """One line for each result, with the time that the rest may take."""

    def __init__(self, total: int, processes: int) -> None:
        self._total, self._processes, self._done, self._run = total, processes, 0, 0
        self._started = time.monotonic()

    def __call__(self, job: Job, result: Result, known: bool) -> None:
        self._done += 1
        if known:
            return
        self._run += 1
        left = (time.monotonic() - self._started) / self._run * (self._total - self._done)
        level = f", {job.cell.level}" if job.part == "covey" else ""
        click.echo(
            f"[{self._done}/{self._total}] {job.cell.words}: {job.part}{level}: accuracy {result.accuracy:.3f}, "
            f"{seconds_text(result.seconds)}; about {seconds_text(left)} left"
        )


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise ConfigError(f"--seeds {text!r}: write numbers such as 10,11 or 10-14") from error
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r}: names no seed")
    return tuple(dict.fromkeys(seeds))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(evaluate)
