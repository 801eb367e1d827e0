"""Virtual environments for systems that Covey is compared with, made on demand, because their pins clash with ours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def anchor_python(name: str, constraints: Path, *needed: str) -> Path | None:
    """Return the interpreter of ``.venv/bench-NAME``, made when it is missing; None when that fails.

    Args:
        name: Of the environment.
        constraints: What pins all that is installed; the environment is made anew when the file has changed.
        needed: What to install.
    """
    folder = ROOT / ".venv" / f"bench-{name}"
    python, stamp = folder / "bin" / "python", folder / "constraints.stamp"
    wanted = hashlib.sha256(constraints.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {' and '.join(needed)} into {folder.relative_to(ROOT)} (a minute, once)", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    line = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", constraints, *needed]
    if subprocess.run([str(part) for part in line], check=False).returncode:
        print(f"{needed[0]} could not be installed", file=sys.stderr)
        return None
    stamp.write_text(wanted)
    return python
