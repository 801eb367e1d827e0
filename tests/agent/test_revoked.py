"""covey_agent.revoked: a real agent gets the operator's list, waits for it, keeps it, and refuses older ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.agent.world import BUNDLE, DEVICE, PIECE, World, grouped_world
from tests.protocol.rig import FLEET, OPERATOR, SERVER, knowing, revocation_of, revoke

from covey_agent.blobs import BlobStore
from covey_protocol import envelope, topics
from covey_protocol.chunks import split
from covey_protocol.digest import content_digest
from covey_protocol.messages import Blob, Join
from covey_protocol.payload import read
from covey_protocol.revocation import Revocation, sign_list
from covey_protocol.round_table import GroupStage

TOPIC = topics.pub(FLEET, topics.REVOCATIONS)
Signed = tuple[bytes, bytes]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[World]:
    with grouped_world(tmp_path) as world:
        yield world


def published(world: World, signed: Signed, *, head: bool = True, entries: bool = True) -> None:
    """Let the aggregator and the peers have a list, and publish its parts to the agent."""
    world.serve(signed[1])
    knowing(signed, world.revocations)
    for peer in world.peers.values():
        knowing(signed, peer.ledger.revocations)
    if head:
        world.retained[TOPIC] = signed[0]
        world.say(TOPIC, signed[0])
    if entries:
        say_entries(world, signed)
    world.settle()


def only_they_know(world: World, signed: Signed) -> None:
    """Let aggregator and peers have another list than the agent."""
    for peer in world.peers.values():
        peer.ledger.revocations.__init__()  # type: ignore[misc]
        knowing(signed, peer.ledger.revocations)
    world.revocations = knowing(signed)


def say_entries(world: World, signed: Signed) -> None:
    for piece in split(signed[1], PIECE):
        world.say(topics.pub(FLEET, topics.BLOB, content_digest(signed[1]).hex()), piece.encode())
    world.settle()


def many(version: int, count: int = 60) -> Signed:
    """A list of several pieces that names nobody here."""
    entries = [
        Revocation(token=number.to_bytes(32, "big"), key=b"", device=f"gone-{number}", reason="lost")
        for number in range(1, count)
    ]
    return sign_list([revocation_of("pi-9"), *entries], version, OPERATOR, FLEET)


def in_round(world: World) -> bool:
    assert world.group is not None
    return world.group.stage is GroupStage.SUMMING and DEVICE in world.group.survivors


def join_of(world: World) -> Join:
    return read(Join, envelope.parse(world.said(topics.JOIN)[-1]).payload)


def held(world: World) -> tuple[int, int]:
    known = world.agent.ledger.revocations
    return known.seen, known.held


def test_a_list_is_taken_kept_and_named_in_joins(fleet: World) -> None:
    published(fleet, many(3))
    assert held(fleet) == (3, 3)
    fleet.open_round(revocations=3)
    assert in_round(fleet)
    assert join_of(fleet).revocations == 3
    fleet.close_round()
    del fleet.retained[TOPIC]
    fleet.boot()
    assert held(fleet) == (3, 3)
    fleet.open_round(2, revocations=3)
    assert in_round(fleet)
    assert fleet.wants == []
    assert fleet.agent.refusals.counts == {"replayed": 1}  # the first round's OPEN, which the broker had kept


def test_a_round_waits_for_the_list_that_its_manifest_names(fleet: World) -> None:
    signed = many(1)
    published(fleet, signed, head=False, entries=False)
    fleet.open_round(revocations=1)
    assert fleet.said(topics.JOIN) == []
    assert fleet.agent.snapshot()["holds"] == "not in 'digits' yet: waiting for revocation list 1"
    assert fleet.group is not None
    assert fleet.group.awaited() == {DEVICE}
    fleet.later(100)
    assert fleet.said(topics.JOIN) == []
    fleet.say(TOPIC, signed[0])
    fleet.settle()
    assert fleet.said(topics.JOIN) == []
    assert held(fleet) == (1, 0)
    say_entries(fleet, signed)
    assert in_round(fleet)
    assert fleet.agent.snapshot()["holds"] == ""


def test_entries_that_do_not_come_by_themselves_are_asked_for(fleet: World) -> None:
    signed = many(1)
    published(fleet, signed, entries=False)
    fleet.open_round(revocations=1)
    assert not fleet.wants
    fleet.later(2)
    assert [want.digest for want in fleet.wants] == [content_digest(signed[1])]
    assert in_round(fleet)


def test_entries_may_come_before_their_head(fleet: World) -> None:
    signed = many(1)
    published(fleet, signed, head=False)
    assert held(fleet) == (0, 0)
    fleet.say(TOPIC, signed[0])
    fleet.settle()
    assert held(fleet) == (1, 1)
    assert fleet.wants == []


def test_what_was_seen_survives_a_power_cut_before_the_entries_come(fleet: World) -> None:
    fleet.serves = False
    published(fleet, many(4), entries=False)
    del fleet.retained[TOPIC]
    fleet.boot()
    fleet.settle()
    assert held(fleet) == (4, 0)
    fleet.serves = True
    fleet.later(2)
    assert held(fleet) == (4, 4)
    assert len(fleet.agent.ledger.revocations.entries()) == 60


def test_a_newer_head_replaces_the_entries_that_are_waited_for(fleet: World) -> None:
    fleet.serves = False
    first, second = many(1), many(2, 50)
    published(fleet, first, entries=False)
    published(fleet, second, entries=False)
    fleet.serves = True
    fleet.later(2)
    assert held(fleet) == (2, 2)
    assert [want.digest for want in fleet.wants] == [content_digest(second[1])]


def test_a_manifest_with_an_older_list_moves_no_mark(fleet: World) -> None:
    published(fleet, many(4))
    before = fleet.store.marks()
    only_they_know(fleet, many(3))
    fleet.open_round(revocations=3, model=Blob(digest=b"m" * 32, bytes=4 * BUNDLE.dimension))
    fleet.later(100)
    assert fleet.wants == []  # nothing of such a round is even fetched
    assert fleet.said(topics.JOIN) == []
    assert fleet.agent.refusals.counts == {"revocations": 1}
    assert "the server withholds a list" in fleet.agent.snapshot()["holds"]
    assert fleet.store.marks() == before


@pytest.mark.parametrize("entries", [True, False])
def test_an_older_list_that_is_played_back_changes_nothing(fleet: World, entries: bool) -> None:
    published(fleet, many(4), entries=entries)
    before = fleet.store.marks()
    fleet.say(TOPIC, many(3)[0])
    fleet.say(TOPIC, b"")
    fleet.settle()
    assert fleet.store.marks() == before
    assert fleet.agent.refusals.counts == {"replayed": 1}


def test_two_lists_of_one_version_are_an_alarm(fleet: World, caplog: pytest.LogCaptureFixture) -> None:
    published(fleet, many(4))
    before = fleet.store.marks()
    fleet.say(TOPIC, many(4, 20)[0])
    fleet.settle()
    assert fleet.store.marks() == before
    assert fleet.agent.refusals.counts == {"second-list": 1}
    assert "operator key" in caplog.text


@pytest.mark.parametrize("key", [SERVER, SigningKey(bytes(32))], ids=["aggregator", "stranger"])
def test_nobody_else_signs_lists(fleet: World, key: SigningKey) -> None:
    before = fleet.store.marks()
    fleet.say(TOPIC, sign_list([revocation_of(DEVICE)], 9, key, FLEET)[0])
    fleet.settle()
    assert fleet.store.marks() == before
    assert fleet.agent.refusals.counts == {"signature": 1}


@pytest.mark.parametrize("key", [True, False], ids=["key", "token"])
def test_a_roster_with_a_revoked_member_gets_no_share(fleet: World, key: bool) -> None:
    signed = revoke("pi-3", key=key)
    published(fleet, signed)
    only_they_know(fleet, revoke("pi-9"))
    fleet.open_round(revocations=1)
    assert len(fleet.said(topics.JOIN)) == 1
    assert fleet.said(topics.SHARES) == []
    assert fleet.agent.refusals.counts == {"revoked": 1}


def test_a_roster_with_a_newer_list_than_ours_gets_no_share(fleet: World) -> None:
    published(fleet, many(1))
    newer = many(2)
    fleet.revocations = knowing(newer)
    for peer in fleet.peers.values():  # they were given a list that was withheld from the agent, and then play along
        knowing(newer, peer.ledger.revocations)
        peer.ledger.revocations.check_manifest = lambda version: None  # type: ignore[method-assign]
    fleet.open_round(revocations=1)
    assert len(fleet.said(topics.JOIN)) == 1
    assert fleet.said(topics.SHARES) == []
    assert fleet.agent.refusals.counts == {"revocations": 1}


def test_an_epochs_list_with_a_revoked_member_is_not_committed_to(fleet: World) -> None:
    published(fleet, revoke("pi-3", key=True))
    said = len(fleet.said(topics.COMMITMENT))
    before = fleet.store.marks()
    only_they_know(fleet, revoke("pi-9"))
    fleet.open_epoch(2)
    assert len(fleet.said(topics.COMMITMENT)) == said
    assert fleet.agent.refusals.counts == {"revoked": 1}
    assert fleet.store.marks() == before


def test_who_finds_itself_on_the_list_stays_out_and_says_why(fleet: World) -> None:
    published(fleet, revoke(DEVICE))
    fleet.open_round(revocations=1)
    assert fleet.said(topics.JOIN) == []
    assert "'pi-0' was revoked (lost)" in fleet.agent.snapshot()["holds"]


def test_a_list_waits_its_turn_beside_a_rounds_blobs(fleet: World) -> None:
    """A round that is opened meanwhile does not make the agent forget the entries that it waits for."""
    fleet.serves = False
    published(fleet, many(2), entries=False)
    fleet.open_round(revocations=2)
    fleet.serves = True
    fleet.later(5)
    assert held(fleet) == (2, 2)
    assert in_round(fleet)


def test_a_new_device_knows_the_version_that_its_bundle_was_made_under(tmp_path: Path) -> None:
    signed = many(3)
    world = World(tmp_path, revocations=signed[0])
    world.settle()
    assert held(world) == (3, 0)
    world.open_epoch()
    BlobStore(world.home.path / "blobs").put(BUNDLE.digest, BUNDLE.encode())
    world.open_round()  # by a server that pretends that nobody was ever revoked
    assert world.agent.refusals.counts == {"revocations": 1}
    assert world.said(topics.JOIN) == []
    published(world, many(4))
    assert held(world) == (4, 4)
    world.boot()
    world.settle()
    assert held(world) == (4, 4)
    world.open_round(2, revocations=4)
    assert len(world.said(topics.JOIN)) == 1
    world.store.close()
