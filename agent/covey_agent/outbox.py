"""The durable outbox: what a device has promised to send, on disk until the broker has acknowledged it.

paho-mqtt keeps its queue in memory only, and a device may lose power at any instant, so the queue is ours:

- a message is on disk (WAL, ``synchronous=FULL``) before ``put`` returns, and leaves on PUBACK;
- ``put_in`` enqueues inside the caller's own transaction, so that a ledger entry and the message it pays for
  become durable together or not at all;
- deleting is lazy: a deletion that a power cut undoes only means that the message is sent twice, which QoS 1
  allows anyway, and an SD card is spared one flush a message;
- the payload bytes held are bounded; a full outbox refuses instead of filling the card.

Row ids only ever grow, also after deletions, and writers are serialised by SQLite, so ids order the messages.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from covey_agent.files import make_private_file
from covey_protocol.errors import ConfigError, LocalError, StateError

log = logging.getLogger("covey.agent")

MAX_BYTES = 64 << 20
BUSY_SECONDS = 30.0
MEMORY = ":memory:"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    retain INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    tag TEXT NOT NULL,
    size INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_size ON outbox (size);
"""
# The index lets SQLite add up the sizes without walking the payloads.


class Row(NamedTuple):
    """One message that waits to be acknowledged."""

    id: int
    topic: str
    payload: bytes
    retain: bool
    qos: int


