"""``covey simulate`` in one process, from the file to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from covey_simulator.cli import simulate
from covey_simulator.run import PAGE, REPORT
from covey_simulator.scenario import load_scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_scenario(path: Path) -> None:
    assert load_scenario(path).name


def test_a_rehearsal_writes_the_whole_report(tmp_path: Path) -> None:
    fields = yaml.safe_load((EXAMPLES / "rehearsal.yaml").read_text()) | {"rounds": 9, "devices": 40}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(fields))
    result = CliRunner().invoke(simulate, [str(path), "--out", str(tmp_path), "--seed", "2", "--headless"])
    assert result.exit_code == 0, result.output
    assert "rehearsing without a broker, masks or signatures" in result.output
    assert "refused 8 of 40" in result.output and "a device sent" not in result.output
    report = json.loads((tmp_path / REPORT).read_text())
    malicious = [device for device in report["devices"] if device["malicious"]]
    assert len(malicious) == 8
    assert {device["state"] for device in malicious} == {"quarantined"}
    assert all(len(device["reputations"]) == 9 and device["quarantined_at"] <= 9 for device in malicious)
    assert all(device["reputation"] < 0.5 and device["reason"] for device in malicious)
    assert report["detection"]["malicious_quarantined"] == 8
    assert report["detection"]["rounds_to_90"] <= 9
    assert report["config"]["attestation"] == {"sketch": 16, "lot": 1}
    assert report["final_accuracy"] > report["baselines"]["undefended"]["final_accuracy"]
    assert "Reputation" in (tmp_path / PAGE).read_text()
