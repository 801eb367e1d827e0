"""benchmarks.masking in small, without Flower: every work checks its own result, bytes add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import masking
from benchmarks._compare import MISSED, NOT_JUDGED
from benchmarks._mask_profile import ADDS, CIPHER, PARTS, WHOLE
from benchmarks._traffic import measure, packet

SMALL = ["--parameters", "300", "--peers", "8", "--members", "6", "--repeat", "1"]
SMALL += ["--small-parameters", "200", "--small-members", "5"]


def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert masking.main([*SMALL, "--without-flower", "--no-goals", "--json", str(file)]) == 0
    assert "unmask a group of 9, 2 dropped" in capsys.readouterr().out
    document = json.loads(file.read_text())
    rows = {row["work"]: row for row in document["rows"]}
    assert rows["unmask a group of 9, 2 dropped"]["facts"]["survivors"] == 7
    assert rows["quantise + mask, 8 peers"]["facts"]["size"] == 2 * (300 + 4)
    attested = rows["attest, 8 peers, 64 numbers"]
    assert attested["anchor"]  # our own masking
    assert attested["facts"]["size"] > 9 * 64 * 2
    assert not any(row["anchor"] for row in document["rows"] if row is not attested)
    assert "flwr" not in document["versions"]


def test_the_profile_takes_the_step_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert masking.main([*SMALL, "--profile", "--without-flower", "--no-goals", "--json", str(file)]) == 0
    assert "bare ChaCha20" in capsys.readouterr().out
    rows = {row["work"]: row["ours"] for row in json.loads(file.read_text())["rows"]}
    parts = [rows[f"  {part}"][0] for part in PARTS]
    assert all(seconds > 0 for seconds in [*parts, rows[f"  {CIPHER}"][0], rows[f"  {ADDS}"][0]])
    assert sum(parts) == pytest.approx(rows[f"profile: {WHOLE}"][0])


def test_goals_without_an_anchor_are_not_taken_for_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert masking.main([*SMALL, "--without-flower"]) in (MISSED, NOT_JUDGED)
    capsys.readouterr()


def test_a_packet_is_what_mqtt_5_sends() -> None:
    assert packet("a/b", b"") == 1 + 1 + 2 + 3 + 2 + 1
    assert packet("t", bytes(127 - 6)) - 121 == 1 + 1 + 6
    assert packet("t", bytes(128 - 6)) - 122 == 1 + 2 + 6
    assert packet("t", bytes(16384)) - 16384 == 1 + 3 + 6


def test_traffic_is_that_of_one_device() -> None:
    small, large = measure(6, 500), measure(6, 600)
    assert small.up["vector"] == 2 * (500 + 4)
    assert small.down["delta"] == 4 + 2 * 500
    assert small.up["join"] and small.down["roster"] and small.down["close"]
    # Control traffic does not grow with the model (by a few bytes of CBOR lengths at most).
    assert abs(large.control - small.control) < 20
