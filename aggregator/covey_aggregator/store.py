"""What the aggregator must not forget, in SQLite: devices, tasks, groupings, rounds, events, the open journal.

Every change is durable before it is acted on. The service gathers the changes of one turn of its loop (``defer``) and
pays for them with one write to the disk (``commit``) before it sends what follows from them. Other processes (the
``covey`` command) read and write the same file while the service runs; SQLite's write-ahead log serialises them.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from covey_aggregator.files import make_private_file
from covey_aggregator.records import RoundRecord
from covey_aggregator.task import Task
from covey_protocol.digest import content_digest, short
from covey_protocol.effects import Publish
from covey_protocol.epochs import Grouping
from covey_protocol.errors import ConfigError

_BUSY_SECONDS = 30.0
_SWITCH_SECONDS = 0.02
_FIRST = """
CREATE TABLE devices (
    name TEXT PRIMARY KEY, key BLOB NOT NULL, token BLOB NOT NULL, profile TEXT NOT NULL, status TEXT NOT NULL,
    counter INTEGER NOT NULL, sequence INTEGER NOT NULL DEFAULT 0, software TEXT NOT NULL DEFAULT '',
    holds TEXT NOT NULL DEFAULT '', seen REAL NOT NULL, enrolled REAL NOT NULL
);
CREATE TABLE pins (token BLOB PRIMARY KEY, key BLOB NOT NULL);
CREATE TABLE invited (name TEXT PRIMARY KEY, profile TEXT NOT NULL, at REAL NOT NULL, not_after INTEGER NOT NULL);
CREATE TABLE tasks (
    name TEXT PRIMARY KEY, config BLOB NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    round INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0, model BLOB NOT NULL DEFAULT x'',
    created REAL NOT NULL
);
CREATE TABLE spent (model BLOB PRIMARY KEY);
CREATE TABLE groupings (position INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE rounds (
    task TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (task, round, attempt)
);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, cause TEXT NOT NULL, text TEXT NOT NULL);
"""
_REVOCATION = """
CREATE TABLE tokens (token BLOB PRIMARY KEY, name TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE revocations (version INTEGER PRIMARY KEY, head BLOB NOT NULL, entries BLOB NOT NULL);
CREATE TABLE revoked (token BLOB PRIMARY KEY, name TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL);
"""
_DESK = """
CREATE TABLE proofs (device TEXT PRIMARY KEY, reason TEXT NOT NULL, proof BLOB NOT NULL, at REAL NOT NULL);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL, text TEXT NOT NULL,
    data TEXT NOT NULL, digest BLOB NOT NULL
);
CREATE TABLE evidence (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, device TEXT NOT NULL, task TEXT NOT NULL,
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, accepted INTEGER NOT NULL, before TEXT NOT NULL,
    after TEXT NOT NULL, event TEXT NOT NULL, evidence REAL NOT NULL, change REAL NOT NULL, score REAL NOT NULL,
    parts TEXT NOT NULL
);
CREATE INDEX evidence_by_device ON evidence (device, id);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, device TEXT NOT NULL, what TEXT NOT NULL,
    reason TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0, refused INTEGER NOT NULL DEFAULT 0,
    answer TEXT NOT NULL DEFAULT ''
);
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL,
    text TEXT NOT NULL, task TEXT NOT NULL, round INTEGER NOT NULL
);
"""
_CERTIFICATES = """
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, device TEXT NOT NULL, not_after INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX certificates_by_device ON certificates (device);
"""
_SALTED = """
ALTER TABLE audit ADD COLUMN salt BLOB NOT NULL DEFAULT x'';
ALTER TABLE audit ADD COLUMN leaf BLOB NOT NULL DEFAULT x'';
"""
# One text for every version of the schema: a file is brought up to date by those that it has not seen.
_SCHEMAS = (
    _FIRST,
    "CREATE TABLE memory (name TEXT PRIMARY KEY, data BLOB NOT NULL);",
    """
