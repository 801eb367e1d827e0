"""covey_protocol.ledger: what a device has done once it never does again, not even after a restart."""

from __future__ import annotations

import pytest

from covey_protocol.effects import Remember
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.ledger import DeviceLedger


class Disk:
    """A ledger whose rows go through a disk: ``restart`` loses everything that was not handed out to be stored."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.ledger = DeviceLedger()

    def store(self, *marks: Remember) -> None:
        self.rows |= {mark.key: mark.value for mark in marks}

    def restart(self) -> None:
        self.ledger = DeviceLedger(self.rows)

    def sign(self, model: bytes, survivors: bytes, members: bytes, *, group: str = "1-s-0", cap: int = 0) -> None:
        self.store(*self.ledger.sign_set(model, survivors, group, members, cap))


@pytest.fixture(params=[False, True], ids=["running", "restarted"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    if request.param:
        store = disk.store

        def store_and_restart(*marks: Remember) -> None:
            store(*marks)
            disk.restart()

        monkeypatch.setattr(disk, "store", store_and_restart)
    return disk


def test_sequences_only_grow(disk: Disk) -> None:
    numbers = []
    for _ in range(4):
        number, mark = disk.ledger.next_sequence()
        disk.store(mark)
        numbers.append(number)
    assert numbers == [1, 2, 3, 4]


def test_rounds_never_repeat_or_go_back(disk: Disk) -> None:
    disk.ledger.check_round("digits", 1, 1)
    disk.store(disk.ledger.joined("digits", 9, 2))
    for round_, attempt in ((9, 2), (9, 1), (8, 5), (0, 1)):
        with pytest.raises(StaleError) as caught:
            disk.ledger.check_round("digits", round_, attempt)
        assert caught.value.cause == "replayed"
    disk.ledger.check_round("digits", 9, 3)
    disk.ledger.check_round("digits", 10, 1)  # not by the order of digits
    disk.ledger.check_round("letters", 1, 1)


def test_sequences_of_peers(disk: Disk) -> None:
    assert disk.ledger.peer_sequence("pi-1") == 0
    disk.store(disk.ledger.saw_peer("pi-1", 7))
    assert disk.ledger.peer_sequence("pi-1") == 7
    assert disk.ledger.peer_sequence("pi-2") == 0


def test_marks_of_a_round() -> None:
    ledger = DeviceLedger()
    assert ledger.rostered("digits", b"r") == Remember("roster/digits", b"r")
    assert ledger.masked(b"model", b"m") == Remember(f"masked/{b'model'.hex()}", b"m")
    assert ledger.unmasked("digits", b"u") == Remember("unmask/digits", b"u")


def test_one_masked_update_for_one_model(disk: Disk) -> None:
    disk.ledger.check_model(b"model")
    disk.store(disk.ledger.masked(b"model", b"vector"))
    with pytest.raises(RefusedError) as caught:
        disk.ledger.check_model(b"model")
    assert caught.value.cause == "spent-model"
    disk.ledger.check_model(b"next model")


def test_pins_of_peers_are_kept(disk: Disk) -> None:
    for mark in disk.ledger.pin(b"token", b"key"):
        disk.store(mark)
    assert disk.ledger.pins() == {b"token": b"key"}
    assert disk.ledger.pin(b"token", b"key") == []


def test_one_set_for_one_model(disk: Disk) -> None:
    disk.sign(b"model", b"set", b"members")
    disk.sign(b"model", b"set", b"members")  # the same again is the same signature
    with pytest.raises(RefusedError) as caught:
        disk.sign(b"model", b"another set", b"members")
    assert caught.value.cause == "second-set"
    with pytest.raises(RefusedError):  # in whichever group or task
        disk.sign(b"model", b"another set", b"other members", group="2-s-1")
    disk.sign(b"next model", b"another set", b"members")


def test_signing_the_same_again_costs_nothing(disk: Disk) -> None:
    disk.sign(b"model", b"set", b"members", cap=1)
    assert disk.ledger.sign_set(b"model", b"set", "1-s-0", b"members", 1) == []
    assert disk.ledger.exposure() == 1


def test_exposure_counts_distinct_sets_in_each_grouping(disk: Disk) -> None:
    for model, members, group in (
        (b"1", b"a", "1-s-0"),
        (b"2", b"b", "1-s-0"),
        (b"3", b"a", "1-s-0"),
        (b"4", b"a", "2-s-0"),
    ):
        disk.sign(model, b"set " + model, members, group=group)
    assert disk.ledger.exposures() == {"1-s-0": 2, "2-s-0": 1}
    assert disk.ledger.exposure() == 3


def test_exposure_is_capped(disk: Disk) -> None:
    disk.sign(b"1", b"s1", b"a", cap=2)
    disk.sign(b"2", b"s2", b"b", cap=2)
    with pytest.raises(RefusedError) as caught:
        disk.sign(b"3", b"s3", b"c", cap=2)
    assert caught.value.cause == "exposure"
    disk.sign(b"3", b"s4", b"a", cap=2)  # a set it was in before tells nothing new
    with pytest.raises(RefusedError):  # a new grouping does not make it forget
        disk.sign(b"4", b"s5", b"c", group="2-s-0", cap=2)
    disk.sign(b"5", b"s6", b"c", cap=0)  # no cap


def test_a_refused_signature_leaves_no_mark(disk: Disk) -> None:
    disk.sign(b"1", b"s1", b"a", cap=1)
    with pytest.raises(RefusedError):
        disk.sign(b"2", b"s2", b"b", cap=1)
    disk.sign(b"2", b"s3", b"a", cap=1)
    assert disk.ledger.exposure() == 1
