"""What the operator orders about a device's reputation: quarantine it, or release it.

An order is a line in the database, which the ``covey`` command adds and the running aggregator takes up within a
second, or the next one that starts. It acts from the next round on. Neither leads out of a ban: a proof does not become
less true. Who has mended a banned device revokes it, and enrols it under a new name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from covey_aggregator.chronicle import Chronicle
from covey_aggregator.reputation import Reputation, State
from covey_aggregator.store import Store
from covey_protocol.effects import Note
from covey_protocol.errors import ConfigError, StateError

QUARANTINE: Literal["quarantine"] = "quarantine"
RELEASE: Literal["release"] = "release"
What = Literal["quarantine", "release"]
_DONE = {QUARANTINE: "quarantined", RELEASE: "released"}
_RELEASED_FROM = (State.SUSPECT, State.QUARANTINED)
REASON_MAX = 400


class Books(Protocol):
    """Where reputations are kept: one book for each shard."""

    def book(self, name: str) -> Reputation | None:
        """Return the book that a device is in."""

    def keep(self) -> None:
        """Store the books."""


@dataclass(frozen=True)
class Order:
    """One order: who is to be what and why, and how it went."""

    id: int
    at: float
    device: str
    what: str
    reason: str
    done: bool
    refused: bool
    answer: str


_FIELDS = "id, at, device, what, reason, done, refused, answer"


class Orders:
    """The orders in the database.

    Args:
        store: Where they stand.
        wall_clock: Unix seconds.
    """

    def __init__(self, store: Store, wall_clock: Callable[[], float] = time.time) -> None:
        self._store, self._wall = store, wall_clock

    def add(self, device: str, what: What, reason: str) -> int:
        """Add an order and return its number.

        Raises:
            ConfigError: The reason is missing or too long.
        """
        if not reason.strip() or len(reason) > REASON_MAX:
            raise ConfigError(f"--reason: say why, in at most {REASON_MAX} characters")
        with self._store.together():
            self._store.change(
                "INSERT INTO orders (at, device, what, reason) VALUES (?, ?, ?, ?)",
                *(float(self._wall()), device, what, reason.strip()),
            )
            return int(self._store.rows("SELECT MAX(id) FROM orders")[0][0])

    def order(self, number: int) -> Order:
        """Return one order."""
        (row,) = self._store.rows(f"SELECT {_FIELDS} FROM orders WHERE id = ?", number)  # noqa: S608
        return _order(row)

    def waiting(self, device: str = "") -> list[Order]:
        """Return the orders that nobody has taken up yet, those about one device if it is given."""
        rows = self._store.rows(
            f"SELECT {_FIELDS} FROM orders WHERE done = 0 AND ? IN ('', device) ORDER BY id",  # noqa: S608
            device,
        )
        return [_order(row) for row in rows]

    def answer(self, number: int, text: str, *, refused: bool) -> None:
        """Note how an order went."""
        self._store.change("UPDATE orders SET done = 1, refused = ?, answer = ? WHERE id = ?", refused, text, number)


def _order(row: tuple[int, float, str, str, str, int, int, str]) -> Order:
    return Order(*row[:5], done=bool(row[5]), refused=bool(row[6]), answer=row[7])


def objection(state: State | None, device: str, what: str) -> str:
    """Say in words why an order is not possible in a device's state, or nothing.

    Args:
        state: Its state; None for a device that was in no group yet.
        device: Its name.
        what: The order.
    """
    if state is None:
        return (
            f"{device} was in no group yet, so there is no reputation to change; "
            f"to keep it out for good use `covey device revoke`"
        )
    if state is State.BANNED:
        return (
            f"{device} is banned: it is proven to have lied, and a proof does not become less true. If it was mended, "
            f"revoke it and enrol it under a new name"
        )
    if what == RELEASE and state not in _RELEASED_FROM:
        return f"{device} is {state}: there is nothing to release it from"
    return ""


class Desk:
    """Carries out orders.

    Args:
        store: Where orders stand.
        books: The reputations.
        chronicle: Where it is written down.
    """

    def __init__(self, store: Store, books: Books, chronicle: Chronicle) -> None:
        self._store, self._books, self._chronicle = store, books, chronicle
        self._orders = Orders(store)

    def poll(self) -> list[Note]:
        """Carry out what waits; every order is answered in the transaction in which it acts."""
        waiting = self._orders.waiting()
        if not waiting:
            return []
        with self._store.together():
            notes = [self._carry_out(order) for order in waiting]
            self._books.keep()
        return notes

    def _carry_out(self, order: Order) -> Note:
        book = self._books.book(order.device)
        before = book.standing(order.device).state if book is not None else None
        refusal = objection(before, order.device, order.what)
        if book is None or before is None or refusal:
            self._orders.answer(order.id, refusal, refused=True)
            return Note("order-refused", f"{order.what} of {order.device}: {refusal}")
        try:
            act = book.quarantine if order.what == QUARANTINE else book.release
            act(order.device, f"by the operator: {order.reason}")
        except StateError as error:
            self._orders.answer(order.id, str(error), refused=True)
            return Note("order-refused", f"{order.what} of {order.device}: {error}")
        after = book.standing(order.device).state
        text = f"{order.device} is {_DONE[order.what]}: it was {before} and is {after}"
        self._orders.answer(order.id, text, refused=False)
        self._chronicle.ordered(_DONE[order.what], order.device, order.reason, str(before), str(after))
        return Note(_DONE[order.what], f"{text}; {order.reason}")
