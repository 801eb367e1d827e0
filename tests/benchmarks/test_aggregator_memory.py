"""benchmarks.aggregator_memory in small: the sums it checks are exact, and it would notice if they were not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import aggregator_memory
from benchmarks._compare import MISSED
from benchmarks._sum_fleet import Fingerprint, SumFleet

from covey_aggregator.combine import Combined, combine
from covey_aggregator.rules import AnyRule
from covey_aggregator.rules.mean import Mean
from covey_aggregator.rules.trimmed_mean import TrimmedMean
from covey_protocol import prg
from covey_protocol.prg import Ring

SMALL = ["--devices", "13", "--parameters", "400", "--group-size", "5"]


def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert aggregator_memory.main([*SMALL, "--json", str(file)]) == 0
    assert "peak memory of the process" in capsys.readouterr().out
    rows = {row["work"]: row for row in json.loads(file.read_text())["rows"]}
    peak = rows["peak memory of the process"]
    assert peak["facts"] == {"groups": 3, "devices": 13, "sampled": 50}
    assert peak["most"] is None  # the goal is that of the full size
    assert peak["ours"][0] >= rows["  all groups unmasked"]["ours"][0] > 0


def test_too_much_memory_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(aggregator_memory, "GOAL_DEVICES", 13)
    monkeypatch.setattr(aggregator_memory, "GOAL_PARAMETERS", 400)
    assert aggregator_memory.main(SMALL) == 0
    monkeypatch.setattr(aggregator_memory, "GOAL", 1e6)
    assert aggregator_memory.main(SMALL) == MISSED
    assert "MISSED" in capsys.readouterr().out


def test_a_sum_that_is_off_by_one_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = SumFleet(5, 300, 5, tmp_path)
    fleet.join_and_deal()
    for _ in fleet.mask():
        pass
    fleet.sign_and_reveal()
    change = prg.change

    def off_by_one(vector: Ring, **seeds: list[bytes]) -> None:
        change(vector, **seeds)
        vector[17] += np.uint16(1)

    monkeypatch.setattr(prg, "change", off_by_one)
    with pytest.raises(AssertionError, match="not exact"):
        list(fleet.unmask())
    fleet.close()


def test_a_wrong_model_is_noticed(tmp_path: Path) -> None:
    fleet = SumFleet(12, 300, 4, tmp_path)
    fleet.join_and_deal()
    for _ in fleet.mask():
        pass
    fleet.sign_and_reveal()
    assert len(list(fleet.unmask())) == 3
    weights = np.zeros(300, np.float32)

    def by(rule: AnyRule) -> Combined:
        return combine(weights, fleet.run.means, rule=rule, contamination=0, evaluator=None)

    aggregator_memory.check(fleet, weights, by(TrimmedMean(beta=aggregator_memory.BETA)))
    with pytest.raises(AssertionError, match="new model"):
        aggregator_memory.check(fleet, weights, by(Mean()))
    fleet.close()
    assert not list((tmp_path / "spool").iterdir())


def test_fingerprints_of_parts_add_up() -> None:
    fingerprint, rng = Fingerprint(20_000), np.random.default_rng(0)
    parts = rng.integers(-3000, 3000, (9, 20_000)).astype(np.int16).view(np.uint16)
    total = np.add.reduce(parts, axis=0, dtype=np.uint16)
    assert fingerprint.of(total) == sum(fingerprint.of(part) for part in parts) % (1 << 64)
    total[-1] += np.uint16(1)
    assert fingerprint.of(total) != sum(fingerprint.of(part) for part in parts) % (1 << 64)
