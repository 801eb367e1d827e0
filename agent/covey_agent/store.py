"""The device's database: marks that must never be forgotten, and the outbox, in one file.

``carry`` makes a machine's effects durable in one transaction: what a message has spent is on disk together with the
message, before a byte of it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from covey_agent.outbox import Outbox
from covey_protocol.chunks import PIECE_OVERHEAD, split
from covey_protocol.effects import Effect, Remember, Send

_SCHEMA = "CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, value BLOB NOT NULL)"

TopicOf = Callable[[Send, bytes], str]


class Store:
    """Marks and outbox of one device.

    Args:
        path: The database file, or ``:memory:`` in simulations.
    """

    def __init__(self, path: Path | str) -> None:
        self.outbox = Outbox(path)
        with self.outbox.transaction() as cursor:
            cursor.execute(_SCHEMA)

    def marks(self) -> dict[str, bytes]:
        """Return everything that was remembered."""
        with self.outbox.transaction() as cursor:
            return {key: bytes(value) for key, value in cursor.execute("SELECT key, value FROM marks")}

    def carry(self, effects: Iterable[Effect], *, topic_of: TopicOf, largest: int, tag: str = "") -> None:
        """Make marks and messages durable, all or none, in order.

        Args:
            effects: ``Remember`` and ``Send``; others are not for the store and are passed over.
            topic_of: Gives a message's topic; for a piece of a transfer it is also given the blob's digest.
            largest: The largest payload that one message may carry; transfers go in pieces of that size.
            tag: Marks the messages, so that those of a closed round can be dropped.
        """
        with self.outbox.transaction() as cursor:
            for effect in effects:
                if isinstance(effect, Remember):
                    if effect.value:
                        cursor.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (effect.key, effect.value))
                    else:
                        cursor.execute("DELETE FROM marks WHERE key = ?", (effect.key,))
                elif isinstance(effect, Send):
                    if not effect.transfer:
                        self.outbox.put_in(cursor, topic_of(effect, b""), effect.data, tag=tag)
                        continue
                    for piece in split(effect.data, largest - PIECE_OVERHEAD):
                        topic = topic_of(effect, piece.digest)
                        self.outbox.put_in(cursor, topic, piece.encode(), tag=tag)

    def close(self) -> None:
        """Close the database."""
        self.outbox.close()
