"""Fixtures of the aggregator's tests."""

from __future__ import annotations

import pytest
from tests.aggregator.console import Run, console


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command ``covey``."""
    return console(monkeypatch, capsys)
