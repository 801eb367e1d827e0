"""What a simulation shows while it runs: a live table on a terminal, or one plain line a round.

Both are told of the same things by the same calls, which may come from any thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from covey_simulator.records import Report, RoundRecord
from covey_simulator.scenario import Scenario
from covey_simulator.units import bytes_text, number_text, seconds_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

ROWS_SHOWN = 15
BAR_WIDTH = 12
SUMMARY_WIDTH = 100


class Display(Protocol):
    """Somebody to tell what the simulation does."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was, whatever happened."""

    def say(self, text: str) -> None:
        """Tell what goes on outside of rounds, such as a start or a baseline."""

    def stage(self, number: int, stage: str, done: int = 0, total: int = 0) -> None:
        """Tell in which stage a round is, and how many devices have done their part of it."""

    def round(self, record: RoundRecord) -> None:
        """Tell that a round is over."""

    def summary(self, report: Report, files: Mapping[str, Path]) -> None:
        """Close with the verdict and where the reports are; call it after the ``with`` block."""


def make_display(scenario: Scenario, *, headless: bool = False, out: TextIO | None = None) -> Display:
    """Return the live table, or plain lines if that was asked for or nobody sits at a terminal.

    Args:
        scenario: What will run.
        headless: Plain lines even on a terminal.
        out: Where to write; standard output if None.
    """
    out = out or sys.stdout
    if headless or not out.isatty():
        return PlainDisplay(scenario, out)
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that plain lines do not need

    return LiveDisplay(scenario, Console(file=out))


class PlainDisplay:
    """One line a round, for logs and pipes."""

    def __init__(self, scenario: Scenario, out: TextIO) -> None:
        self._scenario = scenario
        self._out = out
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._print(_title(self._scenario))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, text: str) -> None:
        self._print(text)

    def stage(self, number: int, stage: str, done: int = 0, total: int = 0) -> None:
        pass  # stages come many times a second; a log keeps the rounds

    def round(self, record: RoundRecord) -> None:
        rounds, devices = self._scenario.rounds, self._scenario.devices
        self._print(
            f"round {record.round:>{len(str(rounds))}}/{rounds}  accuracy {number_text(record.accuracy, '.3f')}  "
            f"loss {number_text(record.loss, '.3f')}  groups {record.groups} closed, {record.groups_aborted} aborted  "
            f"dropped {record.dropped}  {_judged(record)}{seconds_text(record.seconds)}{_traffic(record, devices)}"
        )

    def summary(self, report: Report, files: Mapping[str, Path]) -> None:
        for line in summary_lines(report, files):
            self._print(line)

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, file=self._out, flush=True)


