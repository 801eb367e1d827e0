"""``covey device forget``: what goes, what stays, and that the rest goes on."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import msgspec
import pytest
from tests.aggregator.console import Run
from tests.aggregator.fleet import Fleet
from tests.aggregator.test_probing import Classroom

from covey_aggregator import audit as audit_module
from covey_aggregator import erasure
from covey_aggregator.alerts import AlertBook
from covey_aggregator.audit import AuditLog, check
from covey_aggregator.chronicle import Chronicle
from covey_aggregator.conduct import Record
from covey_aggregator.desk import Orders
from covey_aggregator.files import FolderLock
from covey_aggregator.home import DATABASE_FILE, LOCK_FILE, SETTINGS_FILE
from covey_aggregator.judgement import Judgement
from covey_aggregator.probing import Looked
from covey_aggregator.store import Store
from covey_aggregator.task import Attestation
from covey_protocol.errors import ConfigError, RefusedError

SKETCHES = Attestation(sketch=8)


def left(path: Path, *things: str | bytes) -> list[str | bytes]:
    """Return what of some things is in a database's files, the operator's signed list left aside."""
    copy = path.with_name("copy.db")
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        target.executescript("".join(f"{line}\n" for line in source.iterdump()))
        target.execute("DELETE FROM revocations")
        target.commit()
        target.execute("VACUUM")
    text = copy.read_bytes()
    copy.unlink()
    return [thing for thing in things if (thing.encode() if isinstance(thing, str) else thing) in text]


def traces(fleet: Fleet, name: str) -> list[str | bytes]:
    device = fleet.devices[name]
    token = next(row.token for row in fleet.store.devices() if row.name == name)
    return [name, bytes(device.key.verify_key), token, token.hex(), bytes(device.key.verify_key).hex()]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet that has learnt, with something of one device in every book."""
    fleet = Fleet(tmp_path, 12)
    fleet.start(rounds=2, attestation=SKETCHES)
    fleet.finish()
    name = gone(fleet)
    store = fleet.store
    Orders(store).add(name, "quarantine", "it stood beside a heater")
    store.put_proof(name, "lied", b"proof of " + name.encode())
    chronicle = Chronicle(store)
    chronicle.banned(name, "lied about a mask", b"proof")
    chronicle.second_key(name, f"{name} shows a second key")
    store.event("note", f"{name} and others")
    AuditLog(store).note("clones", "", f"{name} and {other(fleet)} send copies", names=[name, other(fleet)])
    chronicle.alerts.ring("sybil-wave", f"{name}, {other(fleet)}")
    judgement = Judgement(store)
    judgement.conduct._state.devices[name] = Record()
    judgement.keep()
    fleet.store.commit()
    return fleet


def gone(fleet: Fleet) -> str:
    return sorted(fleet.devices)[-1]  # pi-9: no other name begins with it


def other(fleet: Fleet) -> str:
    return sorted(fleet.devices)[0]


def test_nothing_is_left_of_a_forgotten_device_but_the_operators_list(fleet: Fleet, run: Run) -> None:
    home, name = fleet.home.path, gone(fleet)
    things, digest = traces(fleet, name), check(AuditLog(fleet.store).entries()).digest.hex()
    assert left(home / DATABASE_FILE, *things)[:2] == things[:2]
    run("device", "revoke", name, "--home", home, "--reason", "left on a train")
    fleet.store.close()
    done = run("device", "forget", name, "--home", home)
    assert done.code == 0, done.err
    assert "groups are drawn anew" in done.out
    assert "what still names it: the operator's signed list" in done.out
    assert "what still names it: table" not in done.out
    assert left(home / DATABASE_FILE, *things, "left on a train", "heater") == []
    raw = b"".join(path.read_bytes() for path in home.glob(f"{DATABASE_FILE}*"))
    assert not [each for each in (b"left on a train", b"heater", b"proof of") if each in raw]  # also where rows were
    verified = run("audit", "verify", "--home", home, "--expect", digest[:12])
    assert (verified.code, "of them erased, as later ones say" in verified.out) == (0, True)
    assert name not in run("device", "list", "--home", home).out.split()
    out = run("audit", "export", "--home", home).out
    path = home / "audit.jsonl"
    path.write_text(out)
    assert run("audit", "verify", path, "--home", home).code == 0
    pseudonym = re.findall(r"forgotten-[0-9a-f]{12}", out)[0]
    assert other(fleet) in out
    store = Store(home / DATABASE_FILE)
    members = [set(group.members) for record in store.rounds("digits") for group in record.details]
    assert any(pseudonym in group for group in members)  # sets are as large as they were
    assert not any(name in group for group in members)
    assert any(other(fleet) in alert.text for alert in AlertBook(store).after(0))
    again = run("device", "forget", name, "--home", home)
    assert "there is no device" in again.line
    store.close()


