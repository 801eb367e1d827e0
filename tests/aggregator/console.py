"""The command ``covey``, called as a shell would."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from covey_aggregator.cli import main


class Answer:
    """What a command printed and exited with."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def line(self) -> str:
        """The one line of an error."""
        assert self.err.startswith("covey: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.out == ""
        return self.err


Run = Callable[..., Answer]


def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what calls it, without a terminal."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["covey", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call
