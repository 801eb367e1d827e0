"""report.json: its schema, and that it is there in full or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from tests.simulator.records import report, rounds

from covey_simulator.records import DeviceRecord, Report
from covey_simulator.report import final_accuracy, installed_versions, write_atomically, write_report
from covey_simulator.scenario import demo_scenario


def test_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.json"
    write_report(report(), path)
    found = json.loads(path.read_text())
    assert set(found) == {
        *("name", "verdict", "final_accuracy", "rounds", "devices", "detection"),
        *("baselines", "config", "versions", "seconds", "attack_success", "epsilon"),
    }
    assert set(found["rounds"][0]) == {
        *("round", "attempt", "accuracy", "loss", "federated_accuracy", "participants", "accepted", "rejected"),
        *("groups", "groups_aborted", "dropped", "seconds", "stage_seconds", "bytes_up", "bytes_down"),
        *("attested", "honest_rejected", "epsilon"),
    }
    assert found["rounds"][1]["round"] == 2
    assert found["final_accuracy"] == 0.93
    assert found["devices"][0] == {
        **{"name": "pi-0", "malicious": True, "state": "quarantined"},
        **{"reputation": None, "quarantined_at": 5, "reputations": [], "reason": None},
    }
    assert found["detection"] == {"malicious_quarantined": 6, "honest_quarantined": 0, "rounds_to_90": 5}
    assert set(found["baselines"]) == {"undefended", "no_attack"}
    assert found["baselines"]["undefended"]["final_accuracy"] == 0.5
    assert len(found["baselines"]["no_attack"]["rounds"]) == 10
    assert found["config"]["attack"] == {
        "kind": "sign-flip",
        "fraction": 0.2,
        "scale": 5.0,
        "start_round": 1,
        "joins_at": 1,
    }
    assert {"ok", "reasons", "notes"} <= set(found["verdict"])
    assert found["versions"]["covey"]


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    original = report(rounds=rounds(0.5, None))
    write_report(original, path)
    assert msgspec.json.decode(path.read_bytes(), type=Report) == original


def test_baselines_that_were_not_run_are_left_out() -> None:
    assert set(report(undefended=()).baselines) == {"no_attack"}
    for baseline in report().baselines.values():
        assert "clear" in baseline.label
        assert baseline.masking is False


def test_final_accuracy_is_the_last_one_measured() -> None:
    assert final_accuracy(rounds(0.5, 0.7, None)) == 0.7
    assert final_accuracy([]) is None


@pytest.mark.parametrize(("expelled_at", "reached"), [([1, 2, 3, 4, 9], None), ([9, 2, 3, 4, 5, 6, 7, 8, 1], 9)])
def test_detection_counts_who_was_expelled(expelled_at: list[int], reached: int | None) -> None:
    def device(malicious: bool, number: int | None) -> DeviceRecord:
        return DeviceRecord(name="pi", malicious=malicious, state="quarantined", quarantined_at=number)

    numbers: list[int | None] = [*expelled_at, *[None] * (10 - len(expelled_at))]
    devices = [*(device(True, number) for number in numbers), device(False, 3), device(False, None)]
    detection = report(demo_scenario(), devices=devices).detection
    assert (detection.malicious_quarantined, detection.honest_quarantined) == (len(expelled_at), 1)
    assert detection.rounds_to_90 == reached


def test_an_old_report_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_versions_name_what_computes() -> None:
    versions = installed_versions()
    assert {"covey", "python", "system", "numpy", "onnxruntime", "PyNaCl"} <= set(versions)
    assert all(versions.values())
