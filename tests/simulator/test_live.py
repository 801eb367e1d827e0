"""What is shown while a simulation runs: plain lines for logs, a live table for people."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from tests.simulator.records import report, rounds

from covey_simulator.live import Display, LiveDisplay, PlainDisplay, make_display, summary_lines
from covey_simulator.records import Report
from covey_simulator.scenario import demo_scenario

SCENARIO = demo_scenario(rounds=20)
FILES = {"report": Path("out/report.html")}


def play(display: Display, made: Report) -> None:
    with display:
        display.say("enrolling 30 devices")
        for record in made.rounds:
            display.stage(record.round, "masked", 12, 30)
            display.round(record)
    display.summary(made, FILES)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_are_one_a_round() -> None:
    out = io.StringIO()
    play(PlainDisplay(SCENARIO, out), report(SCENARIO))
    lines = out.getvalue().splitlines()
    assert lines[0] == "Covey: demo: 30 devices, 6 of them malicious (sign-flip), 20 rounds"
    assert lines[1] == "enrolling 30 devices"
    assert sum(line.startswith("round ") for line in lines) == 20
    assert lines[2] == (
        "round  1/20  accuracy 0.800  loss 0.200  groups 5 closed, 0 aborted  dropped 1  2.5 s  "
        "a device sent 9.0 kB, received 21.0 kB"
    )
    assert "PASSED: demo in 31.0 s" in lines
    assert "report: out/report.html" in lines
    assert "\x1b" not in out.getvalue()


def test_a_round_that_gave_nothing_has_its_line() -> None:
    out = io.StringIO()
    PlainDisplay(SCENARIO, out).round(rounds(None, accepted=0)[0])
    assert "accuracy \u2013" in out.getvalue()


def test_the_live_table_shows_the_last_rounds_and_the_present_stage() -> None:
    console = terminal()
    display = LiveDisplay(SCENARIO, console)
    with display:
        for record in report(SCENARIO).rounds:
            display.round(record)
        display.stage(20, "survivors", 15, 30)
        page = terminal()  # of its own: the live one refreshes itself whenever it likes
        page.print(display.render())
        table = shown(page)
    assert "round 20 of 20: survivors  ━━━━━━╌╌╌╌╌╌ 15/30" in table
    numbers = [line.split()[0] for line in table.splitlines() if "0.930" in line]
    assert numbers == [str(number) for number in range(6, 21)]
    for column in ("closed", "aborted", "drop-outs", "sent", "received", "9.0 kB", "21.0 kB"):
        assert column in table


def test_the_finished_table_holds_all_rounds_and_the_summary() -> None:
    console = terminal()
    play(LiveDisplay(SCENARIO, console), report(SCENARIO))
    final = shown(console)
    final = final[final.rindex("drop-outs") :]
    assert sum("0.930" in line and "kB" in line for line in final.splitlines()) == 19
    assert "PASSED: demo" in final
    assert "out/report.html" in final


def test_a_failure_leaves_the_terminal_usable() -> None:
    console = terminal()
    display = LiveDisplay(SCENARIO, console)
    with pytest.raises(RuntimeError, match="gone"), display:
        raise RuntimeError("the fleet is gone")
    assert shown(console).endswith("\x1b[?25h")  # the cursor is back


def test_text_is_never_taken_for_markup() -> None:
    console = terminal()
    made = report(SCENARIO, failures=["[bold]pi-01[/bold] [/nonsense] left"])
    play(LiveDisplay(SCENARIO, console), made)
    assert "[bold]pi-01[/bold] [/nonsense] left" in shown(console)


@pytest.mark.parametrize(
    ("accuracy", "scale", "word"), [(0.9, 1.0, "PASSED"), (0.5, 1.0, "FAILED"), (0.5, 3.0, "FINISHED")]
)
def test_the_summary_opens_with_the_verdict(accuracy: float, scale: float, word: str) -> None:
    scenario = demo_scenario(scale=scale, attestation=scale == 1)
    made = report(scenario, [accuracy] * 10)
    lines = summary_lines(made, {})
    assert lines[0].startswith(f"{word}: demo")
    text = "\n".join(lines)
    for sentence in (*made.verdict.reasons, *made.verdict.notes):
        assert sentence in text
    assert "0.500  undefended, in the clear" in text
    assert "0.960  no attack, in the clear" in text


def test_lines_for_pipes_and_a_table_for_terminals() -> None:
    assert isinstance(make_display(SCENARIO, out=io.StringIO()), PlainDisplay)
    keeper, terminal_end = os.openpty()
    with os.fdopen(terminal_end, "w") as out, os.fdopen(keeper, "rb"):
        assert isinstance(make_display(SCENARIO, out=out), LiveDisplay)
        assert isinstance(make_display(SCENARIO, headless=True, out=out), PlainDisplay)
