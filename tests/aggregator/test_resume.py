"""An aggregator that is killed at any instant goes on with the round that was open, or aborts it and says so."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from tests.aggregator.fleet import FLEET, Device, Fleet, make_homes, tiny_bundle
from tests.aggregator.test_coordinator import causes, check_never_again, closes

from covey_aggregator import journal
from covey_aggregator.coordinator import Phase
from covey_aggregator.home import DATABASE_FILE, SPOOLS
from covey_aggregator.journal import GRACE, GRACE_SHARE, RESUMED, Journal
from covey_aggregator.service import Service
from covey_aggregator.task import Attestation
from covey_protocol import envelope, topics
from covey_protocol.effects import Effect, Publish
from covey_protocol.messages import Abort, Close, Windows
from covey_protocol.payload import read
from covey_protocol.round_table import GroupStage

When = Literal["before", "after", "said"]
SKETCHING: dict[str, Any] = {"attestation": Attestation(sketch=8), "reputation": "observe"}  # updates are random here


class KilledError(Exception):
    """The aggregator's process is gone."""


class Mortal(Fleet):
    """A fleet whose aggregator dies at commits: before one, after one, or when what follows from it was said.

    Attributes:
        sentence: Says whether, and how, to die at a commit, by its number.
        commits: How many there were.
    """

    sentence: Callable[[int], When | None] = staticmethod(lambda _number: None)
    commits = 0

    def carry(self, effects: list[Effect]) -> None:
        self.commits += 1
        when = self.sentence(self.commits)
        if when == "before":
            raise KilledError
        if when == "after":
            self.coordinator.commit()
            raise KilledError
        super().carry(effects)
        if when == "said":
            raise KilledError

    def to_server(self, name: str, kind: str, data: bytes, transfer: bool = False) -> None:
        try:
            super().to_server(name, kind, data, transfer)
        except KilledError:  # it was not acknowledged, so the broker delivers it again
            self._queue.appendleft(partial(self.to_server, name, kind, data, transfer))
            raise

    def live_on(self, task: str = "digits") -> int:
        """Run to the end of a task, starting the aggregator again whenever it dies; return how often that was."""
        deaths, down = 0, False
        while True:
            try:
                if down:
                    self.restart()
                down = False
                self.finish(task)
                return deaths
            except KilledError:
                deaths, down = deaths + 1, True

    def masked_twice(self) -> list[tuple[str, str]]:
        """Return devices that sent two masked vectors, or signed two sets, for one model."""
        models = {(o.task, o.round, o.attempt): o.manifest.model.digest for o in self.opened}
        said = Counter[tuple[str, str, bytes]]()
        for name, kind, data in {(name, send.kind, send.data) for name, send in self.wire if not send.transfer}:
            if kind in (topics.MASKED, topics.SURVIVORS, topics.ATTEST, topics.ACCEPT):
                message = envelope.parse(data)
                said[name, kind, models[message.task, message.round, message.attempt]] += 1
        return [(name, kind) for (name, kind, _), count in said.items() if count > 1]


def check_sums(fleet: Mortal) -> None:
    """Every round's step is that of the clear updates of exactly its survivors."""
    before = tiny_bundle().weights
    opened = {(o.round, o.attempt): o for o in fleet.opened}
    for record in fleet.records():
        after = fleet.weights(bytes.fromhex(record.model))
        if record.accepted:
            step, tolerance = fleet.plain_step(record, opened[record.round, record.attempt], fleet.row().task)
            assert np.abs(after - before - step).max() <= tolerance
        before = after


def check_whole(fleet: Mortal, rounds: int, devices: int) -> None:
    assert fleet.row().status == "done"
    assert [(record.round, record.attempt) for record in fleet.records()] == [(n, 1) for n in range(1, rounds + 1)]
    assert {record.accepted for record in fleet.records()} == {devices}
    assert closes(fleet) == rounds
    steps = [read(Close, envelope.parse(e.data).payload).delta.base for e in fleet.published if e.kind == topics.CLOSE]
    assert steps == [opened.manifest.model.digest for opened in fleet.opened]
    assert fleet.masked_twice() == []
    check_sums(fleet)
    check_never_again(fleet)
    assert fleet.store.head() is None
    assert list((fleet.home.path / SPOOLS).iterdir()) == []


