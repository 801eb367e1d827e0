"""The command ``covey``: what it prints, what it exits with, and how it says no."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from tests.aggregator.console import Run
from tests.aggregator.fleet import Device, Fleet, tiny_bundle

from covey_aggregator.cli import cli
from covey_aggregator.home import DATABASE_FILE, DELEGATION_FILE, POLICY_FILE, SETTINGS_FILE, open_server
from covey_aggregator.operator import open_operator
from covey_aggregator.registry import Registry
from covey_aggregator.store import Store
from covey_protocol import provisioning
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.revocation import verify_head

OURS = ("operator", "init", "serve", "events", "device", "privacy", "task")
TASK = {"name": "digits", "bundle": "tiny.bundle", "rounds": 2, "clip": 1.0}


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return all commands of this package."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            if path or name in OURS:
                yield from leaves(inner, (*path, name))
    else:
        yield path


@pytest.fixture
def home(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server home in a folder that is also the working directory, beside a task and its bundle."""
    monkeypatch.chdir(tmp_path)
    assert run("operator", "init", "op", "--fleet", "meadow").code == 0
    assert run("init", "home", "--operator", "op", "--broker", "10.0.0.1:1884").code == 0
    (tmp_path / "tiny.bundle").write_bytes(tiny_bundle().encode())
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    return tmp_path / "home"


def enrolled(home: Path, operator: Path) -> None:
    """Let a device show its identity to the store, as the service would."""
    server, store = open_server(home), Store(home / DATABASE_FILE)
    device = Device("pi-kitchen", open_operator(operator), server)
    Registry(server.trust({}), store).state("pi-kitchen", device.state(), time.time() - 90)
    store.close()


