"""The audit log: what was decided about devices and why, in a chain that shows later changes.

Every entry holds a digest over itself and the digest of the one before it, so nobody can change, take out or slip in an
entry without all later digests becoming others. Who has noted one digest (`covey audit verify` prints the newest) can
hold the log against it; an exported log ends with a head that the aggregator has signed. Entries are written in the
same transaction as what they speak of.

What the chain is made of is a digest over each entry with a random salt, so an entry can be erased without the chain
breaking: the digest stays, salt and content go, and nobody can find the content again by trying. An erasure is an entry
itself and names what it erased; an entry that is erased without such a word is taken for a forgery.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nacl.signing import SigningKey

from covey_aggregator.store import Store
from covey_protocol import cbor, envelope, identity
from covey_protocol.digest import DIGEST_BYTES, digest, short
from covey_protocol.envelope import Context
from covey_protocol.errors import MalformedError, RefusedError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.payload import Count, Digest, Payload, prepare, read, write

FIRST = bytes(DIGEST_BYTES)
"""What stands before the first entry."""
_KIND = "audit-head"
_KEPT = ("id", "at", "kind", "device", "text", "data")
_SALT_BYTES = 16
ERASED = "forgotten"
"""The kind of an entry that says which others were erased."""


@dataclass(frozen=True)
class AuditEntry:
    """One line: its number from 1, Unix seconds, a fixed word, the device it is about, words, particulars, digest.

    ``leaf`` is the digest of what stood here before the entry was erased; ``salt`` is empty then, and in entries that
    were written before there were salts.
    """

    id: int
    at: float
    kind: str
    device: str
    text: str
    data: Mapping[str, Any]
    digest: bytes
    salt: bytes = b""
    leaf: bytes = b""

    def line(self) -> str:
        """Return the entry as a line of an exported log."""
        more = {name: value.hex() for name in ("salt", "leaf") if (value := getattr(self, name))}
        return _json({**{name: getattr(self, name) for name in _KEPT}, "digest": self.digest.hex(), **more})


class AuditHead(Payload, frozen=True, kw_only=True):
    """What the aggregator signs below an exported log."""

    entries: Count
    digest: Digest


class AuditLog:
    """The log in the database.

    Args:
        store: Where it stands.
        wall_clock: Unix seconds.
    """

    def __init__(self, store: Store, wall_clock: Callable[[], float] = time.time) -> None:
        self._store, self._wall = store, wall_clock

    def note(self, kind: str, device: str, text: str, **data: object) -> None:
        """Add an entry.

        Args:
            kind: A fixed word to search for.
            device: Whom it is about, or nobody.
            text: In words.
            data: Particulars that JSON can hold.
        """
        with self._store.together():
            rows = self._store.rows("SELECT id, digest FROM audit ORDER BY id DESC LIMIT 1")
            number, before = (int(rows[0][0]), bytes(rows[0][1])) if rows else (0, FIRST)
            entry, salt = (number + 1, float(self._wall()), kind, device, text, _json(data)), os.urandom(_SALT_BYTES)
            self._store.change(
                "INSERT INTO audit (id, at, kind, device, text, data, digest, salt) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(*entry, _chained(before, [_leaf(salt, entry)]), salt),
            )

    def erase(self, device: str, pseudonym: str, replaced: Callable[[str], str]) -> tuple[int, int]:
        """Take a device out of all entries, and say so in a new one.

        Args:
            device: Its name.
            pseudonym: What takes the name's place.
            replaced: Returns a text with the name replaced in it.

        Returns:
            How many entries were erased; and how many name the device and had to stay, because they were written before
            there were salts.
        """
        erased, stay = [], 0
        with self._store.together():
            for entry in self.entries():
                about = entry.device == device
                text, data = replaced(entry.text), replaced(_json(entry.data))
                if not about and (text, data) == (entry.text, _json(entry.data)):
                    continue
                if not entry.salt and not entry.leaf:
                    stay += 1
                    continue
                values = (entry.id, entry.at, entry.kind, entry.device, entry.text, _json(entry.data))
                # Of an entry about the device nothing stays but its kind; of one about others, all but the name.
                name, text, data = (pseudonym, "", "{}") if about else (entry.device, text, data)
                self._store.change(
                    "UPDATE audit SET device = ?, text = ?, data = ?, salt = x'', leaf = ? WHERE id = ?",
                    *(name, text, data, entry.leaf or _leaf(entry.salt, values), entry.id),
                )
                erased.append(entry.id)
            if erased:
                self.note(ERASED, pseudonym, "a device was forgotten, and these entries were erased", erased=erased)
        return len(erased), stay

    def entries(self, device: str = "") -> list[AuditEntry]:
        """Return all entries, or those about one device, oldest first."""
        rows = self._store.rows(
            "SELECT id, at, kind, device, text, data, digest, salt, leaf FROM audit"
            " WHERE ? IN ('', device) ORDER BY id",
            device,
        )
        return [
            AuditEntry(number, at, kind, about, text, json.loads(data), *map(bytes, digests))
            for number, at, kind, about, text, data, *digests in rows
        ]

    def export(self, fleet: str, key: SigningKey) -> Iterable[str]:
        """Yield the lines of an exported log: one an entry, and the signed head."""
        last, count = FIRST, 0
        for entry in self.entries():
            last, count = entry.digest, count + 1
            yield entry.line()
        head = envelope.sign(write(AuditHead(entries=count, digest=last)), _context(fleet), key)
        yield _json({"head": head.hex()})


@dataclass(frozen=True)
class Checked:
    """A log that holds: entries, the newest digest, whether the aggregator has signed it, and how many are erased."""

    entries: int
    digest: bytes
    signed: bool
    erased: int = 0


def check(entries: Iterable[AuditEntry], expected: str = "") -> Checked:
    """Check a chain.

    Args:
        entries: All of them.
        expected: First digits of a digest that was noted earlier and has to be in it, if any.

    Raises:
        RefusedError: It does not hold; the message names the first entry that does not fit.
    """
    last, count, found = FIRST, 0, not expected
    erased: set[int] = set()
    told: set[int] = set()
    for entry in entries:
        values = (entry.id, entry.at, entry.kind, entry.device, entry.text, _json(entry.data))
        if entry.id != count + 1:
            raise RefusedError(f"entry {count + 1} of the audit log is missing", cause="audit")
        if entry.leaf:
            erased.add(entry.id)
            whole: list[object] = [entry.leaf]
        else:
            whole = [_leaf(entry.salt, values)] if entry.salt else list(values)
            if entry.kind == ERASED and isinstance(ids := entry.data.get("erased"), list):
                told.update(each for each in ids if isinstance(each, int) and each < entry.id)
        if _chained(last, whole) != entry.digest:
            raise RefusedError(
                f"entry {entry.id} of the audit log is not as it was written, or one before it", cause="audit"
            )
        last, count = entry.digest, entry.id
        found = found or last.hex().startswith(expected.lower())
    if not found:
        raise RefusedError(f"no entry of the audit log has the digest {expected!r}: it was cut off, or made anew")
    if erased - told:
        raise RefusedError(
            f"entry {min(erased - told)} of the audit log is erased, and no entry says so", cause="audit"
        )
    return Checked(count, last, False, len(erased))


def check_export(
    lines: Iterable[str], *, fleet: str, operator_key: bytes, delegation: bytes, expected: str = ""
) -> Checked:
    """Check an exported log, its head included; arguments as ``check`` and ``identity.verify_delegation``.

    Raises:
        CoveyError: It does not hold, or is none; the message says where.
    """
    *body, head = [json_line(number, line) for number, line in enumerate(lines, 1) if line.strip()] or [{}]
    checked = check([_entry(number, fields) for number, fields in enumerate(body, 1)], expected)
    aggregator = identity.verify_delegation(delegation, operator_key=operator_key, fleet=fleet).aggregator_key
    try:
        signed = bytes.fromhex(head["head"])
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError("the exported audit log has no head: its end is missing") from error
    found = read(AuditHead, envelope.open_signed(signed, _context(fleet), aggregator))
    if (found.entries, found.digest) != (checked.entries, checked.digest):
        raise RefusedError(
            f"the head speaks of {found.entries} entries up to {short(found.digest)}, and here are "
            f"{checked.entries} up to {short(checked.digest)}",
            cause="audit",
        )
    return Checked(checked.entries, checked.digest, True, checked.erased)


def json_line(number: int, line: str) -> dict[str, Any]:
    """Return one line of an exported log.

    Raises:
        MalformedError: It is none.
    """
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise MalformedError(f"line {number} of the audit log is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise MalformedError(f"line {number} of the audit log is no entry")
    return fields


def _entry(number: int, fields: dict[str, Any]) -> AuditEntry:
    try:
        digests: dict[str, Any] = {
            name: bytes.fromhex(fields[name]) for name in ("digest", "salt", "leaf") if name in fields
        }
        return AuditEntry(**{**fields, **digests})
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError(f"entry {number} of the audit log lacks fields, or has strange ones") from error


def _leaf(salt: bytes, entry: tuple[object, ...]) -> bytes:
    return _digest([salt, *entry], b"covey-audit-leaf")


def _chained(before: bytes, parts: Iterable[object]) -> bytes:
    return _digest([before, *parts], b"covey-audit")


def _digest(parts: list[object], person: bytes) -> bytes:
    try:
        return digest(cbor.encode(parts), person=person)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedError(f"an entry of the audit log cannot be read: {error}") from error


def _json(value: object) -> str:
    """One text for one value, so that a digest over it can be made again from what was exported."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _context(fleet: str) -> Context:
    return Context(fleet=fleet, kind=_KIND, sender=AGGREGATOR)


prepare(globals())
