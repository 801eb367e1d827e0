"""benchmarks.trimmed_mean in small, without the anchors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import trimmed_mean


def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    line = ["--parameters", "20000", "500", "--groups", "7", "--repeat", "1", "--without-flower", "--no-goals"]
    assert trimmed_mean.main([*line, "--json", str(file)]) == 0
    assert "against Flower, d = 500" in capsys.readouterr().out
    rows = {row["work"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["against Flower, d = 20000"]["facts"]["cut"] == 1
    assert rows["against a plain mean, d = 20000"]["anchor"]
    for name in ("median", "geometric-median", "multi-krum", "centred-clipping", "mean"):
        assert rows[f"{name} against a plain mean, d = 20000"]["anchor"]
        assert rows[f"peak memory of {name}, d = 20000"]["ours"]
