"""benchmarks.flood in small: a real broker, real agents, and one who floods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import flood

from covey_simulator.broker import find_mosquitto


@pytest.mark.slow
def test_the_others_keep_their_place(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.fail("this test needs a real Mosquitto: apt-get install mosquitto", pytrace=False)
    file = tmp_path / "figures.json"
    line = "--devices 6 --parameters 1000 --rounds 1 --group-size 6 --per-process 6 --seconds 90 --rate 3000 --size 100"
    assert flood.main([*line.split(), "--json", str(file), "--folder", str(tmp_path), "--no-goals"]) == 0
    rows = {row["work"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["devices that keep their place"]["ours"][0] >= 5
    assert len(rows["a round while one device floods"]["anchor"]) == 1
