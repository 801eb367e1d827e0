"""benchmarks.leakage in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import _histograms, leakage

SMALL = ["--devices", "20", "--rounds", "4", "--seeds", "0", "--attacks", ""]


def test_the_attacks_find_label_counts_and_balance_hides_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert leakage.main([*SMALL, "--only", "balance 1.25 k 16 lot 5", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    ((open_,), (ours,)) = rows["balance 0    k 16 lot 1"], rows["balance 1.25 k 16 lot 5"]
    assert open_["all"]["classes"] > 0.7
    for kind in ("classes", "shadows"):
        assert ours["all"][kind] < min(leakage.GOAL, open_["all"][kind] - 0.2)
    assert "attested" in capsys.readouterr().out


def test_an_attack_that_does_not_work_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leakage, "WORKS", 1.1)
    assert leakage.main([*SMALL, "--only", "nothing"]) == 1
    assert "says nothing about the rest" in capsys.readouterr().out


def test_rounds_in_which_a_device_did_not_attest_are_left_out() -> None:
    rng = np.random.default_rng(0)
    design, truth = rng.normal(size=(40, 5)), rng.dirichlet(np.ones(5), 12)
    sketches = truth @ design.T
    there = rng.random(sketches.shape) < 0.7
    found = _histograms._mixtures(design, np.where(there, sketches, 1e6), there, 1e-6)
    assert _histograms.correlation(found, truth) > 0.999
