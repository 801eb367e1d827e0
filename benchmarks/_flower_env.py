"""A virtual environment for the anchors, made on demand, because their pins clash with Covey's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = Path(__file__).with_name("constraints-flower.txt")
FOLDER = ROOT / ".venv" / "bench-flower"
NEEDED = ("flwr", "scipy")


def flower_python() -> Path | None:
    """Return the interpreter that has Flower, installing it when it is missing; None when that fails."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / "constraints.stamp"
    wanted = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing Flower into {FOLDER.relative_to(ROOT)} (a minute, once)", file=sys.stderr)
    venv.create(FOLDER, with_pip=True, clear=True)
    line = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", CONSTRAINTS, *NEEDED]
    if subprocess.run([str(part) for part in line], check=False).returncode:
        print("Flower could not be installed: its column stays empty", file=sys.stderr)
        return None
    stamp.write_text(wanted)
    return python
