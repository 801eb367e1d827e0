"""covey_aggregator.standing: who comes back while a group waits for it has the group's last words said again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.aggregator.fleet import FLEET, Fleet

from covey_aggregator.round_run import RoundRun
from covey_aggregator.standing import Standing, Word
from covey_protocol import topics
from covey_protocol.round_table import GroupStage


@pytest.fixture
def run(tmp_path: Path) -> RoundRun:
    """A round of six in which pi-2 has not dealt."""
    fleet = Fleet(tmp_path, 6)
    fleet.start(rounds=1, group_size=6)
    fleet.run_until(lambda: fleet.coordinator.run is not None)
    run = fleet.coordinator.run
    assert run is not None
    return run


def words(group: str) -> Standing:
    standing = Standing()
    for topic in (
        topics.pub(FLEET, topics.GROUPS, "s"),
        topics.pub(FLEET, topics.OPEN, "digits"),
        topics.pub(FLEET, topics.ROSTER, group),
        topics.pub(FLEET, topics.ROSTER, "9-s-9"),
        topics.down(FLEET, "pi-2", topics.DEALT),
        topics.down(FLEET, "pi-99", topics.DEALT),
    ):
        standing.keep(Word(topic, topic.encode(), False))
    return standing


def kinds(standing: Standing, run: RoundRun | None, now: float) -> list[tuple[str, str, str]]:
    places = [topics.parse(word.topic) for word in standing.due(run, now)]
    return [(place.kind, place.id, place.device) for place in places]


def test_a_groups_words_are_said_again_once_to_all_who_come_within_a_moment(run: RoundRun) -> None:
    (group,) = run.groups
    assert run.groups[group].stage is GroupStage.JOINING
    standing = words(group)
    standing.came_back("pi-2", run, 10.0)
    standing.came_back("pi-3", run, 11.0)
    assert kinds(standing, run, 11.9) == []
    expected = [(topics.GROUPS, "s", ""), (topics.ROSTER, group, ""), (topics.DEALT, "", "pi-2")]
    assert kinds(standing, run, 12.0) == expected
    assert kinds(standing, run, 100.0) == []


def test_nothing_is_said_again_for_who_has_answered_is_in_no_group_or_without_a_round(run: RoundRun) -> None:
    (group,) = run.groups
    standing = words(group)
    standing.came_back("pi-99", run, 0.0)
    standing.came_back("pi-2", None, 0.0)
    run.groups[group].declined.update(dict.fromkeys(["pi-2"], "left"))
    standing.came_back("pi-2", run, 0.0)
    assert kinds(standing, run, 100.0) == []


def test_another_round_has_other_words(run: RoundRun) -> None:
    (group,) = run.groups
    standing = words(group)
    standing.came_back("pi-2", run, 0.0)
    standing.clear()
    assert standing.words() == []
    assert kinds(standing, run, 100.0) == []
