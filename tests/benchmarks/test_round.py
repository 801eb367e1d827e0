"""benchmarks.round in small: a real broker, a real aggregator, real agents in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import round as bench
from benchmarks._round_fleet import Terms, Usage

from covey_aggregator.records import RoundRecord
from covey_simulator.broker import find_mosquitto


def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_mosquitto() is None:
        pytest.fail("this test needs a real Mosquitto: apt-get install mosquitto", pytrace=False)
    file = tmp_path / "figures.json"
    line = [
        "--devices",
        "8",
        "--parameters",
        "1000",
        "--rounds",
        "2",
        "--group-size",
        "4",
        "--per-process",
        "4",
        "--seconds",
        "90",
    ]
    assert bench.main([*line, "--json", str(file), "--folder", str(tmp_path)]) == 0
    assert "aggregator's peak memory" in capsys.readouterr().out
    rows = {row["work"]: row["ours"] for row in json.loads(file.read_text())["rows"]}
    assert len(rows["a round"]) == 1
    assert {"  joining", "  masking", "  unmasking"} <= set(rows)
    # A masked vector up and a delta down, two bytes a parameter, with everything around them.
    assert 2000 < rows["up, a device and round"][0] < 20_000
    assert 2000 < rows["down, a device and round"][0] < 30_000


def record(**changes: object) -> RoundRecord:
    fields: dict[str, object] = {
        "round": 1,
        "attempt": 1,
        "accuracy": None,
        "loss": None,
        "federated_accuracy": None,
        "federated_loss": None,
        "participants": 100,
        "accepted": 100,
        "rejected": 0,
        "dropped": 0,
        "groups": 10,
        "groups_aborted": 0,
        "seconds": 14.0,
        "stage_seconds": {"joining": 2.0},
        "bytes_up": 0,
        "bytes_down": 0,
        "model": "",
        "clip": 1.0,
        "update_norm": None,
        "details": [],
    }
    return RoundRecord(**(fields | changes))  # type: ignore[arg-type]


TERMS = Terms(devices=100, parameters=100_000, rounds=3, group_size=10, per_process=50, memory=False)
USAGE = Usage(0, 0, {"agents": 0.0, "aggregator": 0.0, "broker": 0.0})


def test_the_first_round_is_not_judged() -> None:
    seen = [(record(seconds=40.0), USAGE), (record(round=2), USAGE), (record(round=3, seconds=15.5), USAGE)]
    table = {row.work: row for row in bench.rows(seen, TERMS, 99_985)}
    assert table["a round"].ours == [14.0, 15.5]
    assert table["a round"].met is True
    seen[1] = (record(round=2, seconds=15.1), USAGE)
    assert {row.work: row for row in bench.rows(seen, TERMS, 99_985)}["a round"].met is False
    assert {row.work: row for row in bench.rows(seen, TERMS, 50_000)}["a round"].most is None


@pytest.mark.parametrize("changes", [{"accepted": 99}, {"groups_aborted": 1}, {"attempt": 2}])
def test_a_round_without_everybody_is_not_measured(changes: dict[str, object]) -> None:
    seen = [(record(), USAGE), (record(round=2, **changes), USAGE)]
    with pytest.raises(RuntimeError, match=r"round 2\."):
        bench.rows(seen, TERMS, 100_000)
