"""The coordinator with a fleet of real devices in memory, through everything that can go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.aggregator.fleet import DIMENSION, FLEET, WINDOWS, Device, Fleet, tiny_bundle

from covey_aggregator.coordinator import Phase
from covey_aggregator.regrouping import PURSE, REFILL_ROUNDS
from covey_aggregator.rules import RuleField
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_aggregator.windows import ENOUGH, FLOOR, LOST_GRACE
from covey_protocol import envelope, topics
from covey_protocol.errors import PeerError, StaleError
from covey_protocol.policy import Policy


@pytest.fixture
def make_fleet(tmp_path: Path) -> Callable[..., Fleet]:
    return lambda devices=12, **options: Fleet(tmp_path, devices, **options)


def closes(fleet: Fleet) -> int:
    return sum(effect.kind == topics.CLOSE for effect in fleet.published)


def causes(fleet: Fleet) -> list[str]:
    return [note.cause for note in fleet.notes]


def check_never_again(fleet: Fleet, *, left_out: bool = False) -> None:
    """No round number, epoch or spent model was ever used twice, and no device had to refuse one.

    With ``left_out`` devices may notice that what they said got lost.
    """
    rounds = [(opened.task, opened.round, opened.attempt) for opened in fleet.opened]
    assert len(set(rounds)) == len(rounds)
    assert rounds == sorted(rounds, key=lambda place: (place[0] != rounds[0][0], place[1:]))
    lists = [envelope.parse(effect.data) for effect in fleet.published if effect.kind == topics.EPOCH]
    numbers = [(message.round, message.attempt) for message in lists]
    assert numbers == sorted(set(numbers))
    versions = Counter[tuple[Any, ...]]()  # of every message that members must not hear two versions of
    for effect in fleet.published:
        if effect.kind in (topics.ROSTER, topics.SURVIVORS, topics.UNMASK, topics.ABORT, topics.COMMITMENTS):
            message = envelope.parse(effect.data)
            versions[effect.kind, effect.id, message.task, message.round, message.attempt] += 1
    assert set(versions.values()) <= {1}
    models = [opened.manifest.model.digest for opened in fleet.opened]
    assert all(model not in models[opened:] for model, opened in fleet.spent.items())
    lost = {"commitments", "openings", "roster", "dealt"} if left_out else set()
    assert not [error for who, error in fleet.refused if who != "aggregator" and error.cause not in lost]


@pytest.mark.parametrize("rule", ["trimmed-mean", MultiKrum(f=1), "mean"], ids=str)
def test_a_task_reaches_the_model_that_the_plain_computation_reaches(
    make_fleet: Callable[..., Fleet], rule: RuleField
) -> None:
    fleet = make_fleet(20)
    task = fleet.start(rounds=3, rule=rule, beta=0.25)
    row = fleet.finish()
    records = fleet.records()
    assert (row.status, row.reason, [record.round for record in records]) == ("done", "", [1, 2, 3])
    before = tiny_bundle().weights
    for record, opened in zip(records, fleet.opened, strict=True):
        assert (record.participants, record.accepted, record.groups, record.groups_aborted) == (20, 20, 4, 0)
        step, tolerance = fleet.plain_step(record, opened, task)
        after = fleet.weights(bytes.fromhex(record.model))
        assert np.abs(after - before - step).max() <= tolerance
        assert record.federated_accuracy == pytest.approx(0.5, abs=0.01)
        assert record.federated_loss == pytest.approx(1.5, abs=0.05)
        assert record.clip == 1.0
        before = after
    assert row.model == bytes.fromhex(records[-1].model)
    assert closes(fleet) == 3
    assert [effect.id for effect in fleet.published if effect.data == tiny_bundle().encode()] == [
        tiny_bundle().digest.hex()  # once, not with every round
    ]
    check_never_again(fleet)
    last = fleet.published[-1]
    assert (last.kind, last.id, last.data, last.retain) == (topics.OPEN, "digits", b"", True)


def test_the_first_round_waits_for_enough_devices_that_have_settled(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(5)
    fleet.start(rounds=1, devices_min=6, settle=3.0)
    fleet.run_until(lambda: fleet.now >= 1020)
    assert fleet.coordinator.phase is Phase.GATHERING
    fleet.arrive("late")
    arrived = fleet.now
    fleet.run_to(Phase.GROUPING)
    assert fleet.now >= arrived + 3
    assert fleet.finish().status == "done"


def test_a_device_that_repeats_itself_does_not_put_the_first_epoch_off(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(5)
    fleet.start(rounds=1, devices_min=5, settle=3.0)
    name = next(iter(fleet.devices))

    def repeated() -> bool:
        fleet.to_server(name, topics.STATE, fleet.devices[name].state())
        return fleet.coordinator.phase is not Phase.GATHERING or fleet.now > 1030

    fleet.run_until(lambda: fleet.coordinator.phase is Phase.GATHERING)
    fleet.run_until(repeated)
    assert fleet.coordinator.phase is Phase.GROUPING


def test_a_group_that_aborts_does_not_stop_the_others_and_a_new_epoch_opens_without_the_silent(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(15)
    fleet.start(rounds=2)
    fleet.run_to(Phase.ROUND)
    assert fleet.coordinator.run is not None
    group, run = next(iter(fleet.coordinator.run.groups.items()))
    lost = [name for name, _ in run.grouping.members][:3]
    for name in lost:
        fleet.silent_from[name] = topics.MASKED
    fleet.run_until(lambda: fleet.silent == set(lost))
    for name in lost:
        fleet.last_will(name)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    (first,) = fleet.records()
    assert (first.groups, first.groups_aborted, first.accepted, first.dropped) == (3, 1, 10, 5)
    aborted = next(detail for detail in first.details if detail.cause)
    assert (aborted.group, aborted.cause, aborted.survivors) == (group, "too-few-survivors", [])
    said = " ".join(note.text for note in fleet.notes)
    assert f"group {group} aborted: 2 masked vectors arrived, a_min is 4" in said
    assert f"group {group}, masking: not waiting for {', '.join(sorted(lost))}" in said
    assert "too-few-survivors" in causes(fleet)
    assert fleet.finish().status == "done"
    assert f"group {group} fell under its floor" in " ".join(note.text for note in fleet.notes)
    first_epoch, second_epoch = (opened.manifest.epoch for opened in fleet.opened)
    assert second_epoch == first_epoch + 1
    regrouped = {name for grouping in fleet.store.groupings() for name, _ in grouping.members}
    assert regrouped == set(fleet.devices) - set(lost)
    check_never_again(fleet)


def test_groups_stay_together_until_the_epoch_is_over(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    fleet.start(rounds=5, epoch_rounds=2)
    assert fleet.finish().status == "done"
    assert [opened.manifest.epoch for opened in fleet.opened] == [1, 1, 2, 2, 3]
    assert "2 rounds have passed" in " ".join(note.text for note in fleet.notes)
    check_never_again(fleet)


@pytest.mark.parametrize(("newcomers", "epochs"), [(1, [1, 1, 2]), (2, [1, 2, 2])])
def test_a_tenth_of_newcomers_opens_a_new_epoch_and_fewer_wait_for_its_end(
    make_fleet: Callable[..., Fleet], newcomers: int, epochs: list[int]
) -> None:
    fleet = make_fleet(16)
    fleet.start(rounds=3, epoch_rounds=2)
    fleet.run_to(Phase.ROUND)
    names = [f"new-{number}" for number in range(newcomers)]
    fleet.arrive(*names)
    assert fleet.finish().status == "done"
    assert [opened.manifest.epoch for opened in fleet.opened] == epochs
    took_part = [
        set(names) <= {name for group in record.details for name in group.members} for record in fleet.records()
    ]
    assert took_part == [epoch == 2 for epoch in epochs]


def test_a_late_comer_is_in_the_rounds_before_the_purse_has_filled_twice(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    fleet.start(rounds=60)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    waited = []
    for number in range(4):  # each as soon as the last ones are in: more often than the purse bears
        names = {f"new-{number}", f"more-{number}"}
        fleet.arrive(*names)
        since = len(fleet.records())

        def came(names: set[str] = names) -> bool:
            return names <= {name for group in fleet.records()[-1].details for name in group.survivors}

        fleet.run_until(came)
        waited.append(len(fleet.records()) - since)
    assert waited[:2] == [2, 2]  # in the round that follows the one that was open
    assert all(2 < rounds <= 2 * REFILL_ROUNDS + 2 for rounds in waited[2:])


@pytest.mark.parametrize("restart", [False, True])
def test_a_group_that_aborts_again_is_drawn_anew_without_those_who_caused_it(
    make_fleet: Callable[..., Fleet], restart: bool
) -> None:
    fleet = make_fleet(12)
    fleet.start(rounds=4, group_size=6)
    fleet.run_to(Phase.ROUND)
    assert fleet.coordinator.run is not None
    group, run = next(iter(fleet.coordinator.run.groups.items()))
    lost = sorted(name for name, _ in run.grouping.members[:3])
    fleet.silent_from.update(dict.fromkeys(lost, topics.SHARES))
    if restart:  # neither the strikes nor the reason to regroup are forgotten
        fleet.run_until(lambda: len(fleet.records()) == 3)
        fleet.restart()
    assert fleet.finish().status == "done"
    assert [opened.manifest.epoch for opened in fleet.opened] == [1, 1, 1, 2]
    assert f"epoch 2 of 9 devices, without {', '.join(lost)}: group {group} aborted again" in [
        note.text for note in fleet.notes
    ]
    assert [record.accepted for record in fleet.records()] == [6, 6, 6, 9]
    check_never_again(fleet)


def test_a_restart_does_not_make_an_epoch_longer(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=4, epoch_rounds=2)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    fleet.run_until(lambda: not fleet._queue or fleet.wire[-1][1].kind == topics.SHARES)
    fleet.restart()
    assert fleet.finish().status == "done"
    assert [opened.manifest.epoch for opened in fleet.opened if opened.attempt == 1] == [1, 1, 2, 2]


def test_a_model_that_devices_have_masked_for_is_not_used_again(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=1)
    for name in ("pi-0", "pi-1"):
        fleet.silent_from[name] = topics.UNMASK  # t = 3 of 4 have signed, 2 reveal
    fleet.run_until(lambda: bool(fleet.records()))
    fleet.silent.clear()
    fleet.silent_from.clear()
    assert fleet.finish().status == "done"
    first, second = (fleet.weights(opened.manifest.model.digest) for opened in fleet.opened)
    assert not np.array_equal(first, second)
    assert np.linalg.norm(first - second) < 1e-3 * np.linalg.norm(first)
    assert len(fleet.spent) == 2
    check_never_again(fleet)


def test_a_round_that_moves_nothing_still_leads_to_a_new_model(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "update", lambda *_: np.zeros(DIMENSION, np.float32))
    fleet = make_fleet(4)
    fleet.start(rounds=3)
    assert fleet.finish().status == "done"
    assert len({opened.manifest.model.digest for opened in fleet.opened}) == 3
    check_never_again(fleet)


def test_a_task_fails_with_its_reason_when_its_attempts_are_used_up(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    for name in fleet.devices:
        fleet.silent_from[name] = topics.SHARES
    task = fleet.start(rounds=1, attempts=1)
    row = fleet.finish(task.name)
    assert (row.status, row.reason) == ("failed", "round 1.1: every group aborted (1 times in a row)")
    assert fleet.coordinator.phase is Phase.IDLE


def test_an_epoch_that_does_not_come_about_counts_as_a_failed_attempt(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    for name in fleet.devices:
        fleet.silent_from[name] = topics.COMMITMENT
    fleet.start(rounds=1, attempts=3)
    row = fleet.finish()
    assert (row.status, row.reason) == ("failed", "no groups came about (3 times in a row)")
    assert causes(fleet).count("epoch-failed") == 3
    assert fleet.store.number("epoch") == 3  # no number is used again, not even when nothing came of it
    check_never_again(fleet)


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.GROUPING, Phase.ROUND, Phase.COMBINING])
def test_a_task_that_is_stopped_ends_in_any_phase_and_the_next_one_runs(
    make_fleet: Callable[..., Fleet], phase: Phase
) -> None:
    fleet = make_fleet(8)
    fleet.hold_jobs = phase is Phase.COMBINING
    fleet.start(rounds=3, devices_min=9 if phase is Phase.GATHERING else 4)
    fleet.start(name="second", rounds=1)
    if phase is Phase.COMBINING:
        fleet.run_until(lambda: len(fleet._jobs) == 2)  # the groups' sums
        fleet.hold_jobs = False
        fleet.run_until(lambda: fleet.coordinator.phase is phase)
        fleet._jobs.clear()
    fleet.run_to(phase)
    assert fleet.coordinator.stop_task("nobody") == []
    fleet.carry(fleet.coordinator.stop_task("digits"))
    assert (fleet.row().status, fleet.row().reason) == ("stopped", "stopped by the operator")
    assert fleet.finish("second").status == "done"
    assert [record.round for record in fleet.records("second")] == [1]


def test_tasks_run_one_after_the_other_in_the_order_they_were_started(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    fleet.start(name="zebra", rounds=2)
    fleet.start(name="ant", rounds=1)
    fleet.finish("ant")
    assert [(opened.task, opened.round) for opened in fleet.opened] == [("zebra", 1), ("zebra", 2), ("ant", 1)]
    assert [row.status for row in fleet.store.tasks()] == ["done", "done"]
    assert {opened.manifest.epoch for opened in fleet.opened} == {1}  # the groups outlive the task


def test_a_finished_tasks_model_outlives_the_rounds_of_later_tasks(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(name="first", rounds=1)
    fleet.start(name="second", rounds=12)
    assert fleet.finish("second").status == "done"
    assert len(fleet.weights(fleet.row("first").model))


@pytest.mark.parametrize("damage", ["bundle", "held-out"])
def test_a_task_whose_files_are_gone_fails_and_the_next_one_runs(
    make_fleet: Callable[..., Fleet], damage: str, tmp_path: Path
) -> None:
    fleet = make_fleet(4)
    missing = str(tmp_path / "gone")
    changes = {"bundle": missing} if damage == "bundle" else {"held_out": missing}
    fleet.start(name="broken", **changes)
    fleet.start(name="whole", rounds=1)
    assert fleet.finish("whole").status == "done"
    row = fleet.row("broken")
    assert row.status == "failed"
    assert missing in row.reason


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.GROUPING, Phase.ROUND, Phase.COMBINING])
def test_after_a_restart_the_task_goes_on_where_it_was(make_fleet: Callable[..., Fleet], phase: Phase) -> None:
    fleet = make_fleet(8)
    fleet.start(rounds=2, devices_min=9 if phase is Phase.GATHERING else 4)
    fleet.run_to(phase)
    if phase is Phase.ROUND:
        fleet.run_until(lambda: fleet.wire[-1][1].kind == topics.MASKED)
    fleet.restart()
    # A sum that was not taken yet is made again, from the same vectors.
    assert fleet.coordinator.phase is (Phase.ROUND if phase is Phase.COMBINING else phase)
    if phase is Phase.GATHERING:
        fleet.arrive("ninth")
    assert fleet.finish().status == "done"
    assert [(opened.round, opened.attempt) for opened in fleet.opened] == [(1, 1), (2, 1)]
    again = phase in (Phase.ROUND, Phase.COMBINING)
    assert [(record.round, record.resumed) for record in fleet.records()] == [(1, int(again)), (2, 0)]
    assert {record.accepted for record in fleet.records()} == {8 + (phase is Phase.GATHERING)}
    assert causes(fleet).count("resumed") == (phase is not Phase.GATHERING)
    check_never_again(fleet)


@pytest.mark.parametrize("kept", [True, False])
def test_restarts_at_every_message_never_reuse_anything(make_fleet: Callable[..., Fleet], kept: bool) -> None:
    fleet = make_fleet(5 if kept else 8)
    fleet.start(rounds=4 if kept else 2, attempts=1000, group_size=8)
    for wait in range(1, 40):
        seen = len(fleet.wire) + wait
        fleet.run_until(lambda seen=seen: len(fleet.wire) >= seen or fleet.row().status == "done")  # type: ignore[misc]
        if fleet.row().status == "done":
            break
        fleet.restart(kept=kept)
    assert fleet.finish().status == "done"
    assert [record.round for record in fleet.records() if record.accepted] == [1, 2, 3, 4][: 4 if kept else 2]
    assert "resumed" in causes(fleet)
    if kept:  # nothing that a device said was lost, so nothing had to be tried again
        assert len(fleet.opened) == 4
        assert sum(record.resumed for record in fleet.records()) > 4
    check_never_again(fleet, left_out=not kept)


def test_a_restart_behind_the_last_close_adds_no_round(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=1)
    end_round = fleet.store.end_round

    def cut(*values: Any) -> None:
        end_round(*values)
        raise KeyboardInterrupt  # the power goes when the round is in the store and its task is not done yet

    monkeypatch.setattr(fleet.store, "end_round", cut)
    with pytest.raises(KeyboardInterrupt):
        fleet.finish()
    fleet.restart()
    assert fleet.finish().status == "done"
    assert [record.round for record in fleet.records()] == [1]


def test_a_stop_that_was_asked_for_while_the_aggregator_was_down_is_carried_out(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=50)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    fleet.store.set_status("digits", "stopping", "stopped by the operator")
    fleet.store.commit()
    fleet.restart()
    row = fleet.finish()
    assert (row.status, row.reason) == ("stopped", "stopped by the operator")
    assert (fleet.published[-1].kind, fleet.published[-1].data) == (topics.OPEN, b"")


def test_a_round_that_opens_does_not_lose_a_stop(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=50)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    fleet.store.set_status("digits", "stopping", "stopped by the operator")
    fleet.store.commit()
    fleet.run_until(lambda: len(fleet.opened) > 3)
    assert fleet.row().status == "stopping"


def test_strangers_late_comers_and_repetitions_change_nothing(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    stranger = Fleet(fleet.folder / "elsewhere", 1).devices["pi-0"]
    fleet.start(rounds=1)
    said: Counter[str] = Counter()

    def refuse(name: str, kind: str, data: bytes, transfer: bool = False) -> None:
        before = (fleet.coordinator.phase, fleet.store.devices(), fleet.row())
        with pytest.raises(PeerError) as caught:
            if transfer:
                fleet.coordinator.vector(name, data, fleet.now)
            else:
                topic = topics.parse(topics.up(FLEET, name, kind))
                fleet.coordinator.receive(topic, data, fleet.now)
        said[caught.value.cause] += 1
        assert (fleet.coordinator.phase, fleet.store.devices(), fleet.row()) == before

    refuse("pi-0", topics.JOIN, b"")  # no round is open
    refuse("pi-0", topics.OPENING, b"")  # no epoch is being opened
    refuse("stranger", topics.STATE, stranger.state())
    refuse("pi-0", topics.WANT, b"")
    seen = 0
    while fleet.row().status != "done":
        fleet.run_until(lambda past=seen: len(fleet.wire) > past or fleet.row().status == "done")  # type: ignore[misc]
        fleet.run_until(lambda: not fleet._queue or fleet.row().status == "done")
        refuse("stranger", topics.JOIN, b"")
        for name, send in fleet.wire[seen:]:
            if fleet.coordinator.run is not None or fleet.coordinator._epoch is not None:
                refuse(name, send.kind, send.data, send.transfer)  # a second time
        seen = len(fleet.wire)
    assert {"unknown-device", "stage", "kind"} <= set(said)
    assert fleet.records()[0].accepted == 8
    check_never_again(fleet)


def test_messages_of_another_round_are_stale(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=2)
    fleet.run_until(lambda: len(fleet.opened) == 2)
    for name, send in list(fleet.wire):
        if send.kind in (topics.JOIN, topics.MASKED) and not send.transfer:
            topic = topics.parse(topics.up(FLEET, name, send.kind))
            with pytest.raises(StaleError) as caught:
                fleet.coordinator.receive(topic, send.data, fleet.now)
            assert caught.value.cause == "wrong-round"
    assert fleet.finish().status == "done"


def test_a_device_outside_the_groups_is_told_so(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=1)
    fleet.run_to(Phase.ROUND)
    fleet.arrive("new")
    with pytest.raises(StaleError, match="'new' is in no group of this epoch"):
        fleet.coordinator.receive(topics.parse(topics.up(FLEET, "new", topics.JOIN)), b"", fleet.now)
    with pytest.raises(StaleError, match="in no group"):
        fleet.coordinator.vector("new", b"", fleet.now)


def test_the_policys_floors_hold_for_lists_and_rosters(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(7, policy=Policy(list_min=8, n_min=6))
    fleet.start(rounds=1, group_size=8)
    fleet.run_until(lambda: fleet.now >= 1020)
    assert fleet.coordinator.phase is Phase.GATHERING  # seven are too few for a list
    fleet.arrive("eighth")
    assert fleet.finish().status == "done"
    assert fleet.opened[0].manifest.n_min == 6


def test_join_sequences_outlive_a_restart(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    fleet.start(rounds=1)
    fleet.finish()
    fleet.restart()
    assert fleet.coordinator.registry.sequences == dict.fromkeys(fleet.devices, 1)


def broken_off(fleet: Fleet, kind: str, **task: Any) -> float:
    """Run a round in which one device dies with a message and is reported lost, and return how long the round took."""
    fleet.start(rounds=1, group_size=6, **task)
    fleet.silent_from["pi-2"] = kind
    fleet.run_until(lambda: "pi-2" in fleet.silent)
    fleet.last_will("pi-2")
    assert fleet.finish().status == "done"
    assert [record.accepted for record in fleet.records()] == [5]
    return fleet.records()[0].seconds


@pytest.mark.parametrize("kind", [topics.JOIN, topics.SHARES, topics.MASKED])
def test_a_dead_device_costs_a_moment_and_not_a_window(make_fleet: Callable[..., Fleet], kind: str) -> None:
    assert broken_off(make_fleet(6), kind) == LOST_GRACE
    assert WINDOWS.join > LOST_GRACE


def test_where_devices_sleep_a_lost_one_is_waited_for(make_fleet: Callable[..., Fleet]) -> None:
    assert broken_off(make_fleet(6), topics.JOIN, sleep=True) == WINDOWS.join


def test_where_devices_sleep_lost_ones_are_grouped(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(6)
    fleet.last_will("pi-2")
    fleet.start(rounds=1, group_size=6, sleep=True)
    assert fleet.finish().status == "done"
    assert fleet.records()[0].accepted == 6


def test_a_device_that_was_dead_before_costs_nothing(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(6)
    fleet.start(rounds=2, group_size=6)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    fleet.run_until(lambda: fleet.coordinator.phase is Phase.ROUND)
    fleet.silent.add("pi-2")
    fleet.last_will("pi-2")
    fleet.run_until(lambda: len(fleet.records()) == 2)
    fleet.start(name="again", rounds=1, group_size=6)
    assert fleet.finish("again").status == "done"
    assert (fleet.records("again")[0].accepted, fleet.records("again")[0].seconds) == (5, 1.0)  # the clock's step


@pytest.mark.parametrize("adaptive", [True, False])
def test_windows_shrink_to_what_devices_need_and_stay_so_after_a_restart(
    make_fleet: Callable[..., Fleet], adaptive: bool
) -> None:
    fleet = make_fleet(6)
    fleet.start(rounds=ENOUGH + 3, group_size=6, adaptive=adaptive)
    fleet.run_until(lambda: len(fleet.opened) == ENOUGH + 2)
    fleet.restart()
    fleet.silent_from["pi-2"] = topics.SHARES  # without a word of the broker's
    assert fleet.finish().status == "done"
    first, *_, after, last = (opened.manifest.windows for opened in fleet.opened)
    assert first == WINDOWS
    short = msgspec.structs.replace(
        WINDOWS, **dict.fromkeys(("join", "shares", "masked", "survivors", "unmask"), FLOOR)
    )
    assert after == (short if adaptive else WINDOWS)
    assert last.shares == WINDOWS.shares  # for it was too short for somebody
    assert fleet.records()[-2].seconds == (FLOOR if adaptive else WINDOWS.shares)


def test_what_is_known_of_devices_and_groups_outlives_a_restart(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(12)
    fleet.start(rounds=9, group_size=6)
    fleet.run_to(Phase.ROUND)
    assert fleet.coordinator.run is not None
    run = next(iter(fleet.coordinator.run.groups.values()))
    for name, _ in run.grouping.members[:3]:
        fleet.silent_from[name] = topics.SHARES
    fleet.run_until(lambda: len(fleet.records()) == 5)  # a group has fallen, and an early epoch was opened

    def known() -> list[bytes]:
        coordinator = fleet.coordinator
        return [
            part.encode()
            for part in (
                coordinator._judgement.conduct,
                coordinator._judgement.regrouping,
                coordinator._judgement.paces,
            )
        ]

    before = known()
    fleet.restart()
    assert known() == before
    assert fleet.coordinator._judgement.conduct.sitting_out() == fleet.silent
    assert fleet.coordinator._judgement.regrouping.purse == PURSE - 1
    assert b'"join"' in before[2]


def test_strikes_are_not_worked_off_by_who_leaves_before_the_end(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(7)  # five are enough to sign and to reveal
    names = list(fleet.devices)
    fleet.coordinator._judgement.conduct.round_ended({"elsewhere": names}, ())
    fleet.silent_from["pi-0"] = topics.UNMASK
    fleet.start(rounds=1, group_size=7)
    assert fleet.finish().status == "done"
    assert "pi-0" in fleet.records()[0].details[0].survivors
    left = {name for name in names if fleet.coordinator._judgement.conduct.strikes(name)}
    assert "pi-0" in left
    assert len(left) == 2  # and one who came after the first five
