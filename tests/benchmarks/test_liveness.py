"""benchmarks.liveness in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import liveness


def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    line = ["--devices", "8", "--rounds", "2", "--group-size", "4", "--only", "nobody", "--json", str(file)]
    assert liveness.main(line) == 0
    assert "nobody drops out" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"].values()
    assert row["closed"] == [1.0, 1.0]
    assert row["early"] == 0


def test_a_missed_goal_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(liveness, "DROPOUT", 1.0)
    line = ["--devices", "8", "--rounds", "5", "--group-size", "4", "--only", "reported lost", "--seed", "2"]
    assert liveness.main(line) == 1
    assert "missed: a fifth drops out, all reported lost" in capsys.readouterr().out
    assert liveness.main([*line, "--no-goals"]) == 0
