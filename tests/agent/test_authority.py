"""covey_agent.authority: a real agent follows the operator's newest words, and nobody beyond a delegation's expiry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.agent.world import BUNDLE, World
from tests.protocol.rig import FLEET, OPERATOR, SERVER, TASK, make_manifest, sign_open, signing_key

from covey_agent.blobs import BlobStore
from covey_agent.snapshot import in_words
from covey_protocol import identity, topics
from covey_protocol.messages import Have
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.round_table import GroupStage
from covey_protocol.signed_time import RELEASED, write_time

NEXT = signing_key("the aggregator's next key")
DAY = 86400
NOW = RELEASED + 200 * DAY


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[World]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        world = World(Path(folder), made=NOW)
        world.open_epoch()
        BlobStore(world.home.path / "blobs").put(BUNDLE.digest, BUNDLE.encode())
        yield world
        world.store.close()


def say(world: World, kind: str, data: bytes, *, kept: bool = True) -> None:
    topic = topics.pub(FLEET, kind)
    if kept:
        world.retained[topic] = data
    world.say(topic, data)
    world.settle()


def delegate(world: World, version: int, key: SigningKey = SERVER, not_after: int = 0) -> None:
    word = identity.issue_delegation(OPERATOR, FLEET, bytes(key.verify_key), version, not_after)
    say(world, topics.DELEGATION, word)


def tell_time(world: World, at: int, key: SigningKey | None = None) -> None:
    say(world, topics.TIME, write_time(at, fleet=FLEET, key=key or world.server))


def refused(world: World) -> dict[str, int]:
    return dict(world.agent.refusals.counts)


def joins(world: World) -> int:
    return len(world.said(topics.JOIN))


def summed(world: World) -> bool:
    assert world.group is not None
    return world.group.stage is GroupStage.SUMMING and "pi-0" in world.group.survivors


def test_a_new_key_is_followed_and_the_old_one_refused_from_then_on(fleet: World) -> None:
    fleet.open_round(1)
    assert summed(fleet)
    fleet.close_round()
    delegate(fleet, 2, NEXT)
    old = sign_open(make_manifest(BUNDLE.dimension, 10), 2, key=SERVER)
    for start in range(2):
        fleet.say(topics.pub(FLEET, topics.OPEN, "stolen"), sign_open(make_manifest(310, 10), task="stolen"))
        fleet.say(topics.down(FLEET, "pi-0", topics.HAVE), fleet.signed(topics.HAVE, Have(digest=bytes(32))))
        fleet.say(topics.pub(FLEET, topics.OPEN, TASK), old)
        fleet.settle()
        assert refused(fleet)["signature"] >= 3
        assert joins(fleet) == 1
        if not start:
            fleet.boot()
            fleet.settle()
    fleet.rotate(NEXT)
    fleet.open_round(2)
    assert joins(fleet) == 2
    assert summed(fleet)
    delegate(fleet, 1)  # played back
    fleet.rotate(SERVER)
    fleet.weights = fleet.weights + 1e-4
    fleet.open_round(3)
    fleet.later(60)
    assert joins(fleet) == 2


def test_a_rotation_in_the_middle_of_a_round_lets_the_next_attempt_go_on(fleet: World) -> None:
    fleet.drop = {topics.SHARES}
    fleet.open_round(1)
    assert joins(fleet) == 1
    delegate(fleet, 2, NEXT)
    fleet.rotate(NEXT)
    fleet.drop = set()
    fleet.weights = fleet.weights + 1e-4
    fleet.open_round(1, 2)
    fleet.later(5)
    assert joins(fleet) == 2
    assert summed(fleet)


def test_what_the_new_key_says_before_its_delegation_comes_is_taken_up_then(fleet: World) -> None:
    """Retained messages come in any order."""
    fleet.rotate(NEXT)
    fleet.open_round(1)
    assert joins(fleet) == 0
    assert refused(fleet) == {"signature": 1}
    delegate(fleet, 2, NEXT)
    assert joins(fleet) == 1
    assert summed(fleet)


def test_what_is_set_aside_is_bounded(fleet: World) -> None:
    fleet.rotate(NEXT)
    for number in range(40):
        data = sign_open(make_manifest(310, 10), task=f"task-{number}", key=NEXT)
        fleet.say(topics.pub(FLEET, topics.OPEN, f"task-{number}"), data)
    fleet.settle()
    assert len(fleet.agent._authority._aside) == 16


def test_an_expired_delegation_stops_a_device_which_says_so_and_a_new_one_lets_it_go_on(fleet: World) -> None:
    delegate(fleet, 2, not_after=NOW + DAY)
    tell_time(fleet, NOW + DAY)
    fleet.open_round(1)
    assert joins(fleet) == 1
    fleet.close_round()
    fleet.later(2)  # by its own monotonic clock
    for attempt in (1, 2):
        assert fleet.agent.holds == (
            f"the aggregator's delegation expired at Unix time {NOW + DAY}: the operator has to sign a new one"
        )
        fleet.weights = fleet.weights + 1e-4
        fleet.open_round(2, attempt, delta=None)
        fleet.later(60)
        assert joins(fleet) == 1
        snapshot = fleet.agent.snapshot()
        assert snapshot["holds"] == fleet.agent.holds
        assert snapshot["delegation"] == {"version": 2, "expires": NOW + DAY, "expired": True, "policy": 1}
        assert "held back: the aggregator's delegation expired" in in_words(
            {"device": "pi-0", "fleet": FLEET, "running": True, **snapshot}
        )
        tell_time(fleet, NOW + 500 * DAY)  # it makes nothing worse
        fleet.boot()
        fleet.settle()
    assert fleet.states[-1].holds != ""
    delegate(fleet, 3, not_after=NOW + 400 * DAY)
    assert fleet.agent.holds == ""
    words = in_words({"device": "pi-0", "fleet": FLEET, "running": True, **fleet.agent.snapshot()})
    assert "follows the aggregator until 2027-08-24, under policy 1" in words
    fleet.later(60)
    assert joins(fleet) == 2
    assert summed(fleet)


def test_a_round_that_waits_when_the_delegation_runs_out_is_not_joined(fleet: World) -> None:
    delegate(fleet, 2, not_after=NOW + DAY)
    tell_time(fleet, NOW + DAY - 5)
    fleet.weights = fleet.weights + 1e-4  # a model that has to be fetched
    fleet.serves = False
    fleet.open_round(1)
    assert joins(fleet) == 0
    fleet.later(10)
    fleet.serves = True
    fleet.later(60)
    assert joins(fleet) == 0
    delegate(fleet, 3, not_after=NOW + 400 * DAY)
    assert joins(fleet) == 1


def test_a_wall_clock_counts_only_where_the_system_vouches_for_it(fleet: World) -> None:
    delegate(fleet, 2, not_after=NOW + DAY)
    fleet.wall = NOW + 2 * DAY
    fleet.later(61)
    fleet.open_round(1)
    assert joins(fleet) == 0
    fleet.wall = None  # as when it starts without network
    fleet.later(61)
    fleet.open_round(1, 2)
    assert joins(fleet) == 1
    assert "time" not in fleet.store.marks()


def test_time_is_the_aggregators_never_goes_back_and_survives_a_power_cut(fleet: World) -> None:
    tell_time(fleet, NOW + 3 * DAY, NEXT)
    assert refused(fleet) == {"signature": 1}
    tell_time(fleet, NOW + 3 * DAY)
    for at in (NOW, NOW + 3 * DAY, 0):
        tell_time(fleet, at)
    assert refused(fleet) == {"signature": 1}  # an old one is no offence: it was only long on its way
    assert fleet.agent._authority.now() == NOW + 3 * DAY
    fleet.boot()
    fleet.settle()
    assert fleet.agent._authority.now() == NOW + 3 * DAY


def test_a_raised_floor_counts_from_the_next_round_on_and_after_a_restart(fleet: World) -> None:
    say(fleet, topics.POLICY, sign_policy(Policy(version=2, n_min=5), OPERATOR, FLEET))
    for number in range(2):
        fleet.open_round(1, 1 + number)
        assert joins(fleet) == 0
        assert refused(fleet)["policy"] >= 1
        fleet.boot()
        fleet.settle()
    fleet.open_round(1, 9, n_min=5)
    assert joins(fleet) == 1


def test_two_words_of_one_version_are_an_alarm_and_the_first_stays(
    fleet: World, caplog: pytest.LogCaptureFixture
) -> None:
    before = fleet.store.marks()
    delegate(fleet, 1, NEXT)
    say(fleet, topics.POLICY, sign_policy(Policy(n_min=5), OPERATOR, FLEET))
    say(fleet, topics.POLICY, b"")
    assert refused(fleet) == {"second-delegation": 1, "second-policy": 1, "truncated": 1}
    assert caplog.text.count("operator key") == 2
    assert fleet.store.marks() == before
    fleet.open_round(1)
    assert summed(fleet)


def test_an_aggregator_does_not_speak_for_the_operator(fleet: World) -> None:
    before = fleet.store.marks()
    key = bytes(NEXT.verify_key)
    say(fleet, topics.DELEGATION, identity.issue_delegation(SERVER, FLEET, key, 9, 0))
    say(fleet, topics.POLICY, sign_policy(Policy(version=9), SERVER, FLEET))
    say(fleet, topics.POLICY, sign_policy(Policy(version=9), OPERATOR, "orchard"))
    assert refused(fleet) == {"signature": 3}
    assert fleet.store.marks() == before
