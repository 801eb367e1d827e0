"""Alerts: what an operator should hear of within a round, and the book they wait in until they are sent.

An alert is noted in the same transaction as its cause. From there it goes out on the fleet's ``pub/alert`` topic and to
every webhook, each at its own pace (``webhooks``); nothing in a round waits for any of them. The book is bounded: a
receiver that is away for longer than the book reaches back loses the oldest and is told how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from covey_aggregator.records import RoundRecord
from covey_aggregator.store import Store

KEPT = 1000
_FIELDS = "id, at, kind, device, text, task, round"

QUARANTINED, BANNED, SECOND_KEY = "quarantined", "banned", "second-key"
FLAGGED, SYBILS, ACCURACY = "flagged-round", "sybil-wave", "accuracy-fell"
FLOOD = "flood"
KINDS = {
    QUARANTINED: "a device came into quarantine, by its evidence or by the operator's word",
    BANNED: "a device is proven to have lied, and never comes back",
    SECOND_KEY: "a token, or a device's name, was shown with another key than before",
    FLAGGED: "more groups may be spoilt than the rule across groups withstands; the round took a short step",
    SYBILS: "many devices joined at once, or newcomers send copies of each other's updates",
    ACCURACY: "the model's accuracy fell",
    FLOOD: "a device sends more than its budget, and what is beyond it is dropped",
}
"""Every kind of alert, and what it means."""

_REPEAT_SECONDS = 3600.0
_SAME_AN_HOUR = 20
_BEST_OF = 5
_JOINED_AT_LEAST = 8


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert.

    Attributes:
        id: Its number, which never repeats.
        at: Unix seconds.
        kind: One of ``KINDS``.
        device: Whom it is about, or nobody.
        text: In words.
        task, round: Where it comes from; empty and 0 outside rounds.
    """

    id: int
    at: float
    kind: str
    device: str
    text: str
    task: str
    round: int


class AlertBook:
    """The book in the database.

    Args:
        store: Where it stands.
        wall_clock: Unix seconds.
        kept: Alerts that are kept.
    """

    def __init__(self, store: Store, wall_clock: Callable[[], float] = time.time, kept: int = KEPT) -> None:
        self._store, self._wall, self._kept = store, wall_clock, kept

    def ring(self, kind: str, text: str, *, device: str = "", task: str = "", round_: int = 0) -> None:
        """Note an alert; what is in it is in the class of that name.

        Raises:
            ValueError: There is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"no kind of alert is called {kind!r}")
        with self._store.together():
            self._store.change(
                "INSERT INTO alerts (at, kind, device, text, task, round) VALUES (?, ?, ?, ?, ?, ?)",
                *(float(self._wall()), kind, device, text, task, round_),
            )
            self._store.change(
                "DELETE FROM alerts WHERE id <= (SELECT id FROM alerts ORDER BY id DESC LIMIT 1 OFFSET ?)", self._kept
            )

    def second_key(self, device: str, text: str) -> bool:
        """Ring because of a second key, unless that was done a while ago: whoever has one can show it again and again.

        Returns:
            Whether the alert is new.
        """
        return self._ring_now_and_then(SECOND_KEY, device, text)

    def flood(self, device: str, text: str) -> bool:
        """Ring because a device floods, unless that was done a while ago; tell whether the alert is new."""
        return self._ring_now_and_then(FLOOD, device, text)

    def _ring_now_and_then(self, kind: str, device: str, text: str) -> bool:
        since = self._wall() - _REPEAT_SECONDS
        rung = self._store.rows("SELECT device FROM alerts WHERE kind = ? AND at > ?", kind, since)
        if len(rung) >= _SAME_AN_HOUR or (device,) in rung:
            return False
        self.ring(kind, text, device=device)
        return True

    def after(self, number: int, limit: int = 100) -> list[Alert]:
        """Return the alerts behind a number, oldest first."""
        rows = self._store.rows(f"SELECT {_FIELDS} FROM alerts WHERE id > ? ORDER BY id LIMIT ?", number, limit)  # noqa: S608
        return [Alert(**dict(zip(_FIELDS.split(", "), row, strict=True))) for row in rows]

    def newest(self, limit: int) -> list[Alert]:
        """Return the newest alerts, oldest first."""
        rows = self._store.rows(f"SELECT {_FIELDS} FROM alerts ORDER BY id DESC LIMIT ?", limit)  # noqa: S608
        return [Alert(**dict(zip(_FIELDS.split(", "), row, strict=True))) for row in reversed(rows)]

    def last(self) -> int:
        """Return the newest alert's number, 0 for none."""
        return int(self._store.rows("SELECT COALESCE(MAX(id), 0) FROM alerts")[0][0])

    # How far a receiver has heard

    def heard(self, receiver: str) -> int:
        """Return the number of the last alert that a receiver has; one who is new has all that went before."""
        kept = self._store.memory(f"alerts/{receiver}")
        if kept:
            return int(kept)
        self.hear(receiver, self.last())
        return self.last()

    def hear(self, receiver: str, number: int) -> None:
        """Remember how far a receiver has heard."""
        self._store.keep(f"alerts/{receiver}", str(number).encode())


def fallen_accuracy(records: Sequence[RoundRecord], drop: float) -> str:
    """Say in words that the last round's model is worse than those just before it, or nothing.

    Args:
        records: A task's rounds, oldest first.
        drop: By how much it has to fall to be worth an alert.
    """
    measured = [(record.round, _accuracy(record)) for record in records]
    known = [(number, accuracy) for number, accuracy in measured if accuracy is not None]
    if len(known) < 2 or drop <= 0 or measured[-1][1] is None:
        return ""
    last = known[-1][1]
    number, best = max(known[-1 - _BEST_OF : -1], key=lambda entry: entry[1])
    if best - last < drop:
        return ""
    return f"the model's accuracy is {last:.3f}; in round {number} it was {best:.3f}"


def _accuracy(record: RoundRecord) -> float | None:
    return record.accuracy if record.accuracy is not None else record.federated_accuracy


def many_joined(joined: int, before: int, share: float) -> str:
    """Say in words that suspiciously many devices joined since the last round, or nothing.

    Args:
        joined: How many.
        before: How many there were.
        share: Of those, how many may join at once.
    """
    if not before or joined < _JOINED_AT_LEAST or joined <= share * before:
        return ""
    return f"{joined} devices joined since the last round, where there were {before}"


def summary(alert: Alert) -> dict[str, Any]:
    """Return an alert as JSON shows it."""
    return {**msgspec.to_builtins(alert), "meaning": KINDS.get(alert.kind, "")}
