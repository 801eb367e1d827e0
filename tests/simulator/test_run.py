"""run.py, fleet.py, cli.py and demo.py: whole scenarios over a real broker, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from covey_simulator.broker import Kind
from covey_simulator.cli import simulate
from covey_simulator.demo import demo
from covey_simulator.live import make_display
from covey_simulator.run import LOG, PAGE, REPORT, run_scenario
from covey_simulator.scenario import demo_scenario, parse_scenario

SMALL = ["--headless", "--devices", "8", "--rounds", "2"]


@pytest.mark.parametrize("broker", ["mosquitto", "amqtt"])
def test_a_fleet_learns_and_reports(tmp_path: Path, broker: Kind) -> None:
    scenario = demo_scenario(devices=8, rounds=2, malicious=0.25, seed=3)
    with make_display(scenario, headless=True) as display:
        report = run_scenario(scenario, tmp_path / "out", display, prefer=broker)
    assert report.verdict.ok, report.verdict
    written = json.loads((tmp_path / "out" / REPORT).read_text())
    assert [record["round"] for record in written["rounds"]] == [1, 2]
    for record in written["rounds"]:
        assert record["participants"] == record["accepted"] + record["rejected"] == 8
        assert 1 <= record["rejected"] <= 2  # in the first rounds there is no history to judge by
        assert 0.3 < record["accuracy"] <= 1
        assert record["bytes_up"] > 8 * 2 * 2410  # two bytes a parameter and device, and what goes with it
        assert set(record["stage_seconds"]) >= {"joining", "sharing", "masking", "signing", "unmasking"}
    assert sum(device["malicious"] for device in written["devices"]) == 2
    assert set(written["baselines"]) == {"undefended", "no_attack"}
    assert written["config"]["seed"] == 3
    page = (tmp_path / "out" / PAGE).read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "round 2 closed" in (tmp_path / "out" / LOG).read_text()


def test_masking_off_is_loud_and_close_to_the_masked_fleet(tmp_path: Path) -> None:
    accuracies = {}
    for masking in ("on", "off"):
        out = tmp_path / masking
        result = CliRunner().invoke(demo, [*SMALL, "--malicious", "0", "--masking", masking, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert ("MASKING IS OFF" in result.output) == (masking == "off")
        accuracies[masking] = json.loads((out / REPORT).read_text())["final_accuracy"]
    # Two rounds of two random training runs: the point is that both learn; ten rounds come within a point.
    assert abs(accuracies["on"] - accuracies["off"]) < 0.15


def test_a_scenario_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("{name: tiny, devices: 6, rounds: 1, local: {steps: 5}, data: {source: breast-cancer}}")
    result = CliRunner().invoke(simulate, [str(path), "--out", str(tmp_path / "out"), "--seed", "9", "--headless"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / REPORT).read_text())["config"]["seed"] == 9


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--devices", "3"], "devices"),
        (["--rounds", "0"], "rounds"),
        (["--malicious", "1.5"], "fraction"),
        (["--attack", "sing-flip"], "attack"),
    ],
)
def test_a_bad_flag_is_named_on_one_line(arguments: list[str], names: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "covey_simulator.demo", "--headless", "--out", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert names in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_aggregator_that_dies_fails_the_run_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "covey_simulator.demo", "--headless", "--devices", "8", "--rounds", "60"]
    with subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round"):
                break
        os.kill(server_of(process.pid), signal.SIGKILL)
        rest = process.stdout.read()
        assert process.wait(60) == 1
    assert "FAILED" in rest and "the aggregator has ended" in rest
    report = json.loads((tmp_path / REPORT).read_text())
    assert not report["verdict"]["ok"]
    assert report["rounds"], "what had been reached is not hidden"
    assert not children(process.pid)


def server_of(parent: int) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in children(parent):
            if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        time.sleep(0.05)
    raise AssertionError("there is no aggregator")


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[1]) == parent:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    "attack",
    [
        {"kind": "alie", "fraction": 0.375},
        {"kind": "unmask-refuser", "inner": "sign-flip", "fraction": 0.125},
    ],
    ids=lambda attack: str(attack["kind"]),
)
def test_attackers_run_the_real_agent(tmp_path: Path, attack: dict[str, Any]) -> None:
    value = {**msgspec.to_builtins(demo_scenario(devices=8, rounds=1)), "attack": attack}
    scenario = parse_scenario(value, origin="test", folder=tmp_path)
    with make_display(scenario, headless=True) as display:
        report = run_scenario(scenario, tmp_path / "out", display, prefer="mosquitto")
    (record,) = report.rounds
    assert (record.participants, record.accepted) == (8, 8)
    assert record.accuracy == pytest.approx(report.baselines["undefended"].rounds[0].accuracy, abs=0.15)