class LiveDisplay:
    """A table that grows by a row a round, above a line that says what goes on now."""

    def __init__(self, scenario: Scenario, console: Console) -> None:
        from rich.live import Live  # noqa: PLC0415
        from rich.spinner import Spinner  # noqa: PLC0415

        self._scenario = scenario
        self._console = console
        self._records: list[RoundRecord] = []
        self._now = "starting"
        self._done, self._total = 0, 0
        self._since = time.monotonic()
        self._running = False
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._console.print(_title(self._scenario), style="bold", markup=False, highlight=False)
        self._running = True
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        self._live.stop()

    def say(self, text: str) -> None:
        self._set(text)

    def stage(self, number: int, stage: str, done: int = 0, total: int = 0) -> None:
        self._set(f"round {number} of {self._scenario.rounds}: {stage}", done, total)

    def round(self, record: RoundRecord) -> None:
        self._records.append(record)
        self._set(f"round {record.round} of {self._scenario.rounds}: closed")

    def summary(self, report: Report, files: Mapping[str, Path]) -> None:
        from rich import box  # noqa: PLC0415
        from rich.panel import Panel  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        headline, *lines = summary_lines(report, files)
        colour = "red" if not report.verdict.ok else "yellow" if report.verdict.promised_accuracy is None else "green"
        panel = Panel(
            Text("\n".join(lines)),
            title=Text(headline, style=f"bold {colour}"),
            title_align="left",
            border_style=colour,
            box=box.ROUNDED,
            padding=(1, 2),
            width=min(SUMMARY_WIDTH, self._console.width),
        )
        self._console.print(panel)

    def render(self) -> RenderableType:
        """Return what the terminal shows now."""
        from rich.console import Group  # noqa: PLC0415

        table = self._table()
        return Group(table, self._progress()) if self._running else table

    def _set(self, text: str, done: int = 0, total: int = 0) -> None:
        if text != self._now:
            self._since = time.monotonic()
        self._now, self._done, self._total = text, done, total

    def _table(self) -> RenderableType:
        from rich import box  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
        table.add_column("round", justify="right")
        table.add_column("accuracy", justify="left", no_wrap=True)
        for name in ("closed", "aborted", "drop-outs", "time", "sent", "received"):
            table.add_column(name, justify="right", no_wrap=True)
        # All rows while they fit; when it is over, all of them.
        records = self._records[-ROWS_SHOWN:] if self._running else self._records
        devices = self._scenario.devices
        for record in records:
            table.add_row(
                str(record.round),
                f"{number_text(record.accuracy, '.3f')} {_bar(record.accuracy)}",
                str(record.groups),
                _warn(record.groups_aborted),
                _warn(record.dropped),
                seconds_text(record.seconds),
                bytes_text(record.bytes_up / devices),
                bytes_text(record.bytes_down / devices),
                style="red" if record.failed else "",
            )
        table.caption = "groups closed and aborted; bytes per device" if records else None
        table.caption_justify = "left"
        return table

    def _progress(self) -> RenderableType:
        from rich.text import Text  # noqa: PLC0415

        parts = [self._now]
        if self._total:
            filled = round(BAR_WIDTH * min(1.0, self._done / self._total))
            parts.append(f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} {self._done}/{self._total}")
        parts.append(f"{time.monotonic() - self._since:.0f} s")
        self._spinner.update(text=Text("  ".join(parts)))
        return self._spinner


def summary_lines(report: Report, files: Mapping[str, Path]) -> list[str]:
    """Return the closing words: verdict, numbers, notes and files, the headline first."""
    verdict = report.verdict
    word = "FAILED" if not verdict.ok else "FINISHED" if verdict.promised_accuracy is None else "PASSED"
    lines = [f"{word}: {report.name} in {seconds_text(report.seconds)}", *verdict.reasons, ""]
    known = [(report.final_accuracy, "this fleet"), *((b.final_accuracy, b.label) for b in report.baselines.values())]
    lines += [f"{number_text(accuracy, '.3f')}  {label}" for accuracy, label in known]
    lines += ["", *(f"- {note}" for note in verdict.notes)]
    if files:
        lines += ["", *(f"{name}: {path}" for name, path in files.items())]
    return lines


def _judged(record: RoundRecord) -> str:
    return f"refused {record.rejected} of {record.attested}  " if record.attested else ""


def _traffic(record: RoundRecord, devices: int) -> str:
    if not record.bytes_up:
        return ""
    up, down = bytes_text(record.bytes_up / devices), bytes_text(record.bytes_down / devices)
    return f"  a device sent {up}, received {down}"


def _title(scenario: Scenario) -> str:
    attack = scenario.attack
    hostile = f", {scenario.malicious_count} of them malicious ({attack.kind})" if scenario.malicious_count else ""
    clear = "" if scenario.masking else ", MASKING OFF"
    return f"Covey: {scenario.name}: {scenario.devices} devices{hostile}, {scenario.rounds} rounds{clear}"


def _bar(share: float | None) -> str:
    return "━" * round(BAR_WIDTH * share) if share is not None else ""


def _warn(count: int) -> str:
    return f"[yellow]{count}[/yellow]" if count else "0"
