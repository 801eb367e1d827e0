"""Runs cells in several processes, and never the same one twice: results are kept by what they depend on."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import msgspec

from covey_protocol.digest import digest
from covey_simulator.evaluation.grid import Cell
from covey_simulator.evaluation.measure import Part, Result, measure
from covey_simulator.report import write_atomically

CACHE = "cells"

_EVERYTHING = (
    "covey_protocol",
    "covey_agent",
    "covey_modelkit",
    "covey_aggregator.rules",
    "covey_aggregator.combine",
    "covey_simulator",
)
_GROUPS = ("covey_aggregator.conduct", "covey_aggregator.regrouping")
_RULE = ("covey_aggregator.reputation", "covey_aggregator.reputations")
_SERVICE = ("covey_aggregator",)
_SHOWN = frozenset(
    f"{name}.py"
    for name in (
        "page",
        "charts",
        "style",
        "live",
        "units",
        "demo",
        "cli",
        "verdict",
        "report",
        "goals",
        "table",
        "jobs",
        "__main__",
    )
)
"""Modules of the simulator that show results and make none."""


class Job(NamedTuple):
    """One part of a cell."""

    cell: Cell
    part: Part


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A result as it is kept, with what it is of."""

    cell: Cell
    part: Part
    result: Result


def code_version(job: Job) -> bytes:
    """Return a digest of all code that a job's result can depend on.

    The rule against poisoners is no part of what the baselines depend on, so these stay when it is worked on.
    """
    packages = list(_EVERYTHING)
    if job.part in ("covey", "groups"):
        packages += _GROUPS
    if job.part == "covey":
        packages += _RULE
    if job.cell.level == "broker":
        packages += _SERVICE
    return digest(b"".join(_package(name) for name in packages), person=b"covey-eval-code")


_packages: dict[str, bytes] = {}


def _package(name: str) -> bytes:
    if name not in _packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        if name == "covey_simulator":
            files = [file for file in files if file.name not in _SHOWN]
        _packages[name] = digest(b"".join(file.read_bytes() for file in files), person=b"covey-eval-file")
    return _packages[name]


class Cache:
    """Results in a folder, one file for each.

    Args:
        folder: Is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, job: Job) -> Result | None:
        """Return a job's result, if it is there and not damaged."""
        try:
            kept = msgspec.json.decode(self._path(job).read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return None
        return kept.result if (kept.cell, kept.part) == (job.cell, job.part) else None

    def keep(self, job: Job, result: Result) -> None:
        """Keep a result."""
        write_atomically(self._path(job), msgspec.json.encode(Kept(cell=job.cell, part=job.part, result=result)))

    def _path(self, job: Job) -> Path:
        config = msgspec.json.encode((job.cell.scenario(), job.part, job.cell.level))
        return self._folder / f"{digest(config + code_version(job), person=b'covey-eval-cell').hex()[:32]}.json"


def jobs_of(cells: Sequence[Cell], baselines: Sequence[Part]) -> list[Job]:
    """Return the jobs of cells, Covey's own first; the baselines of a place and seed are run once."""
    jobs = [Job(cell, "covey") for cell in cells]
    for part in baselines:
        jobs += dict.fromkeys(Job(msgspec.structs.replace(cell, level="fast"), part) for cell in cells)
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    cache: Cache,
    *,
    processes: int,
    on_result: Callable[[Job, Result, bool], None],
) -> dict[Job, Result]:
    """Run jobs, longest kinds first, those over a broker alone at the end; what is known is not run again.

    Args:
        jobs: What to run.
        cache: Where results are kept.
        processes: How many at once.
        on_result: Told of each result, and whether it was known.

    Raises:
        Exception: What a job raised; the others' results are kept.
    """
    results: dict[Job, Result] = {}
    missing = []
    for job in jobs:
        known = cache.find(job)
        if known is None:
            missing.append(job)
        else:
            results[job] = known
            on_result(job, known, True)
    together = [job for job in missing if job.cell.level != "broker"]
    together.sort(key=lambda job: job.cell.level != "signed" or job.part != "covey")
    for job, result in _run(together, processes):
        cache.keep(job, result)
        results[job] = result
        on_result(job, result, False)
    for job in missing:
        if job.cell.level == "broker":
            results[job] = measure(job.cell, job.part)
            cache.keep(job, results[job])
            on_result(job, results[job], False)
    return results


def _run(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Result]]:
    if not jobs:
        return
    if processes == 1:
        for job in jobs:
            yield job, measure(job.cell, job.part)
        return
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that start now: two must not fight for two cores
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            waiting: dict[Future[Result], Job] = {pool.submit(measure, job.cell, job.part): job for job in jobs}
            try:
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield waiting.pop(future), future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
