"""The agent's status for people and scripts: one small JSON file, replaced in one step."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("covey.agent")
_INTERVAL = 1.0


class StatusFile:
    """Writes a snapshot when it has changed, at most once a second.

    It is not flushed to the card: after a power cut an old status, or none, does no harm.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._written_at = float("-inf")
        self._last: dict[str, Any] = {}
        self._failed = False

    def write(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        """Write the snapshot if it is time."""
        now = self._clock()
        if now - self._written_at < _INTERVAL:
            return
        self._written_at = now
        current = snapshot()
        if current == self._last:
            return
        beside = self._path.with_name(f".{self._path.name}.new")
        try:
            beside.write_text(json.dumps({**current, "written": int(time.time())}, indent=2), encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:  # a full card must not end the agent
            log.log(logging.DEBUG if self._failed else logging.ERROR, "%s: %s", self._path, error)
            self._failed = True
        else:
            self._last, self._failed = current, False


def read_status(path: Path) -> dict[str, Any] | None:
    """Return the last snapshot, or None if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