@pytest.mark.parametrize("sketches", [{}, SKETCHING], ids=["plain", "sketches"])
def test_a_kill_at_every_commit_costs_nothing(tmp_path: Path, sketches: dict[str, Any]) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=2, **sketches)
    rng = random.Random(7)
    fleet.sentence = lambda _number: rng.choice(["before", "after", "said", None])
    assert fleet.live_on() > 60
    check_whole(fleet, 2, 5)
    assert sum(record.resumed for record in fleet.records()) > 30


@pytest.mark.parametrize(
    "number", [*range(1, 65, 9), *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 65) if n % 9 != 1)]
)
@pytest.mark.parametrize("when", ["before", "after", "said"])
@pytest.mark.parametrize("sketches", [{}, SKETCHING], ids=["plain", "sketches"])
def test_a_kill_at_any_commit_costs_nothing(tmp_path: Path, number: int, when: When, sketches: dict[str, Any]) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=2, **sketches)
    first = fleet.commits
    fleet.sentence = lambda commit: when if commit == first + number else None
    assert fleet.live_on() == 1
    check_whole(fleet, 2, 5)


def in_stage(fleet: Fleet, stage: GroupStage) -> bool:
    run = fleet.coordinator.run
    return run is not None and all(group.stage is stage for group in run.groups.values())


STAGES = [
    GroupStage.JOINING,
    GroupStage.SHARING,
    GroupStage.MASKING,
    GroupStage.SIGNING,
    GroupStage.ATTESTING,
    GroupStage.ACCEPTING,
    GroupStage.UNMASKING,
    GroupStage.SUMMING,
]


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_lost_on_its_way_is_said_again_byte_for_byte(tmp_path: Path, stage: GroupStage) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=1, **SKETCHING)
    fleet.hold_jobs = stage is GroupStage.ATTESTING
    if stage is GroupStage.SUMMING:
        fleet.run_until(lambda: in_stage(fleet, GroupStage.UNMASKING))
    else:
        fleet.run_until(lambda: in_stage(fleet, stage))
    fleet.hold_jobs = True
    fleet.run_until(lambda: in_stage(fleet, stage))
    fleet.repeated.clear()
    fleet.restart()
    assert in_stage(fleet, stage)
    kinds = {effect.kind for effect in fleet.repeated}
    last = {
        GroupStage.JOINING: set(),
        GroupStage.SHARING: {topics.ROSTER},
        GroupStage.MASKING: set(),  # DEALT goes to each device by itself
        GroupStage.SIGNING: {topics.SURVIVORS},
        GroupStage.ATTESTING: {topics.ATTEST},
        GroupStage.ACCEPTING: {topics.ATTEST, topics.ACCEPT},
        GroupStage.UNMASKING: {topics.UNMASK},
        GroupStage.SUMMING: set(),
    }[stage]
    assert kinds == {topics.GROUPS, topics.OPEN, topics.DELEGATION, topics.POLICY} | last | (kinds & {topics.TIME})
    fleet.hold_jobs = False
    fleet.finish()
    check_whole(fleet, 1, 5)


def test_time_passes_while_the_aggregator_is_down_but_leaves_a_grace(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=1, windows=Windows(join=10, shares=10, masked=1000, survivors=10, unmask=10))
    fleet.silent_from["pi-0"] = topics.MASKED
    fleet.run_until(lambda: in_stage(fleet, GroupStage.MASKING) and not fleet._queue)
    (group,) = fleet.coordinator.run.groups.values()  # type: ignore[union-attr]
    left = group.deadline - (fleet.now - fleet.coordinator.run.started)  # type: ignore[union-attr]
    fleet.now += 100
    fleet.restart()
    run = fleet.coordinator.run
    assert run is not None
    (group,) = run.groups.values()
    assert group.deadline - (fleet.now - run.started) == pytest.approx(left - 100)
    fleet.now += 3000
    fleet.restart()
    run = fleet.coordinator.run
    assert run is not None
    (group,) = run.groups.values()
    assert group.deadline - (fleet.now - run.started) == pytest.approx(1000 * GRACE_SHARE)
    assert fleet.finish().status == "done"
    (record,) = fleet.records()
    assert (record.accepted, record.resumed) == (4, 2)
    assert record.seconds > 3100


