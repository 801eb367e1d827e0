"""The database: what it keeps over restarts and between processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sqlite3
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from tests.aggregator.fleet import make_task

from covey_aggregator.records import GroupRecord, RoundRecord
from covey_aggregator.store import DeviceRow, Store
from covey_protocol.epochs import Grouping
from covey_protocol.errors import ConfigError

DEVICE = DeviceRow(
    name="pi",
    key=b"k" * 32,
    token=b"t" * 32,
    profile="pi-4",
    status="online",
    counter=3,
    sequence=0,
    software="covey",
    holds="",
    seen=5.0,
)


def record(round_: int, attempt: int = 1) -> RoundRecord:
    return RoundRecord(
        round=round_,
        attempt=attempt,
        accuracy=0.5,
        loss=None,
        federated_accuracy=0.25,
        federated_loss=1.5,
        participants=5,
        accepted=4,
        rejected=0,
        dropped=1,
        groups=1,
        groups_aborted=0,
        seconds=1.5,
        stage_seconds={"joining": 0.5},
        bytes_up=10,
        bytes_down=20,
        model="ab",
        clip=1.0,
        update_norm=0.5,
        details=[GroupRecord(group="1-s-0", members=["a", "b"], survivors=["a"])],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "covey.db"


def test_everything_outlives_a_restart(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    task = make_task(tmp_path)
    store.put_device(DEVICE)
    store.put_sequences([("pi", 7)])
    store.pin(b"token", b"key")
    store.invite("pi-2", "pi-zero-2w", 99, b"t" * 32)
    store.add_task(task)
    store.begin_round("digits", 2, 3, b"model")
    store.set_status("digits", "running", "why")
    store.end_round("digits", record(2, 3), b"next")
    store.spend(b"model")
    store.set_number("epoch", 4)
    groupings = [Grouping(4, f"4-s-{place}", (("pi", b"k" * 32),)) for place in range(12)]
    store.put_groupings(groupings)
    store.event("round", "text")
    store.close()
    store = Store(path)
    assert store.devices() == [dataclasses.replace(DEVICE, sequence=7)]
    assert store.pins() == {b"token": b"key"}
    assert store.invited() == [("pi-2", "pi-zero-2w", 99)]
    (row,) = store.tasks()
    assert (row.task, row.status, row.reason) == (task, "running", "why")
    assert (row.round, row.attempt, row.model) == (2, 3, b"next")
    assert store.task("digits") == row
    assert store.task("other") is None
    assert store.rounds("digits") == [record(2, 3)]
    assert (store.is_spent(b"model"), store.is_spent(b"next")) == (True, False)
    assert (store.number("epoch"), store.number("other")) == (4, 0)
    assert store.groupings() == groupings
    assert [(number, cause, text) for number, _, cause, text in store.events()] == [(1, "round", "text")]


def test_a_known_devices_key_token_and_sequence_stay(path: Path) -> None:
    store = Store(path)
    store.put_device(dataclasses.replace(DEVICE, sequence=5))
    store.put_device(dataclasses.replace(DEVICE, key=b"x" * 32, token=b"y" * 32, sequence=1, status="lost", seen=9.0))
    assert store.devices() == [dataclasses.replace(DEVICE, sequence=5, status="lost", seen=9.0)]


def test_the_first_pin_stays(path: Path) -> None:
    store = Store(path)
    store.pin(b"token", b"first")
    store.pin(b"token", b"second")
    assert store.pins() == {b"token": b"first"}
    store.pin(b"token", b"first, second")  # which the first has signed for
    store.pin(b"token", b"first")
    assert store.pins() == {b"token": b"first, second"}


def test_a_tasks_name_is_used_once(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    store.add_task(make_task(tmp_path))
    store.set_status("digits", "done")
    with pytest.raises(ConfigError, match="there is a task 'digits' already"):
        store.add_task(make_task(tmp_path, rounds=9))
    assert store.tasks()[0].task.rounds == 2


def test_rounds_come_in_order_with_their_failed_attempts(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    store.add_task(make_task(tmp_path))
    for place in [(2, 1), (1, 2), (10, 1), (1, 1)]:
        store.end_round("digits", record(*place), b"m")
    assert [(each.round, each.attempt) for each in store.rounds("digits")] == [(1, 1), (1, 2), (2, 1), (10, 1)]
    assert [each.round for each in store.rounds("digits", after=1)] == [2, 10]


def test_a_rounds_record_and_model_are_stored_together_or_not_at_all(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    store.add_task(make_task(tmp_path))
    with pytest.raises(sqlite3.Error):
        store.end_round("digits", record(1), object())  # type: ignore[arg-type]
    assert store.rounds("digits") == []
    store.end_round("digits", record(1), b"model")
    assert [each.round for each in store.rounds("digits")] == [1]


def test_a_new_epochs_groups_replace_the_old_ones(path: Path) -> None:
    store = Store(path)
    store.put_groupings([Grouping(1, "1-s-0", ()), Grouping(1, "1-s-1", ())])
    store.put_groupings([Grouping(2, "2-s-0", ())])
    assert [grouping.group for grouping in store.groupings()] == ["2-s-0"]


def test_events_come_behind_a_number_and_up_to_a_limit(path: Path) -> None:
    store = Store(path)
    for number in range(5):
        store.event("cause", str(number))
    assert [event[3] for event in store.events(after=2)] == ["2", "3", "4"]
    assert [event[3] for event in store.events(after=1, limit=2)] == ["1", "2"]


def _write(path: Path, start: Barrier, name: str) -> None:
    start.wait()
    store = Store(path)
    for number in range(20):
        store.event(name, str(number))


def test_two_processes_make_and_write_one_database_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=_write, args=(path, start, name)) for name in ("one", "two", "three")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(Store(path).events()) == 60


def test_opening_a_new_database_waits_for_whoever_is_making_it(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("BEGIN IMMEDIATE")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    process = context.Process(target=_write, args=(path, start, "late"))
    process.start()
    start.wait(60)
    other.execute("ROLLBACK")
    process.join(60)
    assert process.exitcode == 0


def test_a_database_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match=r"covey\.db: written by a newer version of Covey \(schema 99\)"):
        Store(path)


def test_a_database_of_an_older_version_is_brought_up_to_date(path: Path) -> None:
    store = Store(path)
    store.set_number("epoch", 7)
    store.keep("conduct", b"one")
    store.keep("conduct", b"two")
    assert (store.memory("conduct"), store.memory("nothing")) == (b"two", b"")
    store.close()
    with sqlite3.connect(path) as database:
        for table in (
            *("memory", "journal_head", "journal", "words", "tokens", "revocations", "revoked", "said"),
            *("proofs", "audit", "evidence", "orders", "alerts", "certificates"),
        ):
            database.execute(f"DROP TABLE {table}")
        database.execute("PRAGMA user_version=1")
    for _ in range(2):
        store = Store(path)
        assert (store.number("epoch"), store.memory("conduct")) == (7, b"")
        store.close()


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(ConfigError, match=r"covey\.db: not a usable database"):
        Store(path)
    with pytest.raises(ConfigError, match="not a usable database"):
        Store(path.parent / "missing" / "covey.db")


def test_a_second_store_in_one_process_leaves_the_first_ones_locks(tmp_path: Path) -> None:
    # Without its locks nobody else knows of the first: whoever closes the file last, as it believes, removes the log.
    path = tmp_path / "covey.db"
    first = Store(path)
    Store(path).close()
    first.event("kept", "one")
    script = f"from covey_aggregator.store import Store; Store({str(path)!r}).close()"
    subprocess.run([sys.executable, "-c", script], check=True)
    first.event("kept", "two")
    script = f"from covey_aggregator.store import Store; print([e[3] for e in Store({str(path)!r}).events(0)])"
    seen = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert seen.stdout.strip() == "['one', 'two']"
    assert (tmp_path / "covey.db-wal").stat().st_nlink == 1
    first.close()
