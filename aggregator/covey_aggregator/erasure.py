"""Forgetting a device: what the server holds of it goes, and what others need stays under a name that says nothing.

The pseudonym is a keyed digest of the name, and the key is thrown away, so that nobody can find the name by trying, not
even who owns the server. It stands where a record of several devices would be wrong without it: in the sets of past
rounds, and in the audit log. A device that is forgotten has to be revoked before: the operator's signed list, which has
name, token and key, stays, for else the device could come back.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from covey_aggregator.audit import AuditLog
from covey_aggregator.home import BUNDLES, REQUESTS
from covey_aggregator.judgement import Judgement
from covey_aggregator.store import Store
from covey_protocol.digest import digest, short
from covey_protocol.errors import ConfigError

_OWN = ("said", "evidence", "orders", "proofs", "alerts")
"""Tables whose rows are about the one device in their column of that name."""
_SIGNED = "revocations"


class Erased(NamedTuple):
    """What was done.

    Attributes:
        pseudonym: What the device is called where it had to be called something.
        audit: Entries of the audit log that were erased.
        regrouped: Whether groups are drawn anew, because it was in them.
        stays: What still names it, in words.
    """

    pseudonym: str
    audit: int
    regrouped: bool
    stays: list[str]


def forget(store: Store, home: Path, name: str, tokens: list[bytes]) -> Erased:
    """Erase a device that the operator has revoked, or whose bundles were all withdrawn; nothing else may run.

    Args:
        store: The aggregator's database.
        home: The server's home.
        name: The device.
        tokens: Those that it was given.

    Raises:
        ConfigError: A round or an epoch is open that it may have a part in.
    """
    pattern = _word(name)
    pseudonym = f"forgotten-{short(digest(name.encode(), person=b'covey-forget', key=os.urandom(32)))}"

    def replaced(text: str) -> str:
        return pattern.sub(pseudonym, text)

    with store.together():
        grouped = any(name == member for grouping in store.groupings() for member, _ in grouping.members)
        if store.head() is not None and (grouped or _is_named(store, ("journal", "journal_head", "words"), name)):
            raise ConfigError(
                f"a round or an epoch is open that {name} has had a part in; start `covey serve`, end its task with "
                "`covey task stop`, and try again"
            )
        for table in _OWN:
            store.change(f"DELETE FROM {table} WHERE device = ?", name)  # noqa: S608 - names from above
        for table in ("devices", "invited", "tokens", "revoked"):
            store.change(f"DELETE FROM {table} WHERE name = ?", name)  # noqa: S608
        for token in tokens:
            store.change("DELETE FROM pins WHERE token = ?", token)
        # A certificate that has not expired stays on the broker's list, which has serial numbers alone.
        store.change("UPDATE certificates SET device = '' WHERE device = ?", name)
        if grouped:
            store.put_groupings([])
        for number, _, _, text in store.events(limit=-1):
            if pattern.search(text):
                store.change("DELETE FROM events WHERE id = ?", number)
        _rewrite(store, "alerts", "text", replaced)
        _rewrite(store, "rounds", "record", lambda text: _in_values(text, replaced))
        Judgement(store).forget(name)
        audit, older = AuditLog(store).erase(name, pseudonym, replaced)
    store.scrub()
    for path in (home / BUNDLES / f"{name}.bundle", home / REQUESTS / f"revoke-{name}.request"):
        path.unlink(missing_ok=True)
    stays = [f"{older} entries of the audit log, written by an older version: they cannot be erased"] if older else []
    tables = [row[0] for row in store.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    stays += [
        f"table {table}" for table in tables if table not in (_SIGNED, "audit") and _is_named(store, (table,), name)
    ]
    if _is_named(store, (_SIGNED,), name):
        stays.append("the operator's signed list of revocations: without it the device could come back")
    return Erased(pseudonym, audit, grouped, stays)


def _is_named(store: Store, tables: tuple[str, ...], name: str) -> bool:
    """Whether some tables name a device: as a word in a text, or as a text in CBOR or MessagePack."""
    raw, size = name.encode(), len(name)
    framed = (
        bytes([0x60 + size]) if size < 24 else bytes([0x78, size]),
        bytes([0xA0 + size]) if size < 32 else bytes([0xD9, size]),
    )

    def holds(value: object) -> bool:
        if isinstance(value, str):
            return bool(_word(name).search(value))
        if not isinstance(value, bytes) or raw not in value:
            return False
        return any(head + raw in value for head in framed) or bool(_word(name).search(value.decode("latin-1")))

    return any(holds(value) for table in tables for row in store.rows(f"SELECT * FROM {table}") for value in row)  # noqa: S608


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9-]){re.escape(name)}(?![a-z0-9-])")


def _rewrite(store: Store, table: str, column: str, change: Callable[[str], str]) -> None:
    for row, value in store.rows(f"SELECT rowid, {column} FROM {table}"):  # noqa: S608 - names from above
        text = value.decode() if isinstance(value, bytes) else value
        new = change(text)
        if new != text:
            kept = new.encode() if isinstance(value, bytes) else new
            store.change(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", kept, row)  # noqa: S608


def _in_values(text: str, change: Callable[[str], str]) -> str:
    """Change the texts in JSON, but not the names of its fields: a device may be called as one of them."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [walk(each) for each in value]
        if isinstance(value, dict):
            return {key: walk(each) for key, each in value.items()}
        return value

    before = json.loads(text)
    after = walk(before)
    return text if after == before else json.dumps(after, separators=(",", ":"))
