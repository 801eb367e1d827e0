"""benchmarks.case_studies in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import case_studies

from covey_simulator.scenario import load_scenario


def test_clinics_that_turn_labels_round_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(case_studies, "STUDIES", ("medical-records",))
    file = tmp_path / "figures.json"
    line = ["--seeds", "10", "--rounds", "16", "--out", str(tmp_path), "--json", str(file)]
    assert case_studies.main(line) == 0
    ((row,),) = json.loads(file.read_text())["rows"].values()
    assert row["ours"] > row["average"] + 0.1
    assert (row["attackers_out"], row["honest_out"]) == (1.0, 0)
    assert (tmp_path / "medical-records" / "10" / "report.html").exists()
    assert "medical-records" in capsys.readouterr().out


def test_both_studies_are_examples() -> None:
    for name in case_studies.STUDIES:
        scenario = load_scenario(case_studies.EXAMPLES / f"{name}.yaml")
        assert scenario.attesting is not None and scenario.malicious_count == 0.4 * scenario.devices
