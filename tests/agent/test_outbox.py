"""covey_agent.outbox: durable before it returns, in order, bounded, in one transaction with other tables."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from covey_agent.outbox import Outbox, topic_matches
from covey_protocol.errors import ConfigError, LocalError, StateError


@pytest.fixture(params=["file", "memory"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Outbox:
    """An empty outbox, on disk and in memory."""
    return Outbox(tmp_path / "device.db" if request.param == "file" else ":memory:", max_bytes=1000)


def topics(outbox: Outbox) -> list[str]:
    return [row.topic for row in outbox.pending()]


def test_rows_come_back_whole_and_in_order(outbox: Outbox) -> None:
    first = outbox.put("a/b", b"\x00\xff", retain=True, qos=0)
    second = outbox.put("a/c", b"")
    assert first < second
    assert outbox.pending() == [(first, "a/b", b"\x00\xff", True, 0), (second, "a/c", b"", False, 1)]
    assert [row.id for row in outbox.pending(after=first)] == [second]
    assert [row.id for row in outbox.pending(limit=1)] == [first]


def test_ids_never_return_after_deletion(outbox: Outbox) -> None:
    first = outbox.put("a", b"1")
    outbox.delete(first, 999)
    assert outbox.pending() == []
    assert outbox.put("a", b"2") > first


def test_budget_counts_what_waits_and_names_the_numbers(outbox: Outbox) -> None:
    row = outbox.put("a", b"x" * 600)
    outbox.put("b", b"x" * 400)
    assert outbox.used() == (2, 1000)
    with pytest.raises(LocalError, match="1000 bytes wait, 1 more for c would exceed the budget of 1000") as e:
        outbox.put("c", b"x")
    assert e.value.cause == "outbox-full"
    assert topics(outbox) == ["a", "b"]
    outbox.delete(row)
    outbox.put("c", b"x" * 600)


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "a\0b", "x" * 65536])
def test_topics_one_cannot_publish_to_are_refused(outbox: Outbox, topic: str) -> None:
    with pytest.raises(LocalError, match="not a topic"):
        outbox.put(topic, b"")
    assert outbox.used() == (0, 0)


def test_qos_2_is_refused(outbox: Outbox) -> None:
    with pytest.raises(LocalError, match="qos 2"):
        outbox.put("a", b"", qos=2)


def test_discard_by_filter_and_by_tag(outbox: Outbox) -> None:
    outbox.put("d/up/join", b"", tag="round-1")
    outbox.put("d/up/update/1", b"", tag="round-1")
    outbox.put("d/up/join", b"", tag="round-2")
    outbox.put("d/state", b"")
    assert outbox.discard("d/up/#", tag="round-1") == 2
    assert topics(outbox) == ["d/up/join", "d/state"]
    assert outbox.discard(tag="round-1") == 0
    assert outbox.discard("d/+/join") == 1
    assert topics(outbox) == ["d/state"]
    with pytest.raises(LocalError, match="needs a topic filter or a tag"):
        outbox.discard()
    assert topics(outbox) == ["d/state"]


def test_transaction_is_all_or_nothing(outbox: Outbox) -> None:
    with outbox.transaction() as cursor:
        cursor.execute("CREATE TABLE ledger (spent INTEGER)")
    with pytest.raises(KeyError), outbox.transaction() as cursor:
        cursor.execute("INSERT INTO ledger VALUES (7)")
        outbox.put_in(cursor, "a", b"1")
        raise KeyError
    assert outbox.used() == (0, 0)
    with outbox.transaction() as cursor:
        cursor.execute("INSERT INTO ledger VALUES (7)")
        outbox.put_in(cursor, "a", b"1")
    with outbox.transaction() as cursor:
        assert cursor.execute("SELECT spent FROM ledger").fetchall() == [(7,)]
    assert topics(outbox) == ["a"]


def test_nested_transactions_are_a_callers_bug_and_leave_the_outer_one_alone(outbox: Outbox) -> None:
    with outbox.transaction() as cursor:
        outbox.put_in(cursor, "a", b"1")
        with pytest.raises(StateError, match="already open"):
            outbox.put("b", b"2")
    assert topics(outbox) == ["a"]


def test_errors_of_sqlite_are_local_errors(outbox: Outbox) -> None:
    with pytest.raises(LocalError, match="no such table") as e, outbox.transaction() as cursor:
        cursor.execute("INSERT INTO nowhere VALUES (1)")
    assert e.value.cause == "disk"
    outbox.put("a", b"")


def test_put_in_joins_the_transaction_of_another_connection(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "device.db")
    ledger = sqlite3.connect(tmp_path / "device.db", isolation_level=None)
    ledger.execute("CREATE TABLE ledger (spent INTEGER)")
    cursor = ledger.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    cursor.execute("INSERT INTO ledger VALUES (1)")
    outbox.put_in(cursor, "a", b"1")
    assert outbox.pending() == [], "not committed yet"
    cursor.execute("ROLLBACK")
    assert outbox.pending() == []
    cursor.execute("BEGIN IMMEDIATE")
    cursor.execute("INSERT INTO ledger VALUES (2)")
    outbox.put_in(cursor, "a", b"2")
    cursor.execute("COMMIT")
    assert topics(outbox) == ["a"]
    assert ledger.execute("SELECT spent FROM ledger").fetchall() == [(2,)]


def test_put_in_without_a_transaction_is_refused(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "device.db")
    autocommit = sqlite3.connect(tmp_path / "device.db", isolation_level=None)
    with pytest.raises(StateError, match="BEGIN IMMEDIATE"):
        outbox.put_in(autocommit.cursor(), "a", b"1")
    assert outbox.pending() == []


def test_the_file_survives_and_keeps_other_tables(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE ledger (spent INTEGER)")
    outbox = Outbox(path)
    outbox.put("a", b"1")
    outbox.close()
    again = Outbox(path)
    assert topics(again) == ["a"]
    with again.transaction() as cursor:
        assert cursor.execute("SELECT COUNT(*) FROM ledger").fetchone() == (0,)


def test_a_killed_process_leaves_what_put_had_returned(tmp_path: Path) -> None:
    script = (
        "import os, sys; from covey_agent.outbox import Outbox; box = Outbox(sys.argv[1])\n"
        "for number in range(20): box.put(f't/{number}', b'x' * 100)\n"
        "box.delete(1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "device.db"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert topics(Outbox(path)) == [f"t/{number}" for number in range(1, 20)]


def test_the_file_and_its_companions_are_private(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "device.db")
    outbox.put("a", b"1")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"device.db", "device.db-wal", "device.db-shm"}
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in names)


def test_every_put_is_flushed_and_deletions_do_not_weaken_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "device.db")
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    outbox.delete(outbox.put("a", b"1"))
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    assert outbox._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="junk: damaged: file is not a database; move it away"):
        Outbox(tmp_path / "junk")
    with pytest.raises(ConfigError, match="missing/box: cannot be opened"):
        Outbox(tmp_path / "missing" / "box")


def test_threads_share_one_outbox(outbox: Outbox) -> None:
    def work(name: int) -> None:
        for number in range(25):
            row = outbox.put(f"{name}/{number}", b"x")
            if number % 2:
                outbox.delete(row)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(topics(outbox)) == sorted(f"{name}/{number}" for name in range(4) for number in range(0, 25, 2))


levels = st.lists(st.sampled_from(["a", "b", "", "$x"]), min_size=1, max_size=4).map("/".join)
filters = st.lists(st.sampled_from(["a", "b", "", "$x", "+"]), min_size=1, max_size=4)


@given(topic=levels, head=filters, multi=st.booleans())
def test_filters_match_as_in_mqtt(topic: str, head: list[str], multi: bool) -> None:
    wanted = "/".join([*head, "#"] if multi else head)
    assert topic_matches(wanted, topic) == topic_matches_sub(wanted, topic)
