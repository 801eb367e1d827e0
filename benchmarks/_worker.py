"""One side of a comparison in a process of its own, speaking JSON lines over its standard input and output.

A worker imports what it measures and nothing else, so each side can live in its own virtual environment. It holds one
*work* at a time: inputs are made and results checked outside the clock, and a result that is wrong ends the run.

Only the standard library is used here, because the anchors' environments know nothing of Covey.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Work(Protocol):
    """Something that is done again and again: fresh inputs, the work itself on the clock, a check of its result."""

    def inputs(self) -> Any:
        """Return what one run starts from; not timed."""

    def run(self, inputs: Any) -> Any:
        """Do the work; timed."""

    def check(self, result: Any) -> dict[str, Any]:
        """Return facts about the result, such as its size; not timed.

        Raises:
            AssertionError: The result is wrong.
        """


def serve(works: Mapping[str, Callable[..., Work]], versions: Mapping[str, str]) -> None:
    """Answer commands until the input ends.

    Args:
        works: Makers of works by name.
        versions: What is measured here, by name.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up between the answers
    current: Work | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            match command:
                case {"do": "versions"}:
                    answer: dict[str, Any] = dict(versions)
                case {"do": "make", "work": str(name), "size": dict(size)}:
                    current = works[name](**size)
                    answer = {}
                case {"do": "run"} if current is not None:
                    answer = _timed(current)
                case {"do": "peak"} if current is not None:
                    answer = _peak(current)
                case _:
                    raise ValueError(f"no command {command}")
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(work: Work) -> dict[str, Any]:
    inputs = work.inputs()
    gc.collect()
    gc.disable()
    try:
        began, cpu_began = time.perf_counter(), time.process_time()
        result = work.run(inputs)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    finally:
        gc.enable()
    return {"seconds": seconds, "cpu": cpu, **work.check(result)}


def _peak(work: Work) -> dict[str, Any]:
    """Return how far the resident memory rises above where it stood, whoever allocates it."""
    inputs = work.inputs()
    gc.collect()
    _trim()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = memory("VmRSS")
    result = work.run(inputs)
    peak = memory("VmHWM")
    return {"bytes": max(0, peak - before), **work.check(result)}


def _trim() -> None:
    """Give memory that was freed back to the system, where the C library can, so that its reuse counts as growth."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def memory(field: str, process: str = "self") -> int:
    """Return a field of a process's status (``VmRSS``, ``VmHWM``) in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)