def test_a_wall_clock_that_was_set_back_costs_no_time(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=1)
    fleet.run_until(lambda: in_stage(fleet, GroupStage.SHARING))
    before = [entry.at for entry in Journal(fleet.store).entries()]
    fleet.wall -= 1e6
    fleet.restart()
    times = [entry.at for entry in Journal(fleet.store).entries()]
    assert len(times) > len(before)
    assert times == sorted(times)
    fleet.finish()
    check_whole(fleet, 1, 5)
    assert 0 <= fleet.records()[0].seconds < 100


@pytest.mark.parametrize("stage", [GroupStage.SHARING, GroupStage.MASKING, GroupStage.SIGNING])
def test_a_stage_that_ran_out_is_over_after_a_restart_too(tmp_path: Path, stage: GroupStage) -> None:
    fleet = Mortal(tmp_path, 6)
    fleet.start(rounds=1, group_size=6)
    quiet = {GroupStage.SHARING: topics.JOIN, GroupStage.MASKING: topics.SHARES, GroupStage.SIGNING: topics.MASKED}
    fleet.silent_from["pi-0"] = quiet[stage]
    fleet.run_until(lambda: in_stage(fleet, stage))
    said = {effect.kind for effect in fleet.published}
    fleet.restart()
    assert in_stage(fleet, stage)
    assert {effect.kind for effect in fleet.published} == said
    fleet.finish()
    check_whole(fleet, 1, 5)


def test_whom_nobody_waits_for_is_not_waited_for_after_a_restart(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 6)
    fleet.start(rounds=1, group_size=6, windows=Windows(join=999, shares=999, masked=999, survivors=999, unmask=999))
    fleet.silent_from["pi-0"] = topics.SHARES
    fleet.run_until(lambda: in_stage(fleet, GroupStage.SHARING))
    fleet.last_will("pi-0")
    fleet.run_until(lambda: in_stage(fleet, GroupStage.MASKING))
    fleet.restart()
    assert in_stage(fleet, GroupStage.MASKING)
    assert causes(fleet).count("abandoned") == 0
    fleet.finish()
    check_whole(fleet, 1, 5)
    assert fleet.records()[0].seconds < 200


def test_a_broker_that_was_away_leaves_devices_time_to_answer(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=1)
    fleet.run_until(lambda: in_stage(fleet, GroupStage.SHARING))
    fleet.now += 1000
    fleet.coordinator.reconnected(fleet.now)
    fleet.finish()
    check_whole(fleet, 1, 5)
    fleet.coordinator.reconnected(fleet.now)  # nothing is open


def test_an_opening_of_an_epoch_goes_on(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 6)
    fleet.start(rounds=1)
    fleet.run_until(lambda: any(send.kind == topics.OPENING for _, send in fleet.wire))
    fleet.now += 3600
    fleet.restart()
    assert fleet.coordinator.phase is Phase.GROUPING
    fleet.finish()
    check_whole(fleet, 1, 6)
    assert [opened.manifest.epoch for opened in fleet.opened] == [1]
    assert any("opening of epoch 1 resumed after 360" in note.text for note in fleet.notes)


def masking(folder: Path) -> Mortal:
    """A fleet in the middle of MASKED, with some vectors there and some not."""
    fleet = Mortal(folder, 5)
    fleet.start(rounds=1)
    fleet.run_until(lambda: Journal(fleet.store)._store.count_entries("vector") == 2)
    return fleet


def _damage(fleet: Mortal, statement: str, *values: object) -> None:
    with sqlite3.connect(fleet.home.path / DATABASE_FILE) as database:
        database.execute(statement, values)
    database.close()