@pytest.mark.parametrize("path", [(), *leaves(cli)], ids=lambda path: " ".join(path) or "covey")
def test_help_has_an_example_of_the_command_itself(run: Run, path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        answer = run(*path, option)
        assert answer.code == 0
        assert "Example" in answer.out
        assert f"covey {' '.join(path)}".strip() in answer.out.split("Example", 1)[1]


def test_every_command_of_this_package_is_there() -> None:
    assert {" ".join(path) for path in leaves(cli)} >= {
        *("operator init", "init", "serve", "events", "device add", "device revoke", "device list", "device show"),
        *("task start", "task status", "task stop"),
    }


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("covey, version ")


def test_from_nothing_to_a_queued_task(home: Path, run: Run) -> None:
    assert "public key" in run("operator", "init", "op", "--fleet", "meadow").out
    assert yaml.safe_load((home / SETTINGS_FILE).read_text())["broker"]["port"] == 1884
    assert "no devices yet" in run("device", "list", "--home", home).out
    added = run("device", "add", "pi-kitchen", "--home", home)
    assert (added.code, str(home / "bundles" / "pi-kitchen.bundle") in added.out) == (0, True)
    assert "covey-agent enrol" in added.out
    assert "pi-kitchen" in run("device", "list", "--home", home).out
    assert "no tasks yet" in run("task", "status", "--home", home).out
    started = run("task", "start", "task.yaml", "--home", home)
    assert (started.code, "task digits is queued" in started.out) == (0, True)
    assert "digits               queued, round 0 of 2, model none" in run("task", "status", "--home", home).out
    assert run("task", "stop", "digits", "--home", home).code == 0
    assert "stopped (stopped by the operator)" in run("task", "status", "digits", "--home", home).out
    assert "has ended already: stopped" in run("task", "stop", "digits", "--home", home).out
    assert "digits: stopped: stopped by the operator" in run("task", "status", "digits", "--home", home, "--watch").out


def test_bundles_are_private_one_a_device_and_good_for_their_time(home: Path, run: Run, tmp_path: Path) -> None:
    open_folder = tmp_path / "usb"
    open_folder.mkdir(mode=0o755)
    answer = run("device", "add", "pi", "--count", 3, "--home", home, "--out", open_folder, "--json", "--expires", "2h")
    files = json.loads(answer.out)["bundles"]
    assert len(files) == len(set(files.values())) == 3
    for name, file in files.items():
        assert Path(file).stat().st_mode & 0o777 == 0o600
        bundle = provisioning.decode(Path(file).read_text())
        bundle.check(int(time.time()))
        assert (bundle.device, bundle.broker.host, bundle.broker.port) == (name, "10.0.0.1", 1884)
        with pytest.raises(Exception, match="expired"):
            bundle.check(int(time.time()) + 3 * 3600)
    run("device", "add", "pi-old", "--home", home, "--expires", "never")
    provisioning.decode((home / "bundles" / "pi-old.bundle").read_text()).check(int(time.time()) + 300 * 86400)


def test_devices_in_words_and_as_json(home: Path, run: Run) -> None:
    run("device", "add", "pi-later", "--home", home)
    enrolled(home, Path("op"))
    listed = json.loads(run("device", "list", "--home", home, "--json").out)
    assert [device["name"] for device in listed["devices"]] == ["pi-kitchen"]
    assert listed["invited"] == ["pi-later"]
    words = run("device", "list", "--home", home).out
    assert "pi-kitchen" in words
    assert "1m ago" in words
    shown = json.loads(run("device", "show", "pi-kitchen", "--home", home, "--json").out)
    assert shown["key"] == listed["devices"][0]["key"]
    assert "online" in run("device", "show", "pi-kitchen", "--home", home).out


def test_a_finished_task_in_words_as_json_and_watched(tmp_path: Path, run: Run) -> None:
    fleet = Fleet(tmp_path, 8)
    fleet.start(rounds=2)
    fleet.finish()
    fleet.store.close()
    home = fleet.home.path
    (task,) = json.loads(run("task", "status", "--home", home, "--json").out)
    assert (task["name"], task["status"], task["round"], task["task"]["clip"]) == ("digits", "done", 2, 1.0)
    assert [record["accepted"] for record in task["rounds"]] == [8, 8]
    words = run("task", "status", "digits", "--home", home).out
    assert "round    1.1  accuracy  0.500  groups 2/2  devices 8/8" in words
    watched = run("task", "status", "digits", "--home", home, "--watch").out
    assert watched.endswith("digits: done\n")
    assert watched.count("round") == 2
    lines = [json.loads(line) for line in run("events", home, "--json").out.splitlines()]
    assert {"task", "epoch", "groups", "round"} <= {line["cause"] for line in lines}
    later = run("events", home, "--after", lines[2]["id"]).out.splitlines()
    assert len(later) == len(lines) - 3


def test_the_home_may_come_from_the_environment(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVEY_HOME", str(home))
    assert run("device", "list").code == 0


REFUSED: list[tuple[str, str]] = [
    ("operator init bad --fleet Meadow", "fleet 'Meadow'"),
    ("operator init op --fleet forest", "op: is the operator home of fleet 'meadow'"),
    ("init home2 --operator nowhere", "nowhere: no operator home"),
    ("init home2 --operator op --broker nohost", "--broker 'nohost'"),
    ("init home2 --operator op --broker host:99999", "--broker 'host:99999'"),
    ("init home2 --operator op --broker host:0", "--broker 'host:0'"),
    ("init home --operator other", "home: belongs to fleet 'meadow' of another operator"),
    ("serve nowhere", "nowhere: no server home"),
    ("events nowhere", "nowhere: no server home"),
    ("device list --home nowhere", "nowhere: no server home"),
    ("device add pi --home nowhere", "nowhere: no server home"),
    ("device add Pi --home home", "device 'Pi'"),
    ("device add pi --home home --profile Pi/4", "profile 'Pi/4'"),
    ("device add pi --home home --expires soon", "--expires 'soon'"),
    ("device add pi --home home --expires 0d", "--expires '0d'"),
    ("device add pi --home home --count 0", "--count 0"),
    ("device add pi --home home --operator other", "other: not the operator of home"),
    ("device add pi-kitchen --home home", "already in the fleet: pi-kitchen"),
    ("device show nobody --home home", "there is no device 'nobody'"),
    ("device revoke nobody --home home --reason x", "there is no device 'nobody', and no bundle for it"),
    ("device revoke pi-kitchen --home home --reason x --operator other", "other: not the operator of home"),
    ("device revoke pi-kitchen --home nowhere --reason x", "nowhere: no server home"),
    ("task start task.yaml --home nowhere", "nowhere: no server home"),
    ("task start taken.yaml --home home", "there is a task 'taken' already"),
    ("task start small.yaml --home home", "small.yaml: group_size 4: the policy asks for groups of 5"),
    ("task start tall.yaml --home home", "tall.yaml: group_size 4: the policy asks for groups of 6"),
    ("task start loud.yaml --home home", "loud.yaml: noise of 0: the policy's noise_min is 0.5"),
    ("task start broken.yaml --home home", "broken.yaml: Object contains unknown field `round`"),
    ("task start junk.yaml --home home", "task.yaml: "),
    ("task status nobody --home home", "there is no task 'nobody'"),
    ("task stop nobody --home home", "there is no task 'nobody'"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_errors_are_one_line_that_names_file_or_field(home: Path, run: Run, arguments: str, reason: str) -> None:
    run("operator", "init", "other", "--fleet", "meadow")
    enrolled(home, Path("op"))
    Path("taken.yaml").write_text(yaml.safe_dump({**TASK, "name": "taken"}))
    assert run("task", "start", "taken.yaml", "--home", "home").code == 0
    policies = {"small": Policy(n_min=5), "tall": Policy(t_min=6), "loud": Policy(noise_min=0.5)}
    for name, policy in policies.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**TASK, "name": name, "group_size": 4}))
        if f"{name}.yaml" in arguments:
            (home / POLICY_FILE).write_bytes(sign_policy(policy, open_operator(Path("op")).key, "meadow"))
    Path("broken.yaml").write_text(yaml.safe_dump({**TASK, "round": 3}))
    Path("junk.yaml").write_text(yaml.safe_dump({**TASK, "name": "junk", "bundle": "task.yaml"}))
    answer = run(*arguments.split())
    assert answer.code == 2
    assert reason in answer.line


def test_a_revoked_device_is_shown_as_one(home: Path, run: Run) -> None:
    enrolled(home, Path("op"))
    run("device", "add", "pi-attic", "--home", home)
    run("device", "add", "pi-attic", "--home", home)  # made twice: two tokens
    run("device", "add", "pi-shed", "--home", home)
    answer = run("device", "revoke", "pi-kitchen", "--home", home, "--reason", "left on a train", "--category", "lost")
    assert (answer.code, answer.out) == (0, "pi-kitchen is revoked: list 1 with 1 entries\n")
    again = run("device", "revoke", "pi-kitchen", "--home", home, "--reason", "left on a train")
    assert (again.code, again.out) == (0, "pi-kitchen was revoked before: list 1\n")
    assert run("device", "revoke", "pi-attic", "--home", home, "--reason", "x").out.endswith("list 2 with 3 entries\n")
    lines = run("device", "list", "--home", home).out.splitlines()
    assert {line.split()[0]: line.split()[1] for line in lines} == {
        "pi-kitchen": "revoked",
        "pi-attic": "withdrawn",
        "pi-shed": "invited",
    }
    listed = json.loads(run("device", "list", "--home", home, "--json").out)
    assert [device["status"] for device in listed["devices"]] == ["revoked"]
    assert (listed["invited"], listed["withdrawn"]) == (["pi-shed"], ["pi-attic"])
    shown = json.loads(run("device", "show", "pi-kitchen", "--home", home, "--json").out)
    assert (shown["status"], shown["category"], shown["reason"]) == ("revoked", "lost", "left on a train")
    assert "left on a train" in run("device", "show", "pi-kitchen", "--home", home).out
    assert "pi-kitchen is revoked (lost): left on a train" in run("events", home).out
    assert "already in the fleet" in run("device", "add", "pi-kitchen", "--home", home).err
    run("device", "add", "pi-attic", "--home", home)  # a name that was never used may be given anew
    assert json.loads(run("device", "list", "--home", home, "--json").out)["invited"] == ["pi-attic", "pi-shed"]
    bundle = provisioning.decode((home / "bundles" / "pi-attic.bundle").read_text())
    bundle.check()
    assert verify_head(bundle.revocations, operator_key=bundle.operator_key, fleet="meadow").version == 2


def test_a_revocation_that_was_cut_off_is_finished_by_the_next(home: Path, run: Run) -> None:
    enrolled(home, Path("op"))
    store = Store(home / DATABASE_FILE)
    run("device", "revoke", "pi-kitchen", "--home", home, "--reason", "x")
    store._do("DELETE FROM revocations")  # the operator has signed, and the power went
    answer = run("device", "revoke", "pi-kitchen", "--home", home, "--reason", "x")
    assert answer.out == "pi-kitchen is revoked: list 1 with 1 entries\n"
    assert store.revocations_version() == 1
    store.close()


@pytest.mark.parametrize("command", ["serve home", "events home", "device list --home home", "task status --home home"])
@pytest.mark.parametrize("file", [DELEGATION_FILE, SETTINGS_FILE])
def test_a_damaged_home_is_named_by_every_command(home: Path, run: Run, command: str, file: str) -> None:
    (home / file).write_bytes(b"{damaged")
    answer = run(*command.split())
    assert answer.code == 2
    assert file in answer.line


def test_serve_with_a_missing_password_file_is_one_line(home: Path, run: Run) -> None:
    (home / SETTINGS_FILE).write_text("fleet: meadow\nbroker: {username: me, password_file: gone}\n")
    answer = run("serve", home)
    assert answer.code == 2
    assert "gone: cannot be read" in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_waits_for_its_broker_and_ends_on_a_signal(home: Path, number: signal.Signals) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        (home / SETTINGS_FILE).write_text(f"fleet: meadow\nbroker: {{port: {port}}}\n")
        command = [sys.executable, "-m", "covey_aggregator.cli", "serve", str(home)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = ""
        while "WARNING" not in said:
            said = process.stderr.readline()
            assert said
        assert f"broker 127.0.0.1:{port}: " in said
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in rest) == (0, False)
    assert "stopped" in rest
