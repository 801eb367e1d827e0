"""covey_aggregator.audit: nobody changes, takes out or slips in an entry unnoticed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from covey_aggregator.audit import AuditLog, check, check_export
from covey_aggregator.store import Store
from covey_protocol import identity
from covey_protocol.errors import CoveyError, PeerError, RefusedError

OPERATOR, SERVER = SigningKey.generate(), SigningKey.generate()
ANCHOR = bytes(OPERATOR.verify_key)
DELEGATION = identity.issue_delegation(OPERATOR, "meadow", bytes(SERVER.verify_key), 1, 0)


def filled(path: Path | str, entries: int = 5) -> Store:
    store = Store(path)
    log = AuditLog(store, lambda: 1700000000.25)
    for number in range(entries):
        log.note("expelled", f"pi-{number}", "its updates point away", evidence=5.0 + number, parts={"norm": 0.1})
    return store


def test_a_log_holds_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path / "db").close()
    store = filled(tmp_path / "db")
    checked = check(AuditLog(store).entries())
    assert checked.entries == 10
    assert [entry.device for entry in AuditLog(store).entries("pi-1")] == ["pi-1", "pi-1"]
    assert AuditLog(store).entries()[0].data == {"evidence": 5.0, "parts": {"norm": 0.1}}


CHANGES = {
    "text": "UPDATE audit SET text = 'innocent' WHERE id = 3",
    "device": "UPDATE audit SET device = 'pi-9' WHERE id = 3",
    "kind": "UPDATE audit SET kind = 'vouched' WHERE id = 3",
    "time": "UPDATE audit SET at = at + 1 WHERE id = 3",
    "data": "UPDATE audit SET data = '{}' WHERE id = 3",
    "digest": "UPDATE audit SET digest = zeroblob(32) WHERE id = 3",
    "gone": "DELETE FROM audit WHERE id = 3",
    "first-gone": "DELETE FROM audit WHERE id = 1",
    "renumbered": "DELETE FROM audit WHERE id = 3; UPDATE audit SET id = id - 1 WHERE id > 3",
    "swapped": "UPDATE audit SET id = 99 WHERE id = 3; UPDATE audit SET id = 3 WHERE id = 4;"
    "UPDATE audit SET id = 4 WHERE id = 99",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_found(tmp_path: Path, change: str) -> None:
    store = filled(tmp_path / "db")
    with sqlite3.connect(tmp_path / "db") as other:
        other.executescript(change)
    other.close()
    with pytest.raises(RefusedError, match="audit log"):
        check(AuditLog(store).entries())


def test_an_entry_with_a_fitting_digest_of_its_own_does_not_fit_those_behind_it(tmp_path: Path) -> None:
    entries, other = AuditLog(filled(tmp_path / "db")).entries(), Store(tmp_path / "other")
    for entry in entries[:2]:
        AuditLog(other, lambda: entries[0].at).note(entry.kind, entry.device, entry.text, **entry.data)
    AuditLog(other, lambda: entries[0].at).note("vouched", "pi-2", "innocent")
    forged = AuditLog(other).entries()
    assert check(forged).entries == 3
    with pytest.raises(RefusedError, match="entry 4 of the audit log"):
        check([*forged, *entries[3:]])


def test_a_log_that_was_cut_off_or_made_anew_is_found_by_whoever_noted_a_digest(tmp_path: Path) -> None:
    store = filled(tmp_path / "db")
    noted = check(AuditLog(store).entries()).digest.hex()
    assert check(AuditLog(store).entries(), noted[:12]).entries == 5
    store.change("DELETE FROM audit WHERE id = 5")
    assert check(AuditLog(store).entries()).entries == 4
    with pytest.raises(RefusedError, match="cut off, or made anew"):
        check(AuditLog(store).entries(), noted)


def exported(path: Path | str) -> list[str]:
    return list(AuditLog(filled(path)).export("meadow", SERVER))


def verify(lines: list[str], fleet: str = "meadow", operator: bytes = ANCHOR) -> int:
    return check_export(lines, fleet=fleet, operator_key=operator, delegation=DELEGATION).entries


def test_an_exported_log_stands_by_itself(tmp_path: Path) -> None:
    lines = exported(tmp_path / "db")
    assert verify(lines) == 5
    assert verify(list(AuditLog(Store(tmp_path / "empty")).export("meadow", SERVER))) == 0
    for wrong in (lines[:-1], lines[1:], lines[:2] + lines[3:], lines[:-2] + lines[-1:], [], ["[]"], ["{}"], ["x"]):
        with pytest.raises(CoveyError):
            verify(wrong)
    with pytest.raises(PeerError):
        verify(lines, fleet="orchard")
    with pytest.raises(PeerError):
        verify(lines, operator=bytes(SERVER.verify_key))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_changed_export_holds(data: st.DataObject) -> None:
    lines = exported(":memory:")
    number = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[number]) - 1))
    character = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    changed = lines[number][:at] + character + lines[number][at + 1 :]
    try:
        same = json.loads(changed) == json.loads(lines[number])
    except ValueError:
        same = False
    if same:
        return
    hexadecimal = lines[number].lower() == changed.lower()
    lines[number] = changed
    if hexadecimal:  # digits may be capitals
        return
    with pytest.raises(CoveyError):
        verify(lines)
