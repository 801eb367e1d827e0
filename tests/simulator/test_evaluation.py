"""``./run evaluate``: its grid, its cache, its goals and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from covey_protocol.errors import ConfigError
from covey_protocol.ring import RingScale
from covey_simulator.data import device_names
from covey_simulator.engine.conductor import Step
from covey_simulator.engine.parts import GroupOutcome, RoundOutcome
from covey_simulator.evaluation import grid, jobs
from covey_simulator.evaluation import measure as measure_module
from covey_simulator.evaluation.__main__ import evaluate
from covey_simulator.evaluation.goals import FAMILIES, GOALS, OPEN_PROBLEMS, judge, where
from covey_simulator.evaluation.grid import ATTACKS, NONE, SEEDS, SETTINGS, Cell, full_grid, quick_grid
from covey_simulator.evaluation.jobs import Cache, Job, jobs_of, run_jobs
from covey_simulator.evaluation.measure import BASELINES, Part, Result, measure
from covey_simulator.evaluation.page import render
from covey_simulator.evaluation.table import Place, Table
from covey_simulator.records import RoundRecord

TINY = Cell(setting="digits", attack="sign-flip", fraction=0.2, seed=10, rounds=2)


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "accuracy": 0.94,
        "attack_success": None,
        "rounds": 20,
        "malicious": 20,
        "honest": 80,
        "malicious_expelled": [0] * 5 + [10] * 5 + [20] * 10,
        "honest_expelled": [0] * 20,
        "exposure": 6.0,
    }
    return Result(**{**fields, **changes})


def table(places: dict[tuple[str, str, float], Result], part: Part = "covey", seeds: int = 2) -> Table:
    return Table(
        {
            Job(Cell(setting=setting, attack=attack, fraction=fraction, seed=seed), part): value
            for (setting, attack, fraction), value in places.items()
            for seed in range(seeds)
        }
    )


def test_every_cell_is_a_scenario() -> None:
    cells = full_grid()
    assert len(cells) == len(set(cells))
    assert {cell.attack for cell in cells if cell.setting == "digits"} == set(ATTACKS)
    assert {cell.setting for cell in cells} == set(SETTINGS)
    for cell in cells:
        scenario = cell.scenario()
        assert scenario.seed == cell.seed and scenario.malicious_count == round(cell.fraction * scenario.devices)
    seeds = {cell.seed for cell in cells if cell.level == "signed"}
    assert seeds == {SEEDS[0]}
    assert [cell.level for cell in cells[-3:]] == ["broker"] * 3
    wave = Cell(setting="digits", attack="Sybil wave", fraction=0.2, seed=10).scenario()
    assert (wave.devices, wave.malicious_count, wave.attack.joins_at) == (125, 25, 11)


def test_grids_can_be_cut_down() -> None:
    cells = full_grid(seeds=(3,), settings=("digits",), attacks=("alie",), fractions=(0.4,), broker=False, signed=False)
    assert [(cell.attack, cell.fraction, cell.level) for cell in cells] == [(NONE, 0.0, "fast"), ("alie", 0.4, "fast")]
    quick = quick_grid()
    assert [cell.level for cell in quick].count("signed") == 1
    assert {cell.rounds for cell in quick} == {grid.QUICK_ROUNDS}
    with pytest.raises(ConfigError, match="attack 'alien': unknown; there are none, sign-flip"):
        full_grid(attacks=("alien",))
    with pytest.raises(ConfigError, match="setting 'moon': unknown"):
        full_grid(settings=("moon",))


def test_measures_ours_and_others() -> None:
    results = {part: measure(TINY, part) for part in ("covey", *BASELINES)}
    assert {found.rounds for found in results.values()} == {2}
    assert all(0.1 < found.accuracy < 0.9 for found in results.values())
    assert {found.malicious for found in results.values()} == {20}
    assert len(results["covey"].malicious_expelled) == 2
    assert results["covey"].exposure == 2.0, "nobody is expelled in two rounds"
    calm = msgspec.structs.replace(TINY, attack=NONE, fraction=0.0)
    assert measure(calm, "fedavg").accuracy > results["fedavg"].accuracy


def test_counts_honest_devices_that_are_refused_and_rounds_of_the_malicious() -> None:
    fleet = measure_module._fleet(TINY.scenario())
    names = device_names(100)
    hostile = [names[index] for index in sorted(fleet.malicious)]
    honest = [name for name in names if name not in hostile]
    watch = measure_module._Watch(fleet)
    there = [*honest[:10], *hostile[:4]]
    outcome = RoundOutcome(RingScale(1.0, 10), sketches=dict.fromkeys(there, np.zeros(8, np.uint16)))
    outcome.groups["1-s-0"] = GroupOutcome(joined=tuple(there))
    record = RoundRecord(round=1, accuracy=0.5, loss=1.0, participants=14, accepted=8, groups=1)
    expelled = frozenset([honest[0], hostile[0]])
    watch(Step(record, outcome, frozenset(honest[2:10]), fleet.trainer.bundle.weights, frozenset(), expelled))
    assert (watch.refused, watch.attested) == (1, 9), "who is expelled already is not refused again"
    assert [watch.joined[name] for name in hostile[:5]] == [0, 1, 1, 1, 0]


def test_counts_rounds_from_the_attacks_beginning() -> None:
    late = result(began=11, malicious_expelled=[0] * 12 + [18] * 4 + [20] * 4)
    assert late.rounds_to(0.9) == 3 and late.rounds_to(1.0) == 7
    assert late.expelled_by(2) == 0.0 and late.expelled_by(3) == 0.9 and late.expelled_by(99) == 1.0
    assert result(malicious_expelled=[0] * 20).rounds_to(0.9) is None
    assert result(honest_expelled=[0, 4, *[1] * 18]).false_alarms == 0.05


def test_what_is_known_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Job] = []

    def counted(cell: Cell, part: Part) -> Result:
        ran.append(Job(cell, part))
        return result()

    monkeypatch.setattr(jobs, "measure", counted)
    wanted = jobs_of([TINY, msgspec.structs.replace(TINY, level="signed")], ("fedavg",))
    assert [job.part for job in wanted] == ["covey", "covey", "fedavg"], "baselines know no levels"

    def run() -> int:
        before = len(ran)
        found = run_jobs(wanted, Cache(tmp_path), processes=1, on_result=lambda job, result, known: None)
        assert found.keys() == set(wanted)
        return len(ran) - before

    assert run() == 3 and run() == 0
    next(iter(tmp_path.glob("*.json"))).write_text("{")
    assert run() == 1, "a damaged file counts for nothing"
    monkeypatch.setitem(jobs._packages, "covey_aggregator.reputation", b"another rule")
    assert run() == 2, "baselines do not depend on the rule"
    monkeypatch.setitem(jobs._packages, "covey_simulator", b"other attacks")
    assert run() == 3


def test_what_results_depend_on_is_known_but_for_how_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Path.read_bytes

    def noted(self: Path) -> bytes:
        read.append(self.name)
        return original(self)

    monkeypatch.setattr(jobs, "_packages", {})
    monkeypatch.setattr(Path, "read_bytes", noted)
    jobs.code_version(Job(TINY, "covey"))
    assert {"measure.py", "grid.py", "attack_kinds.py", "conductor.py", "oddities.py", "book.py", "ring.py"} <= set(
        read
    )
    assert not {"page.py", "charts.py", "goals.py", "service.py"} & set(read)


def test_goals_say_what_is_met_and_what_is_missed() -> None:
    calm, attacked = ("digits", NONE, 0.0), ("digits", "alie", 0.2)
    good = judge(table({calm: result(malicious=0, honest=100, malicious_expelled=[0] * 20), attacked: result()}))
    assert good and all(verdict.met for verdict in good)
    late = judge(table({calm: result(), attacked: result(malicious_expelled=[0] * 15 + [20] * 5)}))
    assert [verdict.goal for verdict in late if not verdict.met] == ["all expelled by round 12"]
    worse = judge(table({calm: result(), attacked: result(accuracy=0.925)}))
    assert [verdict.goal for verdict in worse if not verdict.met] == ["within 1 point of no attack"]
    alarmed = judge(table({calm: result(), attacked: result(honest_expelled=[2] * 20)}))
    assert [verdict.found for verdict in alarmed if not verdict.met] == ["mean 2.0, worst 2 of 80"]
    refused = judge(table({calm: result(honest_excluded=0.02)}))
    assert [verdict.goal for verdict in refused if not verdict.met] == ["at most 1% of honest devices refused a round"]
    door = ("digits", "backdoor x5", 0.2)
    opened = judge(table({calm: result(), door: result(attack_success=0.06)}))
    assert [verdict.goal for verdict in opened if not verdict.met] == ["attack success at most 0.05"]


def test_goals_that_compare_settings() -> None:
    easy, hard = ("digits", "ipm", 0.2), ("real", "ipm", 0.2)
    verdicts = judge(table({easy: result(exposure=5.0), hard: result(exposure=9.0)}))
    assert [v.met for v in verdicts if "twice" in v.goal] == [True]
    verdicts = judge(table({easy: result(exposure=5.0), hard: result(exposure=11.0)}))
    assert [v.met for v in verdicts if "twice" in v.goal] == [False]


def test_every_goal_applies_somewhere_and_open_problems_are_held_to_no_accuracy() -> None:
    places = list(dict.fromkeys(Place(cell.setting, cell.attack, cell.fraction) for cell in full_grid()))
    assert all(any(goal.applies(place) for place in places) for goal in GOALS)
    assert set(FAMILIES) | OPEN_PROBLEMS <= set(ATTACKS)
    for goal in GOALS:
        if "point" in goal.words or goal.words.endswith("round 12"):
            assert not any(goal.applies(place) for place in places if place.attack in OPEN_PROBLEMS)
    assert where(places[0]) == "digits: no attack"


def test_the_page_shows_numbers_beside_colours_and_asks_for_nothing() -> None:
    shown = table({("digits", NONE, 0.0): result(malicious=0), ("digits", "alie", 0.4): result(accuracy=0.8123)})
    page = render(shown, judge(shown), title="<grid>", seconds=60.0, notes=["mind the gap"])
    assert "&lt;grid&gt;" in page and "0.812" in page and "mind the gap" in page and "alie 40%" in page
    assert "://" not in page and "src=" not in page and "<script" not in page
    assert len(re.findall(r"background: hsl", page)) >= 8


def test_the_command_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "QUICK_ROUNDS", 2)
    arguments = ["--quick", "--only", "alie", "--fraction", "0.2", "--processes", "1", "--no-signed"]
    arguments += ["--no-baselines", "--out", str(tmp_path)]
    first = CliRunner().invoke(evaluate, arguments)
    assert first.exit_code == 0, first.output
    assert "[2/2] digits, alie 20%, seed 30: covey, fast" in first.output
    written = json.loads((tmp_path / "evaluate.json").read_text())
    assert {row["cell"]["attack"] for row in written["rows"]} == {"none", "alie"}
    assert written["goals"]
    assert "alie 20%" in (tmp_path / "evaluate.html").read_text()
    again = CliRunner().invoke(evaluate, arguments)
    assert again.exit_code == 0 and "[2/2]" not in again.output
    assert json.loads((tmp_path / "evaluate.json").read_text())["rows"] == written["rows"]
    missed = sum(not goal["met"] for goal in written["goals"])
    assert missed, "two rounds expel nobody"
    strict = CliRunner().invoke(evaluate, [*arguments, "--allow-missed", str(missed - 1)])
    assert strict.exit_code == 1 and f"{missed} goals are missed where {missed - 1} may be" in strict.output
    assert CliRunner().invoke(evaluate, [*arguments, "--allow-missed", str(missed)]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--seeds", "ten"], "--seeds 'ten'"),
        (["--seeds", "14-10"], "names no seed"),
        (["--only", "alien"], "alien"),
        (["--quick", "--setting", "iid"], "--setting"),
    ],
)
def test_bad_flags_are_named(arguments: list[str], names: str) -> None:
    found = CliRunner().invoke(evaluate, arguments)
    assert isinstance(found.exception, ConfigError) and names in str(found.exception)
