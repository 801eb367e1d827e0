"""covey_agent.authority: a real agent follows its operator to the next key, in one step, and never back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.world import DEVICE, PEERS, PIECE, World, grouped_world
from tests.protocol.rig import FLEET, OPERATOR, SERVER, make_chain, revocation_of, signing_key
from tests.protocol.succeeding import FOLLOWERS, THIEF, changed, public

from covey_agent.runtime import Agent
from covey_agent.store import Store
from covey_protocol import identity, topics
from covey_protocol.chunks import split
from covey_protocol.digest import content_digest
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.revocation import sign_list
from covey_protocol.roster import Trust
from covey_protocol.round_table import GroupStage

TOPIC = topics.pub(FLEET, topics.SUCCESSION)
NEXT = signing_key("the aggregator's next key")
State = tuple[bytes, bytes, int, int, int]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[World]:
    with grouped_world(tmp_path) as world:
        yield world


def everybody(world: World, *more: str) -> list[bytes]:
    """Return the tokens of the fleet: the agent's own, and its peers'."""
    chains = [world.home.stored.chain, *(make_chain(name) for name in (*PEERS, *more))]
    return [identity.token_id(chain.token) for chain in chains]


def say(world: World, signed: tuple[bytes, bytes, bytes], *, lists: bool = True, peers: bool = True) -> None:
    """Let aggregator and peers move on, and tell the agent."""
    message, tokens, entries = signed
    world.serve(tokens)
    if entries:
        world.serve(entries)
    if peers:
        sides: list[World | Trust] = [world, *(peer.trust for peer in world.peers.values())]
        for each in sides:
            found = each.successions.take(message, operator_key=each.operator_key, fleet=FLEET)
            assert found is not None
            each.operator_key = found.key
            each.successions.take_list(tokens)
    world.retained[TOPIC] = message
    world.say(TOPIC, message)
    if lists:
        publish(world, tokens)
    world.settle()


def publish(world: World, blob: bytes) -> None:
    for piece in split(blob, PIECE):
        world.say(topics.pub(FLEET, topics.BLOB, content_digest(blob).hex()), piece.encode())
    world.settle()


def goes_by(agent: Agent) -> State:
    """Return operator's key, aggregator's key, and the versions of policy, revocation list and succession."""
    trust = agent._trust
    return (
        trust.operator_key,
        trust.aggregator_key,
        trust.policy.version,
        trust.revocations.seen,
        trust.successions.version,
    )


def joins(world: World) -> int:
    return len(world.said(topics.JOIN))


def summed(world: World) -> bool:
    assert world.group is not None
    return world.group.stage is GroupStage.SUMMING and DEVICE in world.group.survivors


def test_the_next_key_counts_at_once_and_after_a_restart_and_the_old_one_no_more(fleet: World) -> None:
    say(fleet, changed(tokens=everybody(fleet), version=3))
    thief = public(THIEF)
    for start in range(2):
        assert goes_by(fleet.agent) == (public(FOLLOWERS[1]), public(SERVER), 3, 0, 1)
        assert fleet.agent.holds == ""
        before = fleet.agent.refusals.counts["signature"]
        for kind, word in (
            (topics.DELEGATION, identity.issue_delegation(OPERATOR, FLEET, thief, 1 << 50, 0)),
            (topics.POLICY, sign_policy(Policy(version=1 << 50), OPERATOR, FLEET)),
            (topics.REVOCATIONS, sign_list([revocation_of("pi-1")], 1 << 50, OPERATOR, FLEET)[0]),
        ):
            fleet.say(topics.pub(FLEET, kind), word)
        fleet.settle()
        assert fleet.agent.refusals.counts["signature"] == before + 3
        assert goes_by(fleet.agent) == (public(FOLLOWERS[1]), public(SERVER), 3, 0, 1)
        if not start:
            fleet.boot()
            fleet.settle()
    fleet.open_round(1, succession=1)
    assert summed(fleet)


def test_a_round_waits_for_the_change_and_for_its_list(fleet: World) -> None:
    signed = changed(tokens=everybody(fleet))
    fleet.serves = False
    say(fleet, signed, lists=False)
    del fleet.retained[TOPIC]
    fleet.open_round(1, succession=1)
    assert joins(fleet) == 0
    assert "waiting for the change of the operator's key" in fleet.agent.holds
    fleet.boot()  # the list is asked for again
    fleet.settle()
    fleet.serves = True
    fleet.later(100)
    assert joins(fleet) == 1
    assert summed(fleet)


def test_who_has_moved_on_joins_no_round_under_the_key_before(fleet: World) -> None:
    say(fleet, changed(tokens=everybody(fleet)), peers=False)
    fleet.open_round(1)
    assert joins(fleet) == 0
    assert "the server withholds a succession" in fleet.agent.holds


def test_a_change_after_the_join_keeps_a_device_out_of_the_roster(fleet: World) -> None:
    fleet.drop = {topics.JOIN}
    fleet.open_round(1)
    assert joins(fleet) == 1
    [(topic, join)] = [(topic, data) for topic, data, _ in fleet.heard if topic.endswith(topics.JOIN)]
    say(fleet, changed(tokens=everybody(fleet)), peers=False)
    fleet.drop = set()
    fleet._queue.append(lambda: fleet._on_agent(topic, join))
    fleet.settle()
    assert fleet.said(topics.SHARES) == []
    assert fleet.agent.refusals.counts["succession"] >= 1


def test_what_the_next_key_says_before_it_is_known_is_taken_up_then(fleet: World) -> None:
    """Retained messages come in any order."""
    word = identity.issue_delegation(FOLLOWERS[1], FLEET, public(NEXT), 9, 0)
    fleet.say(topics.pub(FLEET, topics.DELEGATION), word)
    fleet.settle()
    assert fleet.agent.refusals.counts == {"signature": 1}
    say(fleet, changed(tokens=everybody(fleet)))
    assert goes_by(fleet.agent)[1] == public(NEXT)


def test_a_device_that_slept_through_two_follows_both_and_twice_is_no_harm(fleet: World) -> None:
    signed = changed(FOLLOWERS[:3], everybody(fleet), revoked=[revocation_of("pi-9")], version=2)
    say(fleet, signed)
    publish(fleet, signed[2])
    assert goes_by(fleet.agent) == (public(FOLLOWERS[2]), public(SERVER), 2, 2, 2)
    assert fleet.agent.ledger.revocations.held == 2
    fleet.say(TOPIC, signed[0])
    fleet.say(TOPIC, changed(tokens=everybody(fleet))[0])  # played back
    fleet.settle()
    assert fleet.agent.refusals.counts == {"replayed": 1}
    assert goes_by(fleet.agent)[-1] == 2


def test_two_successions_of_one_key_ring_and_the_first_stays(fleet: World) -> None:
    say(fleet, changed(tokens=everybody(fleet)))
    before = goes_by(fleet.agent)
    for rival in (changed([OPERATOR, THIEF])[0], changed([OPERATOR, THIEF, NEXT])[0], changed()[0]):
        fleet.say(TOPIC, rival)
    fleet.settle()
    assert fleet.agent.refusals.counts["second-succession"] == 3
    assert goes_by(fleet.agent) == before
    fleet.boot()
    assert goes_by(fleet.agent) == before


def test_a_device_whose_own_token_is_not_on_the_list_says_so(fleet: World) -> None:
    say(fleet, changed(tokens=everybody(fleet)[1:]))
    for start in range(2):
        assert "not on the list of those that it had signed" in fleet.agent.holds
        assert "a new bundle is needed" in fleet.agent.holds
        if not start:
            fleet.boot()
            fleet.settle()


def test_a_damaged_mark_is_named(fleet: World) -> None:
    say(fleet, changed(tokens=everybody(fleet)))
    for key in ("succession", "succession/tokens"):
        marks = fleet.store.marks()
        fleet.store.carry([Remember(key, b"\xd2")], topic_of=lambda *_: "", largest=PIECE)
        with pytest.raises(LocalError, match="the stored succession is damaged"):
            fleet.boot()
        fleet.store.carry([Remember(key, marks[key])], topic_of=lambda *_: "", largest=PIECE)


class PowerCut(BaseException):
    """Not an Exception, so that no handler makes anything good."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(3))
