"""covey_agent.cli: the command as an owner meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.enrolled import bundle_file, enrolled, provision
from tests.protocol.rig import signing_key

from covey_agent import cli
from covey_protocol import __version__

Call = Callable[..., tuple[int, str, str]]
COMMAND = Path(sys.executable).with_name("covey-agent")


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """Run the entry point in this process; return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["covey-agent", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
        sys.exit(0)
    code = caught.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.delenv("COVEY_AGENT_HOME", raising=False)
    return lambda *words: call(capsys, monkeypatch, *words)


def test_the_installed_command_enrols_and_refuses(tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)

    bundle, home = bundle_file(tmp_path), tmp_path / "home"
    done = run("enrol", bundle, "--home", home, "--data", "/srv/x.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pi-0 is enrolled in fleet meadow" in done.stdout
    assert "data: /srv/x.npz" in done.stdout
    assert f"covey-agent run --home {home}" in done.stdout
    assert not bundle.exists()
    refused = run("run", "--home", tmp_path / "nowhere")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("covey-agent: ")
    assert "not enrolled" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["enrol", "run", "status"])
def test_every_command_has_help_with_an_example(agent: Call, command: str) -> None:
    for flag in ("--help", "-h"):
        code, out, _ = agent(command, flag)
        assert code == 0
        assert "Example:" in out
        assert f"covey-agent {command} " in out
        assert "COVEY_AGENT_HOME" in out


def test_help_and_version(agent: Call) -> None:
    code, out, _ = agent("--help")
    assert code == 0
    assert all(command in out for command in ("enrol", "run", "status"))
    code, out, _ = agent("--version")
    assert (code, out.strip()) == (0, f"covey-agent, version {__version__}")


def test_wrong_usage_exits_2(agent: Call, tmp_path: Path) -> None:
    for words in (["fly"], ["enrol", tmp_path / "missing"], ["status", "--colour"]):
        code, out, err = agent(*words)
        assert (code, out) == (2, "")
        assert "Error" in err


def test_errors_are_one_line_and_their_kind_is_the_exit_code(agent: Call, tmp_path: Path) -> None:
    home = enrolled(tmp_path).path
    other = bundle_file(tmp_path, provision("pi-1"))
    forged = bundle_file(tmp_path, provision(operator=signing_key("x"), operator_key=bytes(32)), "forged.bundle")
    (tmp_path / "words").write_text("hello")
    (tmp_path / "file").write_text("in the way")
    expired = bundle_file(tmp_path, provision(not_after=1), "expired.bundle")
    for words, code, part in (
        (["status", "--home", tmp_path / "nowhere"], 2, "not enrolled"),
        (["enrol", other, "--home", home], 2, "belongs to 'pi-0'"),
        (["enrol", forged, "--home", tmp_path / "new"], 1, "does not verify"),
        (["enrol", expired, "--home", tmp_path / "new"], 1, "expired"),
        (["enrol", tmp_path / "words", "--home", tmp_path / "new"], 1, "not a provisioning bundle"),
        (["enrol", other, "--home", tmp_path / "file" / "new"], 1, "file"),
    ):
        got, out, err = agent(*words)
        assert (got, out) == (code, ""), err
        assert err.startswith("covey-agent: ")
        assert part in err
        assert err.count("\n") == 1
        assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "part"),
    [("a: [", "not readable as YAML"), ("threads: x", "$.threads"), ("profile: pi-99", "pi-99"), ("data: 1", "$.data")],
)
def test_settings_that_cannot_work_stop_a_run_in_one_line(
    agent: Call, tmp_path: Path, settings: str, part: str
) -> None:
    home = enrolled(tmp_path).path
    (home / "agent.yaml").write_text(settings)
    code, _, err = agent("run", "--home", home)
    assert code == 2
    assert part in err
    assert err.count("\n") == 1


def test_an_error_of_many_lines_is_said_in_one(agent: Call, tmp_path: Path) -> None:
    home, profile = enrolled(tmp_path).path, tmp_path / "mine.yaml"
    profile.write_text("name: [")
    (home / "agent.yaml").write_text(f"profile: {profile}")
    code, _, err = agent("run", "--home", home)
    assert code == 2
    assert f"{profile}: not YAML" in err
    assert err.count("\n") == 1


def test_the_environment_names_the_home(agent: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVEY_AGENT_HOME", str(enrolled(tmp_path).path))
    code, out, _ = agent("status")
    assert (code, out) == (1, "pi-0 of fleet meadow: not running\n")


def write_status(home: Path, **fields: object) -> None:
    status = {
        "pid": os.getpid(),
        "epoch": 3,
        "group": "3-s-0",
        "holds": "not taking part in 'digits': batches of 4096; profile pi-4 allows 128",
        "tasks": {"digits": {"round": 7, "stage": "masked", "rounds_closed": 6, "model": "abcdef"}},
        "exposure": {"sets": 12, "groupings": 2, "max": 40, "by_grouping": {"2-s-0": 4, "3-s-0": 8}},
        "sketches": {"numbers": 128, "budget": 6400},
        "refusals": {"signature": 2},
    }
    (home / "status.json").write_text(json.dumps({**status, **fields}))


def test_status_in_words(agent: Call, tmp_path: Path) -> None:
    home = enrolled(tmp_path).path
    write_status(home)
    code, out, _ = agent("status", "--home", home)
    assert code == 0
    for part in (
        "pi-0 of fleet meadow: running",
        "group 3-s-0 (epoch 3)",
        "held back: not taking part in 'digits': batches of 4096",
        "task digits: round 7, masked, 6 rounds closed, model abcdef",
        "exposure: 12 different sums in 2 groupings, of at most 40",
        "sketches: 128 numbers told, of at most 6400",
        "refused 2 messages: signature",
    ):
        assert part in out


def test_status_as_json(agent: Call, tmp_path: Path) -> None:
    home = enrolled(tmp_path).path
    write_status(home)
    code, out, _ = agent("status", "--json", "--home", home)
    report = json.loads(out)
    assert code == 0
    assert (report["device"], report["fleet"], report["running"]) == ("pi-0", "meadow", True)
    assert report["tasks"]["digits"]["round"] == 7


@pytest.mark.parametrize("pid", [2**22 + 1, None, "7", 0])
def test_a_status_whose_process_is_gone_is_not_running(agent: Call, tmp_path: Path, pid: object) -> None:
    home = enrolled(tmp_path).path
    write_status(home, pid=pid)
    code, out, _ = agent("status", "--json", "--home", home)
    assert code == 1
    assert json.loads(out)["running"] is False


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": 1.5, "tasks": null}'])
def test_a_damaged_status_is_no_status(agent: Call, tmp_path: Path, content: str) -> None:
    home = enrolled(tmp_path).path
    (home / "status.json").write_text(content)
    code, out, err = agent("status", "--home", home)
    assert (code, out, err) == (1, "pi-0 of fleet meadow: not running\n", "")
