"""Bundles as QR codes in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
import segno
from tests.aggregator.console import Run

from covey_aggregator import cli_qr
from covey_aggregator.qr import BORDER, LARGEST, size, text_qr
from covey_protocol import provisioning


def modules(code: str) -> list[list[bool]]:
    """Return which modules of a code in half blocks are dark: where the terminal's own background is seen."""
    rows = []
    for line in code.splitlines():
        rows.append([letter not in "█▀" for letter in line])
        rows.append([letter not in "█▄" for letter in line])
    rows = rows[: len(rows[0])]
    return [row[BORDER:-BORDER] for row in rows[BORDER:-BORDER]]


def test_what_is_shown_is_the_code_of_the_line() -> None:
    line = "covey-bundle-1z:" + "Ab-_" * 100
    code = text_qr(line)
    assert code is not None
    expected = segno.make_qr(line, error="l", boost_error=False, mode="byte", encoding="ascii")
    assert modules(code) == [[bool(module) for module in row] for row in expected.matrix]
    assert set(code) == set("█▀▄ \n")


def test_the_largest_code_and_one_byte_more() -> None:
    assert text_qr("x" * LARGEST) is not None
    assert text_qr("x" * (LARGEST + 1)) is None
    assert size("ab\nabc\n") == (3, 2)


@pytest.mark.parametrize("tls", [False, True])
def test_every_bundle_fits(tmp_path: Path, run: Run, tls: bool) -> None:
    """With names as long as they can be, certificates and a list of revocations."""
    home = tmp_path / "home"
    fleet, name = "f" * 63, "d" * 63
    host = ".".join(["h" * 49] * 4) + ":8883"
    more = ("--tls",) if tls else ()
    assert run("init", home, "--operator", tmp_path / "op", "--fleet", fleet, "--broker", host, *more).code == 0
    run("device", "add", "gone", "--home", home)
    run("device", "revoke", "gone", "--home", home, "--reason", "x")
    answer = run("device", "add", name, "--home", home, "--qr")
    assert answer.code == 0
    assert "a QR code of" in answer.out
    bundle = provisioning.decode((home / "bundles" / f"{name}.bundle").read_text())
    assert (bool(bundle.broker.certificate), bool(bundle.revocations)) == (tls, True)
    line = provisioning.encode(bundle, compact=True)
    assert len(line) <= LARGEST
    assert provisioning.decode(line) == bundle
    code = text_qr(line)
    assert code is not None
    assert code in answer.out


def test_a_terminal_that_is_too_small_and_a_bundle_that_is_too_large_are_said(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("init", tmp_path / "home", "--operator", tmp_path / "op", "--fleet", "meadow")
    run("device", "add", "pi", "--home", tmp_path / "home")
    path = tmp_path / "home" / "bundles" / "pi.bundle"
    monkeypatch.setenv("COLUMNS", "80")
    cli_qr.show(path)
    assert "█" in capsys.readouterr().out  # no terminal: a file or another program takes any width
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cli_qr.show(path)
    said = capsys.readouterr().out
    assert ("and this terminal has 80" in said, "█" in said) == (True, False)
    monkeypatch.setattr(cli_qr, "text_qr", lambda _: None)
    cli_qr.show(path)
    assert "and a QR code holds 2953: copy the file instead" in capsys.readouterr().out


def test_an_operator_elsewhere_shows_them_too(tmp_path: Path, run: Run) -> None:
    run("init", tmp_path / "home", "--operator", tmp_path / "op", "--fleet", "meadow")
    (tmp_path / "op").rename(tmp_path / "away")
    run("device", "add", "pi", "--home", tmp_path / "home")
    (request,) = (tmp_path / "home" / "requests").iterdir()
    assert "█" in run("operator", "sign", tmp_path / "away", request, "--qr").out
