"""benchmarks._worker and benchmarks._compare: workers answer, wrong results end a run, goals decide the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from benchmarks._compare import MISSED, NOT_JUDGED, Row, Side, peaks, report, take_turns
from benchmarks._worker import memory

WORKER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks._worker import serve

class Fill:
    def __init__(self, size, right=True, seed=0):
        self.size, self.right, self.seed = size, right, seed
    def inputs(self):
        return bytearray(b"x") * self.size
    def run(self, inputs):
        print("noise that must not end up among the answers")
        return bytes(inputs)
    def check(self, result):
        assert self.right, "wrong result"
        return {{"inputs": self.seed, "size": len(result)}}

serve({{"fill": Fill}}, {{"fill": "1.0"}})
"""


@pytest.fixture
def side(tmp_path: Path) -> Side:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(Path(__file__).parents[2])))
    return Side(sys.executable, script)


def test_sides_take_turns_and_the_first_pair_is_thrown_away(side: Side) -> None:
    ours, anchor, facts = take_turns(side, side, "fill", {"size": 10}, repeat=3)
    assert len(ours) == len(anchor) == len(facts["cpu"]) == 3
    assert min(*ours, *anchor) > 0
    assert (facts["size"], facts["anchor"]["size"]) == (10, 10)
    assert side.versions() == {"fill": "1.0"}


def test_a_missing_anchor_leaves_its_column_empty(side: Side) -> None:
    ours, anchor, facts = take_turns(side, None, "fill", {"size": 10}, repeat=2)
    assert (len(ours), anchor, "anchor" in facts) == (2, [], False)


def test_a_wrong_result_is_not_measured(side: Side) -> None:
    with pytest.raises(RuntimeError, match="wrong result"):
        take_turns(side, None, "fill", {"size": 10, "right": False}, repeat=1)


def test_different_inputs_are_not_compared(side: Side) -> None:
    with pytest.raises(RuntimeError, match="different inputs"):
        take_turns(side, side, "fill", {"size": 10}, repeat=1, anchor_size={"size": 10, "seed": 1})


def test_the_peak_is_that_of_the_run_alone(side: Side) -> None:
    # A copy of 32 MB is made on top of an input of 32 MB.
    [peak] = peaks(side, "fill", {"size": 32 << 20}, repeat=1, warm={"size": 10})
    assert 31 << 20 < peak < 40 << 20
    assert memory("VmHWM") >= memory("VmRSS") > 1 << 20


@pytest.mark.parametrize(
    ("row", "status", "word"),
    [
        (Row("w", "ms", [0.1, 0.3, 0.2], [1.0, 1.0, 1.0], most=0.2), 0, "met"),
        (Row("w", "ms", [0.1, 0.3, 0.3], [1.0, 1.0, 1.0], most=0.2), MISSED, "MISSED"),
        (Row("w", "ms", [0.1], most=0.2), NOT_JUDGED, "not judged"),
        (Row("w", "MB", [2e6], most=2.05e6, absolute=True), 0, "<= 2.05 MB"),
        (Row("w", "MB", [2.1e6], most=2.05e6, absolute=True), MISSED, "MISSED"),
        (Row("w", "s", [1.0]), 0, "1 s"),
    ],
)
def test_goals_decide_the_exit_status(
    row: Row, status: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    options = argparse.Namespace(json=file, no_goals=False)
    assert report("name", [row], {"covey": "1"}, options) == status
    assert word in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert (document["versions"], document["rows"][0]["met"]) == ({"covey": "1"}, row.met)
    options.no_goals = True
    assert report("name", [row], {}, options) == 0


def test_a_ratio_is_the_median_over_pairs() -> None:
    # Both are slowed down together in the second pair; the ratio of the medians would be 1 / 8.
    assert Row("w", "s", [1.0, 8.0, 1.0], [4.0, 16.0, 8.0]).ratio == pytest.approx(1 / 4)
