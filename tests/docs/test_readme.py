"""Every command in the README is run, in its order, as a reader would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from covey_simulator.broker import RunningBroker

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
OWN_DATA = [block for block in BLOCKS if not block.startswith("./run ")]
ENVIRONMENT = {**os.environ, "VIRTUAL_ENV_DISABLE_PROMPT": "1"}


def run(script: str, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_all_blocks_are_covered() -> None:
    commands = [block.strip() for block in BLOCKS if block.startswith("./run ")]
    assert commands == ["./run demo", "./run test"]
    assert len(OWN_DATA) == 3


def test_demo_runs(tmp_path: Path) -> None:
    """The README's first command, with fewer devices and rounds."""
    done = run(f"./run demo --headless --devices 12 --rounds 2 --out {tmp_path}/out", ROOT, 110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_test_command_runs() -> None:
    """The README's second command; with an argument that keeps it from running this test again."""
    done = run("./run test --version", ROOT, 110)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seconds", [100])
def test_own_data(mosquitto: RunningBroker, tmp_path: Path, seconds: float) -> None:
    """The section on one's own data, on a broker of its own port; afterwards everything is stopped by its pid."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    script = "\n".join(OWN_DATA).replace("127.0.0.1:1883", f"{mosquitto.host}:{mosquitto.port}")
    # Background processes must not hold the pipes open that subprocess waits on.
    script = script.replace("covey serve home &", "covey serve home >serve.log 2>&1 &")
    script = script.replace("covey-agent run --home agent-$i &", "covey-agent run --home agent-$i >agent-$i.log 2>&1 &")
    stop = "\ntrap 'for f in *.pid; do kill $(cat $f) 2>/dev/null || true; done; wait' EXIT\n"
    first, rest = script.split("\n", 1)
    done = run(first + stop + rest, tmp_path, seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digits: done" in done.stdout