class Outbox:
    """A queue of outgoing messages in one SQLite table, safe to share between threads."""

    def __init__(self, path: Path | str, *, max_bytes: int = MAX_BYTES) -> None:
        """Open the outbox and create its table when it is missing; other tables of the file are left alone.

        Args:
            path: Database file, which may hold other tables too, or ``":memory:"`` (for simulated fleets).
            max_bytes: Most payload bytes that may wait at once.

        Raises:
            ConfigError: The file cannot be opened or is not a database.
        """
        self.path = str(path)
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._gone: set[int] = set()  # acknowledged, but there was no room to write that down
        try:
            if self.path != MEMORY:
                # Created by us, so that the file and the -wal and -shm files beside it are private.
                make_private_file(self.path)
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"outbox {self.path}: cannot be opened: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = str(self._db.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(found.split()))
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise ConfigError(str(self._trouble(error))) from error

    def _trouble(self, error: sqlite3.Error) -> LocalError:
        """Say what is wrong with the file and what to do."""
        code = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
        if code == "SQLITE_FULL" or code.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
            return LocalError(
                f"outbox {self.path}: {error}; nothing is sent that cannot be stored first: "
                f"is the disk full, read-only or failing?",
                cause="disk",
            )
        if code in ("SQLITE_CORRUPT", "SQLITE_NOTADB") or code.startswith("SQLITE_CORRUPT_"):
            return LocalError(
                f"outbox {self.path}: damaged: {error}; move it away, with its -wal and -shm, and start again: "
                f"the device keeps its identity, and the aggregator tells it how far it was",
                cause="damaged",
            )
        return LocalError(f"outbox {self.path}: {error}", cause="disk")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """Hold the write lock for statements that become durable together, or not at all on an exception.

        Whoever keeps other tables in the same file can write them through this cursor and call ``put_in``.

        Raises:
            LocalError: SQLite failed, for instance because the disk is full (cause ``disk``) or the file damaged
                (cause ``damaged``).
            StateError: Transactions cannot be nested.
        """
        with self._lock:
            if self._db.in_transaction:
                raise StateError("outbox: a transaction is already open on this thread")
            cursor = self._db.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                cursor.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._trouble(error) from error
            finally:
                if self._db.in_transaction:
                    cursor.execute("ROLLBACK")
                cursor.close()

    def put(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1, tag: str = "") -> int:
        """Enqueue one message; it is on disk when this returns.

        Args:
            topic: Topic without wildcards.
            payload: Bytes to send.
            retain: Whether the broker keeps it for later subscribers.
            qos: 1, or 0 for a message that may be lost.
            tag: Free text, such as a round's identifier, by which ``discard`` can find the message.

        Returns:
            The id of the row.

        Raises:
            LocalError: The outbox is full (cause ``outbox-full``), or the topic or qos cannot be sent.
        """
        with self.transaction() as cursor:
            return self.put_in(cursor, topic, payload, retain=retain, qos=qos, tag=tag)

    def put_in(
        self,
        cursor: sqlite3.Cursor,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        qos: int = 1,
        tag: str = "",
    ) -> int:
        """Enqueue one message inside the caller's open transaction on the same file; see ``put``.

        The caller commits, with ``synchronous=FULL`` on its own connection, and then wakes the link.

        Raises:
            StateError: The cursor's connection commits by itself and no transaction is open: the message
                would become durable without what it belongs to.
            LocalError: As for ``put``; the caller should roll back.
        """
        if not cursor.connection.in_transaction and cursor.connection.isolation_level is None:
            raise StateError("outbox: put_in needs an open transaction (BEGIN IMMEDIATE)")
        if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > 65535:
            raise LocalError(f"outbox: {topic[:80]!r} is not a topic one can publish to", cause="topic")
        if qos not in (0, 1):
            raise LocalError(f"outbox: qos {qos} for {topic}: only 0 and 1 are used", cause="qos")
        used = int(cursor.execute("SELECT COALESCE(SUM(size), 0) FROM outbox").fetchone()[0])
        if used + len(payload) > self.max_bytes:
            raise LocalError(
                f"outbox {self.path} is full: {used} bytes wait, {len(payload)} more for {topic} "
                f"would exceed the budget of {self.max_bytes}",
                cause="outbox-full",
            )
        cursor.execute(
            "INSERT INTO outbox (topic, payload, retain, qos, tag, size) VALUES (?, ?, ?, ?, ?, ?)",
            (topic, payload, int(retain), qos, tag, len(payload)),
        )
        if cursor.lastrowid is None:
            raise StateError("outbox: SQLite gave the new row no id")
        return cursor.lastrowid

    def pending(self, *, after: int = 0, limit: int = -1) -> list[Row]:
        """Return waiting messages in the order they were put: ids above ``after``, at most ``limit``."""
        rows = self._read(
            "SELECT id, topic, payload, retain, qos FROM outbox WHERE id > ? ORDER BY id LIMIT ?", after, limit
        )
        return [Row(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows if row[0] not in self._gone]

    def holds(self, topic: str) -> bool:
        """Tell whether a message for a topic waits."""
        return any(row[0] not in self._gone for row in self._read("SELECT id FROM outbox WHERE topic = ?", topic))

    def delete(self, *ids: int) -> None:
        """Forget messages that the broker has acknowledged; unknown ids are ignored.

        Where that cannot be written down, because the disk is full, it is kept in mind and tried again with the next.
        """
        if not ids:
            return
        with self._lock:
            self._gone.update(ids)
            # Without a flush of its own: see the module's docstring. The next put flushes it along.
            self._db.execute("PRAGMA synchronous=NORMAL")
            try:
                with self.transaction() as cursor:
                    cursor.executemany("DELETE FROM outbox WHERE id = ?", [(row,) for row in sorted(self._gone)])
                self._gone.clear()
            except LocalError as error:
                log.warning("%s", error)
            finally:
                self._db.execute("PRAGMA synchronous=FULL")

    def discard(self, topic_filter: str | None = None, *, tag: str | None = None) -> int:
        """Drop waiting messages that nobody needs any more, such as those of a closed round.

        Args:
            topic_filter: MQTT topic filter (``+`` and ``#`` allowed) that a message's topic must match.
            tag: Tag that a message must carry.

        Returns:
            How many were dropped.

        Raises:
            LocalError: Neither is given: nothing may empty the outbox by accident.
        """
        if topic_filter is None and tag is None:
            raise LocalError("outbox: discard needs a topic filter or a tag")
        with self.transaction() as cursor:
            found = cursor.execute("SELECT id, topic FROM outbox WHERE ? IS NULL OR tag = ?", (tag, tag))
            doomed = [(r[0],) for r in found if topic_filter is None or topic_matches(topic_filter, r[1])]
            cursor.executemany("DELETE FROM outbox WHERE id = ?", doomed)
        return len(doomed)

    def used(self) -> tuple[int, int]:
        """Return how many messages and how many payload bytes wait."""
        sizes = [size for row, size in self._read("SELECT id, size FROM outbox") if row not in self._gone]
        return len(sizes), sum(sizes)

    def _read(self, statement: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Close the database; what waits stays in the file."""
        with self._lock:
            self._db.close()


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Tell whether a topic matches an MQTT topic filter."""
    wanted, have = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and not topic_filter.startswith("$"):
        return False  # wildcards at the front never match the broker's own topics
    for level, name in enumerate(wanted):
        if name == "#":
            return True
        if level >= len(have) or name not in ("+", have[level]):
            return False
    return len(wanted) == len(have)
