"""How devices stand, as the ``covey`` command shows it: from the database alone, whether the service runs or not."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from covey_aggregator.audit import AuditLog
from covey_aggregator.desk import Orders
from covey_aggregator.evidence_log import EvidenceLine, EvidenceLog
from covey_aggregator.reputation import Standing
from covey_aggregator.reputations import Reputations
from covey_aggregator.store import Store

_UNKNOWN = "-"
_NOTABLE = 0.05


class DeskView:
    """Reads reputations and what was written down about them.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._books = Reputations(store)
        self._orders = Orders(store)
        self._proofs = {row.device: row for row in store.kept_proofs()}

    def standing(self, name: str) -> Standing | None:
        """Return how a device stands; None where it was in no group yet."""
        book = self._books.book(name)
        return book.standing(name) if book is not None else None

    def brief(self, name: str) -> tuple[str, float | None]:
        """Return a device's state and score for a list."""
        standing = self.standing(name)
        return (str(standing.state), standing.score) if standing is not None else (_UNKNOWN, None)

    def details(self, name: str) -> dict[str, Any]:
        """Return everything about a device's reputation, as JSON shows it."""
        standing = self.standing(name)
        waiting = [f"{order.what}: {order.reason}" for order in self._orders.waiting(name)]
        found: dict[str, Any] = {"state": _UNKNOWN}
        if standing is not None:
            found = {
                "state": str(standing.state),
                "score": round(standing.score, 3),
                "evidence": round(standing.evidence, 3),
                "parts": {part: round(value, 3) for part, value in msgspec.to_builtins(standing.parts).items()},
                "liveness": round(standing.liveness, 3),
                "words": standing.words,
            }
        if name in self._proofs:
            found["proof"] = self._proofs[name].id
        if waiting:
            found["waiting"] = waiting
        return found

    def history(self, name: str) -> dict[str, Any]:
        """Return a device's evidence, round by round, and what was decided about it, as JSON shows them."""
        return {
            "evidence": [_rounded(line) for line in EvidenceLog(self._store).of(name)],
            "decisions": [
                {"id": entry.id, "at": entry.at, "kind": entry.kind, "text": entry.text, "data": entry.data}
                for entry in AuditLog(self._store).entries(name)
            ],
        }

    def history_lines(self, name: str) -> list[str]:
        """Return the same for people, oldest first."""
        lines = [
            (line.at, f"{line.task} {line.round}.{line.attempt}".ljust(20) + _in_words(line))
            for line in EvidenceLog(self._store).of(name)
        ]
        lines += [(entry.at, f"{entry.kind}: {entry.text}") for entry in AuditLog(self._store).entries(name)]
        return [f"{_when(at)}  {text}" for at, text in sorted(lines, key=lambda entry: entry[0])]


def _rounded(line: EvidenceLine) -> dict[str, Any]:
    found = msgspec.to_builtins(line)
    found |= {name: round(found[name], 3) for name in ("evidence", "change", "score")}
    found["parts"] = {part: round(value, 3) for part, value in found["parts"].items()}
    return dict(found)


def _in_words(line: EvidenceLine) -> str:
    parts = {part: value for part, value in msgspec.to_builtins(line.parts).items() if abs(value) >= _NOTABLE}
    shown = ", ".join(f"{part} {value:+.2f}" for part, value in parts.items()) or "nothing of note"
    summed = "summed" if line.accepted else "left out"
    moved = f"  {line.before} -> {line.after}" if line.before != line.after else ""
    return f"{line.change:+.2f} to {line.evidence:.2f}  score {line.score:.2f}  {summed}  {shown}{moved}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