def _spoil_spool(fleet: Mortal) -> None:
    (path,) = (fleet.home.path / SPOOLS).glob("*.vectors")
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def _cut_spool(fleet: Mortal) -> None:
    (path,) = (fleet.home.path / SPOOLS).glob("*.vectors")
    path.write_bytes(path.read_bytes()[:-1])


def _lose_key(fleet: Mortal) -> None:
    (path,) = (fleet.home.path / SPOOLS).glob("*.key")
    path.unlink()


DAMAGE: dict[str, tuple[Callable[[Mortal], None], str]] = {
    "head": (lambda f: _damage(f, "UPDATE journal_head SET head = x'00'"), "the head of its journal is damaged"),
    "version": (
        lambda f: _damage(f, "UPDATE journal_head SET version = 99"),
        "its journal is of version 99, this is version 2",
    ),
    "missing": (lambda f: _damage(f, "DELETE FROM journal WHERE id = 3"), "leads to other messages than before"),
    "order": (
        lambda f: _damage(f, "UPDATE journal SET id = -1 WHERE id = (SELECT max(id) FROM journal)"),
        "line 1 of its journal, ",
    ),
    "said": (
        lambda f: _damage(f, "UPDATE journal SET said = zeroblob(32) WHERE said != x''"),
        "leads to other messages than before",
    ),
    "message": (
        lambda f: _damage(f, "UPDATE journal SET data = zeroblob(50) WHERE kind = 'shares'"),
        "is refused: not a signed message",
    ),
    "spool": (_spoil_spool, "is not the one it signed"),
    "cut": (_cut_spool, "the spool ends before the vector"),
    "key": (_lose_key, "its journal is of no use"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_journal_that_leads_elsewhere_aborts_the_round(tmp_path: Path, damage: str) -> None:
    fleet = masking(tmp_path)
    spoil, reason = DAMAGE[damage]
    fleet.coordinator.commit()
    spoil(fleet)
    fleet.restart()
    (aborted,) = [effect for effect in fleet.published if effect.kind == topics.ABORT]
    body = read(Abort, envelope.parse(aborted.data).payload)
    assert body.cause == "journal"
    assert reason in body.reason
    assert any(reason in note.text for note in fleet.notes if note.cause == "abandoned")
    assert not list((fleet.home.path / SPOOLS).glob("digits-1-1.*"))
    row = fleet.finish()
    assert row.status == "done"
    failed, closed = fleet.records()
    assert (failed.attempt, failed.groups_aborted, failed.details[0].cause) == (1, 1, "journal")
    assert (closed.attempt, closed.accepted) == (2, 5)
    assert len({opened.manifest.model.digest for opened in fleet.opened}) == 2
    fleet.run_until(lambda: not fleet._queue)
    assert all(device.round is not None and device.round.closed for device in fleet.devices.values())
    assert fleet.masked_twice() == []
    check_never_again(fleet)


def test_an_opening_whose_journal_is_damaged_begins_anew(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 6)
    fleet.start(rounds=1)
    fleet.run_until(lambda: any(send.kind == topics.OPENING for _, send in fleet.wire))
    fleet.coordinator.commit()
    _damage(fleet, "UPDATE journal SET said = zeroblob(32) WHERE said != x''")
    fleet.restart()
    fleet.finish()
    check_whole(fleet, 1, 6)
    assert [opened.manifest.epoch for opened in fleet.opened] == [2]


def test_another_version_of_the_code_says_nothing_in_a_round_that_it_would_have_led_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = masking(tmp_path)
    fleet.published.clear()
    monkeypatch.setattr(journal, "VERSION", journal.VERSION + 1)
    fleet.restart()
    assert topics.ABORT in {effect.kind for effect in fleet.published}
    said = {effect.kind for effect in fleet.published} - {topics.DELEGATION, topics.POLICY, topics.TIME}
    assert said <= {topics.ABORT, topics.OPEN, topics.BLOB, topics.GROUPS}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_task_that_is_stopped_in_a_round_aborts_its_groups(tmp_path: Path, restarted: bool) -> None:
    fleet = masking(tmp_path)
    fleet.coordinator.commit()
    if restarted:
        fleet.store.set_status("digits", "stopping", "stopped by the operator")
        fleet.store.commit()
        fleet.restart()
    else:
        fleet.carry(fleet.coordinator.stop_task("digits"))
    assert fleet.row().status == "stopped"
    fleet.run_until(lambda: not fleet._queue)
    assert all(device.round is not None and device.round.aborted for device in fleet.devices.values())
    assert list((fleet.home.path / SPOOLS).iterdir()) == []
    assert fleet.store.head() is None


def test_the_last_words_of_a_task_are_said_again(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=1)
    done = False

    def sentence(_number: int) -> When | None:
        nonlocal done
        if fleet.records() and not done:  # the record is there, and CLOSE is not said
            done = True
            return "after"
        return None

    fleet.sentence = sentence
    assert fleet.live_on() == 1
    fleet.run_until(lambda: not fleet._queue)
    assert closes(fleet) == 1
    assert all(device.round is not None and device.round.closed for device in fleet.devices.values())
    last = [effect for effect in fleet.published if effect.kind == topics.OPEN][-1]
    assert (last.data, last.retain) == (b"", True)


def test_a_step_outlives_a_restart(tmp_path: Path) -> None:
    fleet = Mortal(tmp_path, 5)
    fleet.start(rounds=2)

    done = False

    def sentence(_number: int) -> When | None:
        nonlocal done
        if len(fleet.records()) == 1 and not done:
            done = True
            return "after"
        return None

    fleet.sentence = sentence
    assert fleet.live_on() == 1
    assert fleet.opened[1].manifest.delta is not None  # devices need not fetch the whole model


def test_files_of_rounds_that_are_not_open_are_cleared_away(tmp_path: Path) -> None:
    fleet = masking(tmp_path)
    spools = fleet.home.path / SPOOLS
    mine = {path.name for path in spools.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in spools.iterdir()} == {0o600}
    for name in ("digits-7-1.key", "digits-7-1.vectors"):
        (spools / name).write_bytes(bytes(32))
    fleet.restart()
    assert {path.name for path in spools.iterdir()} == mine


def test_the_journal_says_how_often_a_round_was_taken_up_again(tmp_path: Path) -> None:
    fleet = masking(tmp_path)
    for times in range(1, 4):
        fleet.restart()
        assert Journal(fleet.store).resumed == times
    kinds = [entry.kind for entry in Journal(fleet.store).entries()]
    assert (kinds.count(RESUMED), kinds.count(GRACE)) == (3, 0)
    fleet.finish()
    assert fleet.records()[0].resumed == 3
    assert causes(fleet).count("resumed") == 3


def noted(order: list[str], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Note every call of a function."""
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        order.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def test_nothing_is_said_or_acknowledged_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, home = make_homes(tmp_path)
    service, order = Service(home), list[str]()
    noted(order, monkeypatch, service.store, "commit")
    noted(order, monkeypatch, service.link, "publish")
    service._gathered.append(Publish(topics.OPEN, "digits", b""))
    state = Device("pi-0", operator, home).state()
    service.on_message(topics.up(FLEET, "pi-0", topics.STATE), state, lambda: order.append("acknowledge"))
    assert order == ["commit", "publish", "commit", "acknowledge"]
    order.clear()

    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(service.store, "commit", full)
    service._gathered.append(Publish(topics.OPEN, "digits", b""))
    with pytest.raises(sqlite3.OperationalError):
        service.on_message(topics.up(FLEET, "pi-0", topics.STATE), state, lambda: order.append("acknowledge"))
    assert order == []
    service.store.close()


def test_vectors_are_durable_before_the_journal_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = masking(tmp_path)
    order = list[str]()
    noted(order, monkeypatch, os, "fdatasync")
    noted(order, monkeypatch, fleet.store, "commit")
    fleet.run_until(lambda: fleet.store.count_entries("vector") == 3)
    assert order[-2:] == ["fdatasync", "commit"]