CREATE TABLE journal_head (version INTEGER NOT NULL, head BLOB NOT NULL);
CREATE TABLE journal (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL, data BLOB NOT NULL,
    said BLOB NOT NULL
);
CREATE TABLE words (position INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL,
    retain INTEGER NOT NULL
);
""",
    _REVOCATION,
    """
CREATE TABLE said (
    device TEXT NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL, bound BLOB NOT NULL, PRIMARY KEY (device, kind)
);
""",
    _DESK,
    _CERTIFICATES,
    _SALTED,
)


@dataclass(frozen=True)
class DeviceRow:
    """One enrolled device; ``status`` as it last said itself: online, lost, left."""

    name: str
    key: bytes
    token: bytes
    profile: str
    status: str
    counter: int
    sequence: int
    software: str
    holds: str
    seen: float


@dataclass(frozen=True)
class ProofRow:
    """A proof that a device has lied."""

    device: str
    reason: str
    proof: bytes
    at: float

    @property
    def id(self) -> str:
        """By what it is called: the first digits of its BLAKE2b-256 digest."""
        return short(content_digest(self.proof))


@dataclass(frozen=True)
class TaskRow:
    """One task and how far it is: ``status`` is queued, running, done, stopped or failed."""

    task: Task
    status: str
    reason: str
    round: int
    attempt: int
    model: bytes


_DEVICE = "name, key, token, profile, status, counter, sequence, software, holds, seen"


class Store:
    """The aggregator's database.

    Args:
        path: The file, or ``:memory:``.

    Raises:
        ConfigError: It cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: Path | str) -> None:
        self._lock = threading.RLock()
        self._deferred = False
        try:
            if str(path) != ":memory:":
                # Made by us, so that the file and SQLite's -wal and -shm beside it are for the owner's eyes.
                make_private_file(path)
            self._db = sqlite3.connect(str(path), timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._write_ahead()
            self._db.execute("PRAGMA synchronous=FULL")
            # Two processes may find no database at once: only one of them makes it.
            self._db.execute("BEGIN IMMEDIATE")
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            for number, schema in enumerate(_SCHEMAS[version:], version + 1):
                for statement in f"{schema} PRAGMA user_version={number}".split(";"):
                    self._db.execute(statement)
            self._db.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path}: not a usable database: {error}") from error
        if version > len(_SCHEMAS):
            raise ConfigError(f"{path}: written by a newer version of Covey (schema {version})")

    def _write_ahead(self) -> None:
        """Switch to write-ahead logging; SQLite does not wait by itself when another process is switching too."""
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(_SWITCH_SECONDS)
            else:
                return

    def close(self) -> None:
        """Close the file; what was not committed is forgotten."""
        self._db.close()

    def defer(self) -> None:
        """From now on gather changes until ``commit`` is called, instead of writing each at once."""
        self._deferred = True

    def commit(self) -> None:
        """Make all changes since the last commit durable, together."""
        with self._lock:
            if self._db.in_transaction:
                self._db.execute("COMMIT")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make the changes inside durable together, at the end or with the next ``commit``."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if not self._deferred:
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return what a statement finds, for logs that have tables of their own."""
        return self._do(statement, *values)

    def change(self, statement: str, *values: object) -> None:
        """Carry out a statement that changes such a table."""
        self._change(statement, *values)

    def _do(self, statement: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def _change(self, statement: str, *values: object) -> None:
        with self.together():
            self._db.execute(statement, values)

    def _change_many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with self.together():
            self._db.executemany(statement, rows)

    # Devices

    def devices(self) -> list[DeviceRow]:
        """Return all devices by name."""
        return [DeviceRow(*row) for row in self._do(f"SELECT {_DEVICE} FROM devices ORDER BY name")]  # noqa: S608

    def put_device(self, row: DeviceRow) -> None:
        """Add a device, or change what it says of itself; key, token and sequence of a known one stay."""
        self._change(
            "INSERT INTO devices"
            " (name, key, token, profile, status, counter, sequence, software, holds, seen, enrolled)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET status = excluded.status,"
            " counter = excluded.counter, software = excluded.software, holds = excluded.holds, seen = excluded.seen",
            *(row.name, row.key, row.token, row.profile, row.status, row.counter, row.sequence),
            *(row.software, row.holds, row.seen, row.seen),
        )

    def put_sequences(self, sequences: Iterable[tuple[str, int]]) -> None:
        """Remember the last join sequence of some devices."""
        self._change_many("UPDATE devices SET sequence = ? WHERE name = ?", [(s, n) for n, s in sequences])

    def put_said(self, device: str, kind: str, data: bytes, bound: bytes = b"") -> None:
        """Keep the newest message of one kind of a device, and the digest that it was signed over."""
        self._change("INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?)", device, kind, data, bound)

    def said(self, device: str, kind: str) -> tuple[bytes, bytes]:
        """Return a device's newest message of one kind and what it was signed over; empty where there is none."""
        rows = self._do("SELECT data, bound FROM said WHERE device = ? AND kind = ?", device, kind)
        return rows[0] if rows else (b"", b"")

    def pins(self) -> dict[bytes, bytes]:
        """Return which keys each token was seen with."""
        return dict(self._do("SELECT token, key FROM pins"))

    def pin(self, token: bytes, keys: bytes) -> None:
        """Bind a token to its keys, as ``PinnedKeys`` returns them; they only grow."""
        self._change(
            "INSERT INTO pins VALUES (?, ?) ON CONFLICT (token) DO UPDATE SET key = excluded.key "
            "WHERE substr(excluded.key, 1, length(key)) = key",
            *(token, keys),
        )

    def invite(self, name: str, profile: str, not_after: int, token: bytes) -> None:
        """Remember that a provisioning bundle was made, and the digest of its token."""
        with self.together():
            self._change("INSERT OR REPLACE INTO invited VALUES (?, ?, ?, ?)", name, profile, time.time(), not_after)
            self._change("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?)", token, name, time.time())

    def invited(self) -> list[tuple[str, str, int]]:
        """Return name, profile and expiry of every bundle made."""
        return list(self._do("SELECT name, profile, not_after FROM invited ORDER BY name"))

    # Revocation

    def tokens(self) -> dict[bytes, str]:
        """Return every token that was issued or seen, and the name that it is for."""
        return dict(self._do("SELECT token, name FROM tokens UNION SELECT token, name FROM devices"))

    def revocations_version(self) -> int:
        """Return the version of the list that is here, 0 for none."""
        return int(self._do("SELECT COALESCE(MAX(version), 0) FROM revocations")[0][0])

    def revocations(self) -> tuple[bytes, bytes] | None:
        """Return the newest list: its signed head and its entries."""
        rows = self._do("SELECT head, entries FROM revocations ORDER BY version DESC LIMIT 1")
        return (bytes(rows[0][0]), bytes(rows[0][1])) if rows else None

    def drop_revocations(self) -> None:
        """Forget every list."""
        self._change("DELETE FROM revocations")

    def put_revocations(self, version: int, head: bytes, entries: bytes) -> None:
        """Keep a list in place of older ones."""
        with self.together():
            self._change("INSERT OR REPLACE INTO revocations VALUES (?, ?, ?)", version, head, entries)
            self._change("DELETE FROM revocations WHERE version < (SELECT MAX(version) FROM revocations)")

    def note_revoked(self, token: bytes, name: str, reason: str) -> None:
        """Keep the operator's words; the published list holds a category only."""
        self._change("INSERT OR IGNORE INTO revoked VALUES (?, ?, ?, ?)", token, name, reason, time.time())

    def revoked(self) -> dict[bytes, str]:
        """Return the words by token."""
        return dict(self._do("SELECT token, reason FROM revoked"))

    # Certificates for the broker; serial numbers have 160 bits, more than SQLite's integers

    def note_certificate(self, serial: int, device: str, not_after: int) -> None:
        """Remember a certificate that was given to a device."""
        self._change("INSERT INTO certificates VALUES (?, ?, ?, 0)", f"{serial:x}", device, not_after)

    def certificate_end(self, device: str) -> int:
        """Return when the last of a device's certificates ends, in Unix seconds; 0 where it has none."""
        return int(self._do("SELECT COALESCE(MAX(not_after), 0) FROM certificates WHERE device = ?", device)[0][0])

    def revoke_certificates(self, device: str, now: int) -> int:
        """Mark a device's certificates as revoked; return how many are."""
        with self.together():
            self._change("UPDATE certificates SET revoked = ? WHERE device = ? AND revoked = 0", now, device)
            return int(self._do("SELECT count(*) FROM certificates WHERE device = ?", device)[0][0])

    def revoked_certificates(self, now: int) -> dict[int, int]:
        """Return serial numbers of revoked certificates that have not expired, and since when they are."""
        rows = self._do("SELECT serial, revoked FROM certificates WHERE revoked > 0 AND not_after > ?", now)
        return {int(serial, 16): int(at) for serial, at in rows}

    # Tasks

    def add_task(self, task: Task) -> None:
        """Queue a task.

        Raises:
            ConfigError: There is one of that name.
        """
        try:
            self._change(
                "INSERT INTO tasks (name, config, status, created) VALUES (?, ?, 'queued', ?)",
                *(task.name, msgspec.json.encode(task), time.time()),
            )
        except sqlite3.IntegrityError as error:
            raise ConfigError(f"there is a task {task.name!r} already; names are used once") from error

    def tasks(self) -> list[TaskRow]:
        """Return all tasks in the order in which they were started."""
        rows = self._do("SELECT config, status, reason, round, attempt, model FROM tasks ORDER BY created, name")
        return [TaskRow(msgspec.json.decode(row[0], type=Task), *row[1:]) for row in rows]

    def task(self, name: str) -> TaskRow | None:
        """Return one task."""
        return next((row for row in self.tasks() if row.task.name == name), None)

    def set_status(self, task: str, status: str, reason: str = "") -> None:
        """Change a task's status."""
        self._change("UPDATE tasks SET status = ?, reason = ? WHERE name = ?", status, reason, task)

    def begin_round(self, task: str, round_: int, attempt: int, model: bytes) -> None:
        """Remember that a round is about to be opened; its number is never used again."""
        self._change("UPDATE tasks SET round = ?, attempt = ?, model = ? WHERE name = ?", round_, attempt, model, task)

    def spend(self, model: bytes) -> None:
        """Remember that devices are about to sign a set for this model: one set for one model, in whatever task."""
        self._change("INSERT OR IGNORE INTO spent VALUES (?)", model)

    def is_spent(self, model: bytes) -> bool:
        """Whether devices may have signed a set for this model."""
        return bool(self._do("SELECT 1 FROM spent WHERE model = ?", model))

    def end_round(self, task: str, record: RoundRecord, model: bytes) -> None:
        """Remember a round's outcome together with the new model."""
        with self.together():
            self._change(
                "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?)",
                *(task, record.round, record.attempt, msgspec.json.encode(record)),
            )
            self._change("UPDATE tasks SET model = ? WHERE name = ?", model, task)

    def rounds(self, task: str, after: int = 0) -> list[RoundRecord]:
        """Return the records of a task's rounds with numbers above ``after``, failed attempts included."""
        rows = self._do("SELECT record FROM rounds WHERE task = ? AND round > ? ORDER BY round, attempt", task, after)
        return [msgspec.json.decode(row[0], type=RoundRecord) for row in rows]

    # Epochs

    def number(self, name: str) -> int:
        """Return a counter's value, 0 at first."""
        rows = self._do("SELECT value FROM numbers WHERE name = ?", name)
        return int(rows[0][0]) if rows else 0

    def set_number(self, name: str, value: int) -> None:
        """Set a counter."""
        self._change("INSERT OR REPLACE INTO numbers VALUES (?, ?)", name, value)

    def groupings(self) -> list[Grouping]:
        """Return the groups of the present epoch."""
        return [Grouping.decode(row[0]) for row in self._do("SELECT data FROM groupings ORDER BY position")]

    def put_groupings(self, groupings: Iterable[Grouping]) -> None:
        """Replace the groups by those of a new epoch."""
        rows = [(position, grouping.encode()) for position, grouping in enumerate(groupings)]
        with self.together():
            self._change("DELETE FROM groupings")
            self._change_many("INSERT INTO groupings VALUES (?, ?)", rows)

    # The open round or epoch: see ``journal``

    def put_head(self, version: int, head: bytes) -> None:
        """Begin a journal; an earlier one is forgotten."""
        with self.together():
            self.clear_journal()
            self._change("INSERT INTO journal_head VALUES (?, ?)", version, head)

    def head(self) -> tuple[int, bytes] | None:
        """Return version and head of the open journal, if there is one."""
        rows = self._do("SELECT version, head FROM journal_head")
        return (int(rows[0][0]), bytes(rows[0][1])) if rows else None

    def put_entry(self, at: float, kind: str, device: str, data: bytes, said: bytes) -> None:
        """Add a line to the open journal."""
        self._change(
            "INSERT INTO journal (at, kind, device, data, said) VALUES (?, ?, ?, ?, ?)", at, kind, device, data, said
        )

    def entries(self) -> list[tuple[float, str, str, bytes, bytes]]:
        """Return time, kind, device, data and the digest of what was said, in order."""
        return list(self._do("SELECT at, kind, device, data, said FROM journal ORDER BY id"))

    def count_entries(self, kind: str) -> int:
        """Return how many lines of a kind the open journal has."""
        return int(self._do("SELECT count(*) FROM journal WHERE kind = ?", kind)[0][0])

    def clear_journal(self) -> None:
        """Forget the open journal: nothing is open any more."""
        with self.together():
            self._change("DELETE FROM journal_head")
            self._change("DELETE FROM journal")

    def put_words(self, words: Iterable[Publish]) -> None:
        """Keep what has to be said again after a restart, in the place of what was kept before."""
        rows = [(position, w.kind, w.id, w.data, w.retain) for position, w in enumerate(words)]
        with self.together():
            self._change("DELETE FROM words")
            self._change_many("INSERT INTO words VALUES (?, ?, ?, ?, ?)", rows)

    def words(self) -> list[Publish]:
        """Return what has to be said again after a restart."""
        rows = self._do("SELECT kind, id, data, retain FROM words ORDER BY position")
        return [Publish(kind, id_, data, bool(retain)) for kind, id_, data, retain in rows]

    # Memory of the aggregator's own decisions, each in a form of its own

    def memory(self, name: str) -> bytes:
        """Return what was kept under a name, nothing at first."""
        rows = self._do("SELECT data FROM memory WHERE name = ?", name)
        return bytes(rows[0][0]) if rows else b""

    def keep(self, name: str, data: bytes) -> None:
        """Keep something in place of what was there."""
        self._change("INSERT OR REPLACE INTO memory VALUES (?, ?)", name, data)

    def scrub(self) -> None:
        """Write the file anew without what was deleted: SQLite leaves the bytes of deleted rows where they were."""
        with self._lock:
            self.commit()
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Proofs

    def put_proof(self, device: str, reason: str, proof: bytes) -> None:
        """Keep the first proof that a device has lied."""
        self._change("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?, ?)", device, reason, proof, time.time())

    def proofs(self) -> dict[str, str]:
        """Return who is proven to have lied, and in what."""
        return {row.device: row.reason for row in self.kept_proofs()}

    def kept_proofs(self) -> list[ProofRow]:
        """Return all proofs in the order in which they came about."""
        return [ProofRow(*row) for row in self._do("SELECT device, reason, proof, at FROM proofs ORDER BY at, device")]

    # Events

    def event(self, cause: str, text: str) -> None:
        """Keep a line for people."""
        self._change("INSERT INTO events (at, cause, text) VALUES (?, ?, ?)", time.time(), cause, text)

    def events(self, after: int = 0, limit: int = 1000) -> list[tuple[int, float, str, str]]:
        """Return id, Unix time, cause and text of the events behind ``after``."""
        rows = self._do("SELECT id, at, cause, text FROM events WHERE id > ? ORDER BY id LIMIT ?", after, limit)
        return [(int(row[0]), float(row[1]), str(row[2]), str(row[3])) for row in rows]