def test_a_kill_at_any_instant_leaves_the_old_key_or_the_new_one_whole(
    fleet: World, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool
) -> None:
    """Before or after each thing that becomes durable; and the message comes again, because it is retained."""
    old = goes_by(fleet.agent)
    signed = changed(tokens=everybody(fleet), revoked=[revocation_of("pi-9")], version=5)
    fleet.serve(signed[2])
    real, count = Store.carry, 0

    def carry(self: Store, *args: object, **options: object) -> None:
        nonlocal count
        count += 1
        if count - 1 == at and not after:
            raise PowerCut
        real(self, *args, **options)  # type: ignore[arg-type]
        if count - 1 == at:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Store, "carry", carry)
        with pytest.raises(PowerCut):
            say(fleet, signed)
            publish(fleet, signed[2])
            raise PowerCut  # there is nothing more to cut
    fleet.boot()
    new = (public(FOLLOWERS[1]), public(SERVER), 5, 5, 1)
    assert goes_by(fleet.agent) in (old, new)
    say(fleet, signed, peers=False)
    publish(fleet, signed[2])
    assert goes_by(fleet.agent) == new
    assert fleet.agent._trust.successions.wanted is None
    assert fleet.agent.ledger.revocations.held == 5


def test_a_device_of_the_new_key_keeps_newer_words_and_knows_the_fleet(tmp_path: Path) -> None:
    world = World(tmp_path, operator=FOLLOWERS[1])
    world.open_epoch()
    word = identity.issue_delegation(FOLLOWERS[1], FLEET, public(NEXT), 9, 0)
    world.say(topics.pub(FLEET, topics.DELEGATION), word)
    world.settle()
    say(world, changed(tokens=everybody(world), version=2), peers=False)
    for start in range(2):
        assert goes_by(world.agent) == (public(FOLLOWERS[1]), public(NEXT), 2, 0, 1)
        assert world.agent.holds == ""
        world.agent._trust.identify(make_chain("pi-1"), "pi-1")
        if not start:
            world.boot()
            world.settle()
    world.store.close()


def test_a_bundles_own_list_counts_no_more_once_the_key_has_changed(tmp_path: Path) -> None:
    old = sign_list([revocation_of("pi-8")], 7, OPERATOR, FLEET)[0]
    world = World(tmp_path, revocations=old)
    world.open_epoch()
    assert goes_by(world.agent)[3] == 7
    say(world, changed(tokens=everybody(world)))
    for start in range(2):
        assert goes_by(world.agent)[3] == 0
        assert world.agent.refusals.counts == {}
        if not start:
            world.boot()
            world.settle()
    world.store.close()
