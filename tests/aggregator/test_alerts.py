"""covey_aggregator.alerts: what is worth an alert, and the book they wait in."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from covey_aggregator import alerts
from covey_aggregator.alerts import KINDS, AlertBook, fallen_accuracy, many_joined
from covey_aggregator.chronicle import Chronicle
from covey_aggregator.home import AlertKind, AlertSettings
from covey_aggregator.records import RoundRecord
from covey_aggregator.store import DeviceRow, Store


def record(number: int, accuracy: float | None, federated: float | None = None, flag: str = "") -> RoundRecord:
    made = RoundRecord.aborted(number, 1, "00", 1.0, [])
    return msgspec.structs.replace(made, accuracy=accuracy, federated_accuracy=federated, flag=flag)


def test_the_settings_know_every_kind() -> None:
    assert set(get_args(AlertKind)) == set(KINDS)


def test_alerts_have_numbers_that_never_repeat_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    book = AlertBook(Store(tmp_path / "db"), lambda: 5.0, kept=3)
    for number in range(5):
        book.ring(alerts.BANNED, f"alert {number}", device="pi", task="t", round_=number)
    assert [alert.id for alert in book.after(0)] == [3, 4, 5]
    assert [alert.text for alert in book.after(4)] == ["alert 4"]
    assert book.newest(1)[0].round == 4
    again = AlertBook(Store(tmp_path / "db"), kept=3)
    assert again.last() == 5
    with pytest.raises(ValueError, match="no kind"):
        book.ring("nonsense", "")


def test_a_receiver_who_is_new_hears_nothing_that_was_before_it(tmp_path: Path) -> None:
    book = AlertBook(Store(tmp_path / "db"))
    book.ring(alerts.BANNED, "old")
    assert book.heard("pager") == 1
    book.ring(alerts.BANNED, "new")
    assert [alert.text for alert in book.after(book.heard("pager"))] == ["new"]
    book.hear("pager", 2)
    assert AlertBook(Store(tmp_path / "db")).heard("pager") == 2


def test_second_keys_ring_once_an_hour_and_not_without_end(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(tmp_path / "db")
    chronicle = Chronicle(store, wall_clock=lambda: now[0])
    for _ in range(3):
        chronicle.second_key("pi-1", "again")
    assert len(chronicle.alerts.after(0)) == len(chronicle.audit.entries()) == 1
    for number in range(40):
        chronicle.second_key(f"other-{number}", "a flood")
    assert len(chronicle.alerts.after(0)) == 20
    now[0] += 3601
    chronicle.second_key("pi-1", "later")
    assert chronicle.alerts.newest(1)[0].text == "later"


@pytest.mark.parametrize(
    ("accuracies", "drop", "falls"),
    [
        ([0.5, 0.8, 0.69], 0.1, True),
        ([0.5, 0.8, 0.71], 0.1, False),
        ([0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], 0.1, False),  # the best of the last five, not of all time
        ([0.9], 0.1, False),
        ([0.9, 0.1], 0.0, False),
        ([0.9, None], 0.1, False),
        ([0.9, None, 0.7], 0.1, True),
        ([], 0.1, False),
    ],
)
def test_accuracy_that_falls(accuracies: list[float | None], drop: float, falls: bool) -> None:
    records = [record(number, accuracy) for number, accuracy in enumerate(accuracies, 1)]
    assert bool(fallen_accuracy(records, drop)) == falls
    devices = [record(number, None, accuracy) for number, accuracy in enumerate(accuracies, 1)]
    assert bool(fallen_accuracy(devices, drop)) == falls


@pytest.mark.parametrize(
    ("joined", "before", "share", "wave"),
    [(20, 30, 0.5, True), (15, 30, 0.5, False), (7, 2, 0.5, False), (30, 0, 0.5, False), (8, 4, 0.5, True)],
)
def test_many_who_join_at_once(joined: int, before: int, share: float, wave: bool) -> None:
    assert bool(many_joined(joined, before, share)) == wave


def enrol(store: Store, count: int) -> None:
    for number in range(count):
        name = f"pi-{len(store.devices())}-{number}"
        store.put_device(DeviceRow(name, name.encode(), name.encode(), "pi-4", "online", 1, 0, "", "", 0.0))


def kinds(chronicle: Chronicle) -> list[str]:
    return [alert.kind for alert in chronicle.alerts.after(0)]


def test_a_round_rings_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    chronicle = Chronicle(store, AlertSettings(accuracy_drop=0.1, joined_share=0.5))
    enrol(store, 12)
    good = [record(1, 0.9)]
    chronicle.round_over("t", good)
    assert kinds(chronicle) == []  # the founders are no wave
    chronicle.round_over("t", [*good, record(2, 0.5, flag="doubtful")])
    assert kinds(chronicle) == [alerts.FLAGGED, alerts.ACCURACY]
    assert {(alert.task, alert.round) for alert in chronicle.alerts.after(0)} == {("t", 2)}
    chronicle.round_over("t", [*good, record(2, 0.5), record(3, 0.5)])
    assert len(kinds(chronicle)) == 2  # once for one fall
    enrol(store, 9)
    chronicle.round_over("t", [*good, record(3, 0.9)])
    assert kinds(chronicle)[2:] == [alerts.SYBILS]
    chronicle.round_over("t", [*good, record(4, 0.9)])
    assert len(kinds(chronicle)) == 3  # once is enough