def test_the_fleet_goes_on_without_it(fleet: Fleet, run: Run) -> None:
    name = gone(fleet)
    fleet.revoke(name)
    fleet.coordinator.commit()
    erasure.forget(fleet.store, fleet.home.path, name, [row.token for row in fleet.store.devices() if row.name == name])
    fleet.restart()
    fleet.start(name="more", rounds=2, attestation=SKETCHES)
    assert fleet.finish("more").status == "done"
    assert fleet.records("more")[-1].attested == 11


def test_probes_forget_it_too(tmp_path: Path) -> None:
    fleet = Classroom(tmp_path, 12)
    fleet.start(rounds=3)
    fleet.finish()
    name = gone(fleet)
    probing = Judgement(fleet.store).reputations.probing
    assert name in probing.last.names
    before = msgspec.msgpack.decode(probing.last.state)["devices"]
    probing.forget(name)
    kept = msgspec.msgpack.decode(fleet.store.memory("probes"), type=Looked)
    after = msgspec.msgpack.decode(kept.state)["devices"]
    assert name in before
    assert after == {each: value for each, value in before.items() if each != name}
    assert name not in {*kept.names, *kept.evidence, *kept.excused}


def test_who_is_neither_revoked_nor_withdrawn_stays_unless_it_is_asked_for(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    run("init", home, "--operator", tmp_path / "op", "--fleet", "meadow", "--tls")
    run("device", "add", "pi", "--home", home)
    assert "pi is neither revoked nor withdrawn" in run("device", "forget", "pi", "--home", home).line
    assert (home / "bundles" / "pi.bundle").exists()
    done = run("device", "forget", "pi", "--home", home, "--revoke")
    assert (done.code, "pi is revoked" in done.out, "pi is forgotten" in done.out) == (0, True, True)
    assert not (home / "bundles" / "pi.bundle").exists()
    store = Store(home / DATABASE_FILE)
    assert (store.invited(), store.tokens(), store.certificate_end("pi")) == ([], {}, 0)
    (serial,) = store.revoked_certificates(0)
    assert f"{serial:x}".encode() not in (home / SETTINGS_FILE).read_bytes()
    assert "there is no device 'nobody'" in run("device", "forget", "nobody", "--home", home).line


def test_a_device_is_not_forgotten_while_the_operator_has_yet_to_sign(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    run("init", home, "--operator", tmp_path / "op", "--fleet", "meadow")
    run("device", "add", "pi", "--home", home)
    (tmp_path / "op").rename(tmp_path / "away")
    done = run("device", "forget", "pi", "--home", home, "--revoke")
    assert "pi can be forgotten when the reply is in place" in done.out
    assert run("device", "forget", "pi", "--home", home).code == 2
    run("operator", "sign", tmp_path / "away", home / "requests" / "revoke-pi.request")
    assert run("accept", home, home / "requests" / "revoke-pi.reply").code == 0
    assert "pi is forgotten" in run("device", "forget", "pi", "--home", home).out


def test_a_running_service_would_write_it_back(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    run("init", home, "--operator", tmp_path / "op", "--fleet", "meadow")
    run("device", "add", "pi", "--home", home)
    run("device", "revoke", "pi", "--home", home, "--reason", "x")
    with FolderLock(home / LOCK_FILE, "`covey serve`"):
        assert "`covey serve` runs on it already" in run("device", "forget", "pi", "--home", home).line
    assert Store(home / DATABASE_FILE).tokens() != {}


def test_an_open_round_that_it_has_a_part_in_is_left_alone(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 12)
    fleet.start(rounds=50)
    fleet.run_until(lambda: fleet.coordinator.run is not None)
    name = gone(fleet)
    fleet.coordinator.commit()
    before = list(fleet.store._db.iterdump())
    with pytest.raises(ConfigError, match="a round or an epoch is open"):
        erasure.forget(fleet.store, fleet.home.path, name, [])
    assert list(fleet.store._db.iterdump()) == before


def log() -> AuditLog:
    log = AuditLog(Store(":memory:"), lambda: 5.0)
    log.note("quarantined", "pi-1", "pi-1 points away", by="the operator")
    log.note("clones", "", "pi-1, pi-10 and pi-2 are copies", names=["pi-1", "pi-10"])
    log.note("quarantined", "pi-10", "its updates point away")
    return log


def hide(text: str) -> str:
    return re.sub(r"(?<![a-z0-9-])pi-1(?![a-z0-9-])", "forgotten-x", text)


def test_of_entries_about_it_the_kind_stays_and_of_those_about_others_all_but_its_name() -> None:
    audit = log()
    before = [entry.digest for entry in audit.entries()]
    assert audit.erase("pi-1", "forgotten-x", hide) == (2, 0)
    one, two, three, told = audit.entries()
    assert (one.kind, one.device, one.text, one.data) == ("quarantined", "forgotten-x", "", {})
    assert (two.text, two.data) == ("forgotten-x, pi-10 and pi-2 are copies", {"names": ["forgotten-x", "pi-10"]})
    assert (three.device, three.leaf, bool(three.salt)) == ("pi-10", b"", True)
    assert [entry.digest for entry in (one, two, three)] == before
    assert (told.kind, told.data) == ("forgotten", {"erased": [1, 2]})
    checked = check(audit.entries())
    assert (checked.entries, checked.erased) == (4, 2)
    assert audit.erase("pi-2", "forgotten-y", lambda text: text.replace("pi-2", "forgotten-y")) == (1, 0)
    assert check(audit.entries()).erased == 2
    assert audit.erase("pi-9", "forgotten-z", lambda text: text) == (0, 0)
    assert len(audit.entries()) == 5


def test_salts_are_gone_with_what_they_hid() -> None:
    audit = log()
    salts = [entry.salt for entry in audit.entries()]
    assert len(set(salts)) == 3
    assert {len(salt) for salt in salts} == {16}
    audit.erase("pi-1", "forgotten-x", hide)
    assert [bool(entry.salt) for entry in audit.entries()] == [False, False, True, True]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit SET leaf = zeroblob(32) WHERE id = 1",
        "UPDATE audit SET leaf = x'' WHERE id = 1",
        "DELETE FROM audit WHERE id = 4",
        "DELETE FROM audit WHERE id = 1",
        "UPDATE audit SET data = '{}' WHERE id = 4",
    ],
)
def test_an_erased_entry_still_holds_the_chain_together(change: str) -> None:
    audit = log()
    audit.erase("pi-1", "forgotten-x", hide)
    audit._store.change(change)
    with pytest.raises(RefusedError, match="audit log"):
        check(audit.entries())


def test_an_entry_that_was_erased_without_a_word_is_taken_for_a_forgery() -> None:
    audit = log()
    audit.erase("pi-1", "forgotten-x", hide)
    one, two, three, told = audit.entries()
    for entries in ([one, two, three], [one, two]):
        with pytest.raises(RefusedError, match="entry 1 of the audit log is erased, and no entry says so"):
            check(entries)
    store = audit._store
    store.change("DELETE FROM audit WHERE id = 4")
    audit.note("forgotten", "", "", erased=[1])  # by who would hide one more
    with pytest.raises(RefusedError, match="entry 2 of the audit log is erased, and no entry says so"):
        check(audit.entries())
    assert told.kind == "forgotten"


def test_entries_from_before_there_were_salts_stay_and_are_counted() -> None:
    audit = log()
    store = audit._store
    store.change("DELETE FROM audit")
    entry = (1, 5.0, "quarantined", "pi-1", "pi-1 points away", "{}")
    chained = audit_module._chained(audit_module.FIRST, entry)
    store.change(
        "INSERT INTO audit (id, at, kind, device, text, data, digest) VALUES (?, ?, ?, ?, ?, ?, ?)", *(*entry, chained)
    )
    audit.note("clones", "", "pi-1 and pi-2")
    assert check(audit.entries()).entries == 2
    assert audit.erase("pi-1", "forgotten-x", hide) == (1, 1)
    assert check(audit.entries()).erased == 1
    assert audit.entries()[0].device == "pi-1"


def test_a_device_may_be_called_like_a_field() -> None:
    text = '{"members":["round","pi-1"],"round":3,"cause":"round spoilt"}'
    new = erasure._in_values(text, lambda value: re.sub(r"\bround\b", "forgotten-x", value))
    assert new == '{"members":["forgotten-x","pi-1"],"round":3,"cause":"forgotten-x spoilt"}'
