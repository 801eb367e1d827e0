"""The evidence log: for each device, what every attested round said of it, kept for a bounded number of rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from covey_aggregator.reputation import Parts
from covey_aggregator.store import Store

KEPT = 200
"""Lines that are kept of one device; older ones are dropped."""
_FIELDS = "at, device, task, round, attempt, accepted, before, after, event, evidence, change, score, parts"


class EvidenceLine(msgspec.Struct, frozen=True, kw_only=True):
    """What one round meant for one device.

    Attributes:
        at: Unix seconds.
        device: Who.
        task, round, attempt: Where.
        accepted: Whether its update was summed.
        before, after: Its state.
        event: What moved it, or nothing.
        evidence: What stood against it afterwards.
        change: What the round added or took back.
        score: Its reputation afterwards, from 0 to 1.
        parts: Where the change comes from.
    """

    at: float
    device: str
    task: str
    round: int
    attempt: int
    accepted: bool
    before: str
    after: str
    event: str
    evidence: float
    change: float
    score: float
    parts: Parts


class EvidenceLog:
    """The log in the database.

    Args:
        store: Where it stands.
        wall_clock: Unix seconds.
        kept: Lines that are kept of one device.
    """

    def __init__(self, store: Store, wall_clock: Callable[[], float] = time.time, kept: int = KEPT) -> None:
        self._store, self._wall, self._kept = store, wall_clock, kept

    def note(self, lines: Iterable[EvidenceLine]) -> None:
        """Add a round's lines and drop those that are too old."""
        rows = [_row(line) for line in lines]
        with self._store.together():
            for row in rows:
                self._store.change(f"INSERT INTO evidence ({_FIELDS}) VALUES ({', '.join('?' * 13)})", *row)  # noqa: S608
            for device in {row[1] for row in rows}:
                self._store.change(
                    "DELETE FROM evidence WHERE device = ?1 AND id <= ("
                    "SELECT id FROM evidence WHERE device = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                    *(device, self._kept),
                )

    def of(self, device: str, limit: int = KEPT) -> list[EvidenceLine]:
        """Return a device's newest lines, oldest first."""
        rows = self._store.rows(
            f"SELECT {_FIELDS} FROM evidence WHERE device = ? ORDER BY id DESC LIMIT ?",  # noqa: S608
            *(device, limit),
        )
        return [_line(row) for row in reversed(rows)]

    def rename(self, old: str, new: str) -> None:
        """Let a device that came back under another name keep its lines."""
        self._store.change("UPDATE evidence SET device = ? WHERE device = ?", new, old)

    def forget(self, device: str) -> None:
        """Erase a device's lines."""
        self._store.change("DELETE FROM evidence WHERE device = ?", device)

    def now(self) -> float:
        """Return Unix seconds."""
        return self._wall()


def _row(line: EvidenceLine) -> tuple[Any, ...]:
    values = [getattr(line, name) for name in _FIELDS.split(", ")]
    return (*values[:-1], json.dumps(msgspec.to_builtins(line.parts)))


def _line(row: tuple[Any, ...]) -> EvidenceLine:
    values = dict(zip(_FIELDS.split(", "), row, strict=True))
    parts = msgspec.json.decode(values.pop("parts"), type=Parts)
    return EvidenceLine(**{**values, "accepted": bool(values["accepted"])}, parts=parts)
