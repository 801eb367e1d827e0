"""A round over several groups: messages to the right one, times, sums and records."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.aggregator.fleet import Fleet

from covey_aggregator.round_run import RoundRun
from covey_protocol import topics
from covey_protocol.effects import Note, Publish
from covey_protocol.errors import StaleError
from covey_protocol.round_table import GroupStage


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path, 10)
    fleet.start(rounds=1)
    return fleet


def running(fleet: Fleet) -> RoundRun:
    assert fleet.coordinator.run is not None
    return fleet.coordinator.run


def until_summing(fleet: Fleet) -> RoundRun:
    fleet.hold_jobs = True
    fleet.run_until(lambda: len(fleet._jobs) == 2)
    return running(fleet)


def stages(run: RoundRun) -> set[GroupStage]:
    return {group.stage for group in run.groups.values()}


def open_round(fleet: Fleet) -> RoundRun:
    fleet.run_until(lambda: bool(fleet.opened))
    return running(fleet)


def test_a_message_goes_to_its_senders_group_alone(fleet: Fleet) -> None:
    run = open_round(fleet)
    fleet.run_until(lambda: any(send.kind == topics.JOIN for _, send in fleet.wire))
    name, join = next((name, send) for name, send in fleet.wire if send.kind == topics.JOIN)
    fleet._queue.clear()
    run.receive(topics.JOIN, name, join.data, fleet.now)
    joined = [len(group.grouping.members) - len(group.awaited()) for group in run.groups.values()]
    assert sorted(joined) == [0, 1]
    assert name not in run.group_of(name).awaited()
    with pytest.raises(StaleError) as caught:
        run.receive(topics.JOIN, "stranger", join.data, fleet.now)
    assert caught.value.cause == "not-grouped"


def test_every_sum_is_handed_out_once(fleet: Fleet) -> None:
    run = until_summing(fleet)
    assert run.summing == set(run.groups)
    assert run.to_sum() == []
    assert not run.over
    fleet.hold_jobs = False
    fleet.run_until(lambda: bool(fleet.records()))
    assert run.over
    assert set(run.means) == set(run.groups)
    assert [mean.count for mean in run.means.values()] == [5, 5]


def test_a_group_without_a_sum_aborts_with_the_reason(fleet: Fleet) -> None:
    run = until_summing(fleet)
    name = min(run.groups)
    note, publish = run.summed(name, None, "the shares of 'pi-3' are wrong", fleet.now)
    assert isinstance(note, Note)
    assert isinstance(publish, Publish)
    assert (note.cause, publish.kind, publish.id) == ("bad-sum", topics.ABORT, name)
    assert run.groups[name].stage is GroupStage.ABORTED
    detail = next(detail for detail in run.details() if detail.group == name)
    assert (detail.cause, detail.reason, detail.survivors) == ("bad-sum", "the shares of 'pi-3' are wrong", [])
    assert len(detail.members) == 5


def test_stages_run_out_and_are_timed(fleet: Fleet) -> None:
    run = open_round(fleet)
    quiet = next(iter(run.groups.values())).grouping.members[0][0]
    fleet.silent.add(quiet)
    fleet.finish()
    record = fleet.records()[0]
    assert (record.participants, record.accepted, record.dropped) == (9, 9, 0)
    assert set(record.stage_seconds) == {"joining", "sharing", "masking", "signing", "unmasking", "summing"}
    assert record.stage_seconds["joining"] == 10  # the window, for the one who did not answer
    assert sum(record.stage_seconds.values()) == pytest.approx(record.seconds)


@pytest.mark.parametrize("cut", [topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK])
def test_one_who_falls_silent_at_any_stage_costs_the_group_no_more_than_itself(tmp_path: Path, cut: str) -> None:
    fleet = Fleet(tmp_path, 6)
    fleet.silent_from["pi-2"] = cut
    fleet.start(rounds=1, group_size=6)
    assert fleet.finish().status == "done"
    record = fleet.records()[0]
    in_sum = cut in (topics.SURVIVORS, topics.UNMASK)
    assert (record.accepted, "pi-2" in record.details[0].survivors) == (5 + in_sum, in_sum)
    assert record.participants == 6 - (cut == topics.JOIN)


def test_a_model_is_spent_before_the_first_device_can_mask_for_it(fleet: Fleet) -> None:
    run = open_round(fleet)
    model = run.opened.manifest.model.digest
    fleet.run_until(lambda: any(send.kind == topics.SHARES for _, send in fleet.wire))
    assert (run.reached_masking, fleet.store.is_spent(model)) == (False, False)
    fleet.run_until(lambda: GroupStage.MASKING in stages(run))
    assert not any(send.kind == topics.MASKED for _, send in fleet.wire)
    assert (run.reached_masking, fleet.store.is_spent(model)) == (True, True)


@pytest.mark.parametrize("at", [topics.SHARES, topics.MASKED, topics.SURVIVORS])
def test_nobody_waits_for_one_who_leaves(tmp_path: Path, at: str) -> None:
    fleet = Fleet(tmp_path, 6)
    fleet.declining["pi-2"] = at
    fleet.start(rounds=1, group_size=6)
    opened_at = fleet.now + 1
    assert fleet.finish().status == "done"
    assert fleet.now == opened_at  # no window ran out
    (record,) = fleet.records()
    assert record.accepted == 5 + (at == topics.SURVIVORS)
    assert ("declined", True) in [(note.cause, "pi-2 leaves group" in note.text) for note in fleet.notes]


def test_whoever_is_proven_to_have_spoilt_a_sum_caused_the_abort(fleet: Fleet) -> None:
    run = until_summing(fleet)
    name = min(run.groups)
    run.summed(name, None, "the shares of 'pi-3' are wrong", fleet.now, ["pi-3", "pi-4"])
    assert run.groups[name].causers == run.proven() == {"pi-3", "pi-4"}


def test_whoever_complains_without_reason_is_proven_although_the_group_closes(fleet: Fleet) -> None:
    run = until_summing(fleet)
    group = run.groups[min(run.groups)]
    assert not run.proven()
    group.complaints.blamed["pi-2"] = "complained of a good share"
    assert run.proven() == {"pi-2"}
