"""``./run``: what it says and how it exits, without installing anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.packaging.layout import ROOT

SCRIPT = ROOT / "run"
COMMANDS = ("demo", "test", "lint", "bench", "evaluate", "help")


def run(*arguments: str, script: Path = SCRIPT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script as somebody at a shell would."""
    environment = os.environ | ({} if path is None else {"PATH": path})
    line = [str(script), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout that holds no environment yet, only what the script itself reads."""
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder that holds the few programs which the script may rely on, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "basename", "cat", "cksum", "dirname", "id", "rm", "tr"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def fake_python(tools: Path, script: str) -> None:
    python = tools / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in\n{script}\nesac\n')
    python.chmod(0o755)


@pytest.mark.parametrize("shell", [name for name in ("sh", "dash", "bash") if shutil.which(name)])
def test_it_is_plain_shell(shell: str) -> None:
    assert subprocess.run([shell, "-n", str(SCRIPT)], check=False).returncode == 0


def test_help_names_every_command_and_only_those() -> None:
    done = run("help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert tuple(listed) == COMMANDS


def test_without_a_command_help_goes_to_stderr() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: ./run COMMAND" in done.stderr


@pytest.mark.parametrize("command", ["launch", "demo2", "--version"])
def test_an_unknown_command_is_refused(command: str) -> None:
    done = run(command)
    assert done.returncode == 2
    assert f"unknown command '{command}'" in done.stderr


def test_bench_lists_what_there_is(checkout: Path) -> None:
    (checkout / "benchmarks").mkdir()
    for name in ("mask_speed.py", "upload.py", "_common.py", "__init__.py"):
        (checkout / "benchmarks" / name).touch()
    done = run("bench", script=checkout / "run")
    assert done.returncode == 2
    assert done.stderr.split() == ["run:", "benchmarks:", "mask-speed", "upload"]


@pytest.mark.parametrize("name", ["absent", "../run", "_common", "-", "a b", "benchmarks/upload"])
def test_bench_refuses_what_is_not_a_benchmark(checkout: Path, name: str) -> None:
    (checkout / "benchmarks").mkdir()
    for file in ("_common.py", "upload.py"):
        (checkout / "benchmarks" / file).touch()
    done = run("bench", name, script=checkout / "run")
    assert done.returncode == 2
    assert f"no benchmark '{name}'" in done.stderr
    assert "benchmarks: upload" in done.stderr


def test_an_old_python_is_named(checkout: Path, tools: Path) -> None:
    fake_python(tools, "*version_info*) exit 1 ;;\n--version) echo Python 3.9.2 ;;")
    done = run("demo", script=checkout / "run", path=str(tools))
    assert done.returncode == 1
    assert "needs python3 3.11 or newer; found: Python 3.9.2" in done.stderr


def test_a_missing_venv_module_names_the_package(checkout: Path, tools: Path) -> None:
    fake_python(tools, "*ensurepip*) exit 1 ;;")
    done = run("demo", script=checkout / "run", path=str(tools))
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def stamp(checkout: Path, extra: str) -> None:
    """Pretend that ``.venv`` was installed from the files as they are now; its python exits with 7."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text('#!/bin/sh\necho "python $*"\nexit 7\n')
    (folder / "python").chmod(0o755)
    inputs = b"".join((checkout / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    sums = subprocess.run(["cksum"], input=inputs, capture_output=True, check=True).stdout.decode().strip()
    (checkout / ".venv" / f"covey-{extra}.stamp").write_text(f"{extra} {sums} {checkout}\n")


@pytest.mark.parametrize("extra", ["simulator", "dev"])
def test_a_fresh_environment_is_used_as_it_is_and_exit_codes_pass_through(checkout: Path, extra: str) -> None:
    stamp(checkout, extra)
    done = run("demo", "--out", "a b", script=checkout / "run")
    assert (done.returncode, done.stdout) == (7, "python -m covey_simulator.demo --out a b\n")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_are_installed_again(checkout: Path, tools: Path, name: str) -> None:
    stamp(checkout, "simulator")
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    done = run("demo", script=checkout / "run", path=str(tools))
    assert done.returncode == 1
    assert "needs python3" in done.stderr  # it looked for one, because .venv no longer counts


def test_lint_stops_at_the_first_failure(checkout: Path) -> None:
    stamp(checkout, "dev")
    done = run("lint", script=checkout / "run")
    assert (done.returncode, done.stdout) == (7, "python -m ruff check .\n")
