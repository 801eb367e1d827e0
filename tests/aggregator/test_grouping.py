"""Opening an epoch over all shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.aggregator.fleet import FLEET, Device, make_homes

from covey_aggregator.grouping import EpochRun
from covey_aggregator.journal import Journal
from covey_aggregator.store import Store
from covey_protocol import epochs, topics
from covey_protocol.effects import Effect, Note, Publish
from covey_protocol.errors import PeerError, StaleError


class Opening:
    """An epoch's opening with its devices."""

    def __init__(self, folder: Path, count: int, *, list_min: int = 4) -> None:
        operator, self.home = make_homes(folder)
        self.devices = {name: Device(name, operator, self.home) for name in (f"pi-{n}" for n in range(count))}
        self.store = Store(":memory:")
        self.list_min, self.epoch = list_min, 0
        self.silent: dict[str, str] = {}
        self.notes: list[Note] = []

    def run(self) -> EpochRun:
        self.epoch += 1
        return EpochRun(
            fleet=FLEET,
            key=self.home.key,
            epoch=self.epoch,
            members={name: bytes(device.key.verify_key) for name, device in self.devices.items()},
            group_size=5,
            list_min=self.list_min,
            window=10,
            journal=Journal(self.store),
            now=0,
        )

    def carry(self, run: EpochRun, effects: list[Effect], now: float) -> None:
        self.notes += [effect for effect in effects if isinstance(effect, Note)]
        for effect in effects:
            if not isinstance(effect, Publish):
                continue
            for name, device in self.devices.items():
                if effect.id not in epochs.own_labels(name):
                    continue
                try:
                    sends = device.take(effect.kind, effect.id, effect.data)
                except PeerError:
                    continue  # not on this list
                for send in sends:
                    if self.silent.get(name) != send.kind:
                        self.carry(run, run.receive(send.kind, name, send.data, now), now)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = epochs.shards
    monkeypatch.setattr(epochs, "shards", lambda members: shards(members, 20))


@pytest.mark.usefixtures("small_shards")
def test_every_shard_gets_its_own_groups_and_every_device_agrees_with_its_own(tmp_path: Path) -> None:
    opening = Opening(tmp_path, 30)
    run = opening.run()
    opening.carry(run, run.start(0), 0)
    assert run.over
    groupings = run.groupings()
    assert len({grouping.group.split("-")[1] for grouping in groupings}) > 1
    assert len({grouping.group for grouping in groupings}) == len(groupings)
    placed = {name: grouping for grouping in groupings for name, _ in grouping.members}
    assert {name: device.member.grouping for name, device in opening.devices.items()} == placed
    assert len(placed) == sum(len(grouping.members) for grouping in groupings) == 30


def test_who_does_not_commit_is_left_out(tmp_path: Path) -> None:
    opening = Opening(tmp_path, 8)
    opening.silent["pi-3"] = topics.COMMITMENT
    run = opening.run()
    opening.carry(run, run.start(0), 0)
    opening.carry(run, run.tick(9.9), 9.9)
    assert not run.over
    opening.carry(run, run.tick(10), 10)
    assert run.over
    assert {name for grouping in run.groupings() for name, _ in grouping.members} == set(opening.devices) - {"pi-3"}


def test_who_commits_and_does_not_open_makes_it_start_again_without_him(tmp_path: Path) -> None:
    opening = Opening(tmp_path, 8)
    opening.silent["pi-3"] = topics.OPENING
    run = opening.run()
    opening.carry(run, run.start(0), 0)
    opening.carry(run, run.tick(10), 10)
    assert [(note.cause, "pi-3" in note.text) for note in opening.notes] == [("epoch-restart", True)]
    assert run.over
    assert "pi-3" not in {name for grouping in run.groupings() for name, _ in grouping.members}
    assert opening.devices["pi-3"].member.grouping is None


def test_too_few_members_make_no_epoch(tmp_path: Path) -> None:
    opening = Opening(tmp_path, 5, list_min=6)
    run = opening.run()
    opening.carry(run, run.start(0), 0)
    assert (run.over, run.groupings()) == (True, [])
    assert [note.cause for note in opening.notes] == ["epoch-failed"]


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    opening = Opening(tmp_path, 30)
    bits, cut = epochs.shards(opening.devices)
    lost = cut[min(cut)]
    opening.silent = dict.fromkeys(lost, topics.COMMITMENT)
    run = opening.run()
    opening.carry(run, run.start(0), 0)
    assert not run.over
    opening.carry(run, run.tick(10), 10)
    assert run.over
    placed = {name for grouping in run.groupings() for name, _ in grouping.members}
    assert placed == set(opening.devices) - set(lost)
    assert bits > 0


def test_a_stranger_is_told_that_no_list_names_it(tmp_path: Path) -> None:
    opening = Opening(tmp_path, 5)
    run = opening.run()
    run.start(0)
    with pytest.raises(StaleError) as caught:
        run.receive(topics.COMMITMENT, "stranger", b"", 0)
    assert caught.value.cause == "not-listed"
