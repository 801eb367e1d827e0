"""benchmarks.backdoors in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import _looks, backdoors

SMALL = ["--devices", "30", "--rounds", "3", "--seeds", "0", "--only", "x1 20%", "--no-goals"]


def test_every_defence_and_every_look_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert backdoors.main([*SMALL, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {key.split(" | ")[1] for key in rows} == set(backdoors.DEFENCES)
    assert "| backdoor x1 20% | sign agreement |" in capsys.readouterr().out


def test_looks_of_an_undefended_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_looks, "_STEPS", 5)
    parser = backdoors.options_parser()
    found = backdoors.looks("backdoor x1 20%", 0, parser.parse_args(["--devices", "30"]), 6)
    assert set(found) == set(backdoors.LOOKS)
    assert all(0 <= found[look] <= 1 for look in ("the rule's evidence", "spectral residual", "probes"))


def test_the_area_counts_pairs_in_order() -> None:
    hostile = np.array([True, False, False, True])
    assert _looks.area(np.array([3.0, 1.0, 2.0, 2.0]), hostile) == (4 - 0.5) / 4


def test_a_missed_goal_is_said() -> None:
    figures = backdoors.Figures(0.5, 0.5, 0.9, 0.0, 0.1, 0.0)
    missed = backdoors._missed({("backdoor x1 20%", "probes"): [figures], ("no attack", "probes"): [figures]})
    assert len(missed) == 2
