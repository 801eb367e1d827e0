"""benchmarks.oddities in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import oddities


def test_rows_of_each_kind_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    only = ["--rounds", "3", "--seeds", "0", "--only", "few-samples,crowd,ipm", "--json", str(file)]
    assert oddities.main(only) == 0
    rows = json.loads(file.read_text())
    assert len(rows) == 10
    assert rows["ipm 40% | probes"][0]["early"] is not None
    assert rows["crowd 20% | rule alone"][0]["odd"] == 0
    assert "| few-samples 20% | probes | 0 / 0 | - | - |" in capsys.readouterr().out


def test_a_missed_goal_is_said() -> None:
    runs = [oddities.Figures(accuracy=0.9, others=0, odd=odd, early=None, late=None) for odd in (2, 3)]
    assert len(oddities._missed({"one-class 20% | probes": runs})) == 1
