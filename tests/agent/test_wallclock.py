"""covey_agent.wallclock: the system's clock counts where a time service keeps it, as the kernel says."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import pytest

from covey_agent import wallclock
from covey_agent.wallclock import synchronised_time


class Kernel:
    """Answers adjtimex(2) as a test likes; the status stands behind modes and four longs."""

    def __init__(self, state: int, status: int) -> None:
        self.state, self.status = state, status

    def adjtimex(self, timex: Any) -> int:
        ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long)).value = self.status
        return self.state


@pytest.mark.parametrize(
    ("state", "status", "counts"),
    [(0, 0x0001, True), (0, 0x2001, True), (0, 0x0041, False), (5, 0x0001, False), (-1, 0x0001, False)],
)
def test_only_a_clock_that_is_kept_counts(
    monkeypatch: pytest.MonkeyPatch, state: int, status: int, counts: bool
) -> None:
    monkeypatch.setattr(wallclock, "_libc", lambda: Kernel(state, status))
    at = synchronised_time()
    assert (at is not None) == counts
    assert at is None or abs(at - time.time()) < 60


def test_a_system_without_the_call_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wallclock, "_libc", object)
    assert synchronised_time() is None


def test_this_system_answers() -> None:
    at = synchronised_time()
    assert at is None or abs(at - time.time()) < 60
