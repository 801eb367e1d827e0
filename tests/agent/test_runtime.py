"""covey_agent.runtime: one real agent, its fleet and its aggregator in memory, and the power cut where it hurts."""

from __future__ import annotations

import logging
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.agent.world import BUNDLE, DEVICE, OPEN_TOPIC, PIECE, World, blob_of, place_of
from tests.protocol.rig import FLEET, SERVER, TASK, make_manifest, sign_open, signing_key

from covey_agent.blobs import BlobStore
from covey_agent.trainer import Trainer, TrainResult
from covey_protocol import envelope, masking, model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.chunks import Piece, split
from covey_protocol.digest import content_digest
from covey_protocol.envelope import Context, open_signed, sign
from covey_protocol.errors import LocalError, RefusedError
from covey_protocol.identity import DeviceIdentity
from covey_protocol.messages import Blob, Have, Join, Masked, State
from covey_protocol.payload import read, write
from covey_protocol.plan import Plan
from covey_protocol.ring import RingScale, decode_mean
from covey_protocol.round_table import GroupStage

ENTROPY = masking.RoundSecrets.ENTROPY_BYTES


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    # In memory where there is a file system for that: no power is really cut here, and flushing a disk takes time.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        world = World(Path(folder))
        yield world
        world.store.close()


@pytest.fixture
def fleet(world: World) -> World:
    """The world with groups, and with the bundle on the agent's disk."""
    world.open_epoch()
    BlobStore(world.home.path / "blobs").put(BUNDLE.digest, BUNDLE.encode())
    return world


def joins(world: World) -> list[Join]:
    return [read(Join, envelope.parse(data).payload) for data in world.said(topics.JOIN)]


def task(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.agent.snapshot()["tasks"][TASK]
    return found


class Watched(Trainer):
    """Keeps its results, and fails when told."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.results: list[TrainResult] = []
        self.failures: list[Exception] = []
        self.nonsense = False

    def train(self, *args: Any, **options: Any) -> TrainResult:
        if self.failures:
            raise self.failures.pop()
        result = super().train(*args, **options)
        if self.nonsense:
            result.update[3] = np.nan
            self.nonsense = False
        self.results.append(result)
        return result


@pytest.fixture
def watched(fleet: World) -> Watched:
    trainer = Watched(BUNDLE)
    fleet.trainer = lambda bundle: trainer
    fleet.boot()
    fleet.settle()
    return trainer


# A day in a fleet


def test_an_agent_takes_part_in_an_epoch_and_a_round(world: World) -> None:
    world.open_epoch()
    snapshot = world.agent.snapshot()
    assert (snapshot["epoch"], snapshot["group"]) == (1, "1-s-0")
    world.open_round()
    assert world.group is not None
    assert world.group.awaited() == {DEVICE}  # it waits for the bundle, and asks for it when none comes
    assert not world.wants
    world.later(8)
    assert [want.digest for want in world.wants] == [BUNDLE.digest]
    assert world.group.stage is GroupStage.SUMMING
    assert DEVICE in world.group.survivors
    world.close_round()
    assert (task(world)["round"], task(world)["stage"], task(world)["rounds_closed"]) == (1, "closed", 1)
    assert world.agent.refusals.counts == {}


def test_the_sum_holds_exactly_what_the_agent_learnt(fleet: World, watched: Watched) -> None:
    fleet.open_round()
    total = fleet.close_round()
    scale = RingScale(5.0, 10)
    mean, metrics = decode_mean(total, 5, scale)
    [result] = watched.results
    expected = (result.update + 4 * np.float32(0.01)) / 5
    assert np.linalg.norm(result.update) > 100 * scale.step
    assert np.abs(mean - expected).max() <= scale.step
    assert metrics.samples * 5 == pytest.approx(40 + 4 * 10, abs=4)


def test_from_round_to_round_only_the_step_travels(fleet: World) -> None:
    fleet.open_round()
    for round_ in (2, 3, 4):
        fleet.close_round()
        fleet.open_round(round_)
        assert fleet.group is not None
        assert DEVICE in fleet.group.survivors
    assert fleet.wants == []
    assert task(fleet)["model"] == content_digest(model.to_bytes(fleet.weights)).hex()[:12]
    assert [join.sequence for join in joins(fleet)] == [1, 2, 3, 4]


def test_who_missed_the_close_asks_for_the_step_and_then_joins(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round(publish=False)
    fleet.open_round(2)
    assert fleet.group is not None
    assert fleet.group.stage is GroupStage.JOINING
    fleet.later(8)
    assert fleet.delta is not None
    assert [want.digest for want in fleet.wants] == [fleet.delta.blob.digest]
    assert DEVICE in fleet.group.survivors


def test_old_models_are_not_kept(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round()
    fleet.open_round(2)
    names = {path.name for path in (fleet.home.path / "blobs").iterdir()}
    assert names == {BUNDLE.digest.hex(), content_digest(model.to_bytes(fleet.weights)).hex()}


def test_the_agent_listens_to_its_own_and_to_its_group_alone(world: World) -> None:
    def listens(*kinds: str, to: str) -> bool:
        return any(world.link.hears(topics.pub(FLEET, kind, to)) for kind in kinds)

    assert not listens(topics.ROSTER, to="1-s-0")
    world.open_epoch()
    assert listens(topics.ROSTER, to="1-s-0")
    assert not listens(topics.ROSTER, topics.ABORT, to="1-s-1")
    assert world.link.hears(topics.down(FLEET, DEVICE, topics.DEALT))
    assert not world.link.hears(topics.down(FLEET, "pi-1", topics.DEALT))
    assert not world.link.hears(topics.up(FLEET, "pi-1", topics.JOIN))
    world.open_epoch(2)
    assert listens(topics.ROSTER, to="2-s-0")
    assert not listens(topics.ROSTER, to="1-s-0")


def test_a_round_of_an_epoch_to_come_waits_for_its_groups(fleet: World) -> None:
    fields = {"bundle": blob_of(BUNDLE.encode()), "model": blob_of(model.to_bytes(fleet.weights)), "epoch": 2}
    fleet.say(OPEN_TOPIC, sign_open(make_manifest(BUNDLE.dimension, 10, **fields)))
    fleet.settle()
    assert joins(fleet) == []
    assert fleet.agent.refusals.counts == {}
    fleet.open_epoch(2)
    assert len(joins(fleet)) == 1


def test_the_end_of_a_task_is_no_offence(fleet: World) -> None:
    fleet.open_round()
    fleet.say(OPEN_TOPIC, b"")
    fleet.settle()
    assert fleet.agent.refusals.counts == {}


# State


def test_states_say_online_left_and_lost_under_a_growing_counter(world: World) -> None:
    seen = []
    for _ in range(3):
        world.states.clear()
        world.settle()
        assert {"online", "left"} == {state.status for state in world.states}
        assert world.states[-1].status == "left"
        [counter] = {state.counter for state in world.states}
        topic, will = world.agent.will()
        assert topic == topics.up(FLEET, DEVICE, topics.STATE)
        context = Context(fleet=FLEET, kind=topics.STATE, sender=DEVICE)
        lost = read(State, open_signed(will, context, bytes(world.home.key.verify_key)))
        assert (lost.status, lost.counter, lost.chain) == ("lost", counter, world.home.stored.chain)
        seen.append(counter)
        world.boot()
    assert seen == [1, 2, 3]
    assert all(retain for topic, _, retain in world.heard if topic.endswith("/state"))
    assert not any(retain for topic, _, retain in world.heard if not topic.endswith("/state"))


def test_only_the_newest_state_waits_while_the_broker_is_away(world: World) -> None:
    world.settle()
    world.link.up = False
    for _ in range(5):
        world.agent.connected(True)
        world.turn()
    assert len(world.store.outbox.pending()) == 1


def test_a_reconnection_says_online_again(world: World) -> None:
    world.settle()
    world.states.clear()
    world.agent.connected(True)
    world.settle()
    assert [state.status for state in world.states] == ["online", "left"]


# What is not as it should be


CLEARED = (topics.OPEN, topics.REVOCATIONS)  # retained: an empty payload says that there is none any more


def garbage(world: World) -> list[tuple[str, bytes]]:
    """Everything that a broken or hostile broker might say, on every topic there is."""
    stranger = signing_key("stranger")
    foreign = sign(b"\xa0", Context(fleet=FLEET, kind="open", sender="aggregator", task=TASK, round=9), stranger)
    empty = sign(b"\xa0", Context(fleet=FLEET, kind="open", sender="aggregator", task=TASK, round=9), SERVER)
    real = world.retained[OPEN_TOPIC]
    payloads = [b"", b"\x00", b"\xd2", b"\xd2\x84", bytes(100), b"\xff" * 5000, foreign, empty, real[:-1], real[:40]]
    payloads += [Piece(bytes(32), 10, 256, 0, bytes(10)).encode()[:-1]]
    places = [topics.pub(FLEET, kind, id) for kind in sorted(topics.PUB_KINDS) for id in ("", "1-s-0", "s", TASK)]
    places += [topics.down(FLEET, DEVICE, kind) for kind in sorted(topics.DOWN_KINDS)]
    said = [(place, payload) for place in places for payload in payloads if payload or place != OPEN_TOPIC]
    said = [(place, payload) for place, payload in said if payload or topics.parse(place).kind not in CLEARED]
    others = ["", "x", "covey/v1", "covey/v2/meadow/pub/open/digits", topics.up(FLEET, DEVICE, topics.JOIN)]
    others += [topics.pub("orchard", topics.OPEN, TASK), topics.pub(FLEET, "fish"), "covey/v1/meadow/pub/open/a/b/c"]
    others += [topics.pub(FLEET, topics.OPEN, "x" * 70_000), "covey/v1/meadow/pub/open/\x00", "💥"]
    return said + [(place, real) for place in others if place]


def test_garbage_on_every_topic_is_counted_logged_once_and_changes_nothing(
    fleet: World, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.drop = {"masked/"}
    fleet.open_round()
    assert fleet.group is not None
    assert fleet.group.awaited() == {DEVICE}
    before = fleet.agent.snapshot(), fleet.store.marks(), len(fleet.said("masked/")), len(joins(fleet))
    said = garbage(fleet)
    counts, lines = [], []
    for _ in range(3):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "covey.agent"):
            for topic, payload in said:
                fleet.agent.deliver(topic, payload)
            fleet.settle()
        counts.append(sum(fleet.agent.refusals.counts.values()))
        lines.append([record.getMessage() for record in caplog.records])
    assert counts == [len(said), 2 * len(said), 3 * len(said)]
    assert 0 < len(lines[0]) < len(said) / 4
    assert len(set(lines[0])) == len(lines[0])
    assert lines[1] == lines[2] == []
    after = fleet.agent.snapshot(), fleet.store.marks(), len(fleet.said("masked/")), len(joins(fleet))
    assert {**after[0], "refusals": {}} == before[0]
    assert after[1:] == before[1:]
    # The round goes on as if nothing had been said.
    fleet.drop = set()
    [masked] = [read(Masked, envelope.parse(data).payload) for data in fleet.said(topics.MASKED)]
    fleet.say(topics.down(FLEET, DEVICE, topics.HAVE), fleet.have(masked.vector.digest, b""))
    fleet.settle()
    assert DEVICE in fleet.group.survivors
    assert fleet.group.stage is GroupStage.SUMMING


def test_a_sound_message_on_the_wrong_topic_is_refused(fleet: World) -> None:
    fields = {"bundle": blob_of(BUNDLE.encode()), "model": blob_of(model.to_bytes(fleet.weights))}
    data = sign_open(make_manifest(BUNDLE.dimension, 10, **fields))
    for topic in (topics.pub("orchard", topics.OPEN, TASK), topics.up(FLEET, DEVICE, topics.STATE)):
        fleet.agent.deliver(topic, data)
    fleet.agent.deliver(topics.pub(FLEET, topics.OPEN, "another-task"), data)
    fleet.settle()
    assert fleet.agent.refusals.counts == {"topic": 2, "signature": 1}
    assert joins(fleet) == []


def test_messages_of_the_round_repeated_and_replayed_change_nothing(fleet: World) -> None:
    heard: list[tuple[str, bytes]] = []

    def record(topic: str, payload: bytes) -> bytes:
        heard.append((topic, payload))
        return payload

    fleet.tamper = record
    fleet.open_round()
    fleet.close_round()
    fleet.tamper = lambda topic, payload: payload
    before, said = fleet.store.marks(), len(fleet.said(topics.JOIN) + fleet.said(topics.SURVIVORS))
    for topic, payload in heard * 2:
        fleet.agent.deliver(topic, payload)
    fleet.settle()
    assert fleet.store.marks() == before
    assert len(fleet.said(topics.JOIN) + fleet.said(topics.SURVIVORS)) == said
    fleet.open_round(2)
    assert fleet.group is not None
    assert DEVICE in fleet.group.survivors


@pytest.mark.parametrize("kind", [topics.ROSTER, topics.DEALT, topics.SURVIVORS, topics.UNMASK])
def test_a_message_changed_on_its_way_gets_no_answer(fleet: World, kind: str) -> None:
    def change(topic: str, payload: bytes) -> bytes:
        return payload[:-1] + bytes([payload[-1] ^ 1]) if topics.kind_of(topic) == kind else payload

    answer = {
        topics.ROSTER: topics.SHARES,
        topics.DEALT: topics.MASKED,
        topics.SURVIVORS: topics.SURVIVORS,
        topics.UNMASK: topics.UNMASK,
    }[kind]
    fleet.tamper = change
    fleet.open_round()
    assert fleet.said(answer) == []
    [cause] = set(fleet.agent.refusals.counts) - {"stage"}  # what follows comes too early
    assert cause in ("signature", "digest")  # DEALT travels in pieces


def test_a_model_that_is_not_the_named_one_is_refused_and_asked_for_again(fleet: World) -> None:
    other = fleet.weights + np.float32(0.01)
    fleet.weights = other
    wanted = content_digest(model.to_bytes(other))

    def change(topic: str, payload: bytes) -> bytes:
        piece = Piece.decode(payload)
        if piece.digest != wanted or piece.index:
            return payload
        return Piece(piece.digest, piece.total, piece.size, 0, b"\x01" + piece.data[1:]).encode()

    fleet.open_round()
    fleet.tamper = change
    fleet.later(8)
    assert [want.digest for want in fleet.wants] == [wanted]
    assert fleet.agent.refusals.counts == {"digest": 1}
    assert joins(fleet) == []
    assert not (fleet.home.path / "blobs" / wanted.hex()).exists()
    fleet.tamper = lambda topic, payload: payload
    fleet.later(60)
    assert fleet.group is not None
    assert DEVICE in fleet.group.survivors


def test_a_step_that_does_not_lead_to_the_named_model_is_refused(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round()
    fleet.open_round(2, model=Blob(digest=bytes(32), bytes=4 * BUNDLE.dimension))
    assert len(joins(fleet)) == 1
    assert fleet.agent.refusals.counts["model"] == 1
    assert "does not lead to model" in fleet.agent.snapshot()["holds"]
    fleet.open_round(3)
    assert len(joins(fleet)) == 2
    assert fleet.agent.snapshot()["holds"] == ""


def test_a_round_beyond_the_profile_is_refused_with_its_reason(fleet: World) -> None:
    fleet.open_round(plan=Plan(batch_size=4096))
    assert joins(fleet) == []
    assert "batches of 4096; profile pi-4 allows 128" in fleet.agent.snapshot()["holds"]
    fleet.open_round(2)
    assert len(joins(fleet)) == 1


def test_data_that_are_not_there_hold_the_agent_back_until_they_are(fleet: World) -> None:
    data = Path(fleet.home.data_path)
    data.rename(data.with_suffix(".away"))
    fleet.open_round()
    assert joins(fleet) == []
    assert str(data) in fleet.agent.snapshot()["holds"]
    data.with_suffix(".away").rename(data)
    fleet.open_round(2)
    assert len(joins(fleet)) == 1


def test_wishes_of_rounds_gone_by_are_not_repeated(fleet: World) -> None:
    fleet.serves = False
    names = []
    for round_ in range(1, 5):
        fleet.weights = np.full(BUNDLE.dimension, round_ / 10, np.float32)
        names.append(content_digest(model.to_bytes(fleet.weights)))
        fleet.open_round(round_)
        fleet.later(8)
    fleet.wants.clear()
    for _ in range(8):
        fleet.later(100)
    assert {want.digest for want in fleet.wants} == {names[-1]}


# Training


def test_training_that_fails_is_logged_and_the_agent_lives_on(
    fleet: World, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [RuntimeError("a kernel broke"), LocalError("loss is infinite", cause="diverged"), MemoryError()]
    for round_, failure in enumerate(failures, 1):
        watched.failures = [failure]
        fleet.open_round(round_)
        assert task(fleet)["stage"] == "declined"
        assert str(failure) in caplog.text  # a second one of the same cause is counted
        assert fleet.group is not None
        assert list(fleet.group.declined) == [DEVICE]  # nobody has to wait for it
        assert DEVICE not in fleet.group.survivors
        fleet.close_round()
    assert fleet.agent.refusals.counts["training"] == 2
    assert fleet.agent.refusals.counts["diverged"] == 1
    fleet.open_round(4)
    assert fleet.group is not None
    assert DEVICE in fleet.group.survivors


def test_an_update_that_is_no_number_never_leaves_the_device(fleet: World, watched: Watched) -> None:
    watched.nonsense = True
    fleet.open_round()
    assert fleet.said(topics.MASKED) == []
    assert fleet.agent.refusals.counts["diverged"] == 1
    assert fleet.group is not None
    assert fleet.group.declined == {DEVICE: "nothing of its training is sent"}  # and not a word more


def test_a_result_that_comes_after_its_round_is_dropped(fleet: World) -> None:
    fleet.workbench.held = True
    fleet.open_round()
    assert fleet.group is not None
    assert fleet.group.awaited() == {DEVICE}
    fleet.late()
    fleet.close_round()
    fleet.open_round(2)
    fleet.workbench.jobs.rotate(0)
    late, present = fleet.workbench.jobs
    late()
    fleet.settle()
    assert fleet.said(topics.MASKED) == []
    present()
    fleet.settle()
    [masked] = fleet.said(topics.MASKED)
    assert place_of(masked) == (TASK, 2, 1)


def test_training_that_nobody_waits_for_ends_before_its_first_batch(fleet: World, watched: Watched) -> None:
    """Otherwise it would hold up the training of the round that has come since."""
    fleet.workbench.held = True
    fleet.open_round()
    fleet.late()
    fleet.close_round()
    fleet.workbench.work()
    fleet.settle()
    assert watched.results == []
    assert task(fleet)["stage"] == "closed"
    assert not fleet.agent.refusals.counts["cancelled"]  # nothing went wrong


def test_a_restart_knows_which_keys_its_peers_had(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round()
    pins = fleet.agent.ledger.pins()
    assert len(pins) == len(fleet.peers) + 1
    fleet.boot()
    for token, key in pins.items():
        fleet.agent._trust.pins.check(DeviceIdentity("pi-1", key, token, ""))
        with pytest.raises(RefusedError, match="was also used"):
            fleet.agent._trust.pins.check(DeviceIdentity("pi-1", b"x" * 32, token, ""))


def test_there_is_an_answer_for_whoever_takes_long(fleet: World) -> None:
    """Training ends after the others have been summed up: the device signs U and reveals, and its update is dropped."""
    fleet.workbench.held = True
    fleet.open_round()
    fleet.late()
    assert len(fleet.said(topics.SURVIVORS)) == len(fleet.said(topics.UNMASK)) == 1
    fleet.workbench.work()
    fleet.settle()
    assert fleet.said(topics.MASKED) == []


# Transfers


def masked_pieces(world: World) -> list[Piece]:
    return [Piece.decode(payload) for payload in world.said("masked/")]


def test_have_sends_the_missing_pieces_alone(fleet: World) -> None:
    fleet.drop = {"masked/"}
    fleet.open_round()
    pieces = masked_pieces(fleet)
    assert [piece.index for piece in pieces] == [0, 1, 2, 3]
    fleet.heard.clear()
    fleet.say(topics.down(FLEET, DEVICE, topics.HAVE), fleet.have(pieces[0].digest, b"\x05"))
    fleet.settle()
    assert masked_pieces(fleet) == [pieces[1], pieces[3]]
    fleet.heard.clear()
    fleet.say(topics.down(FLEET, DEVICE, topics.HAVE), fleet.have(pieces[0].digest, b"\x0f"))
    fleet.settle()
    assert masked_pieces(fleet) == []


def test_have_is_heeded_only_from_the_aggregator_to_this_device_about_its_own_vector(fleet: World) -> None:
    fleet.drop = {"masked/"}
    fleet.open_round()
    digest = masked_pieces(fleet)[0].digest
    fleet.heard.clear()
    for message in (
        fleet.have(bytes(32), b""),
        fleet.signed(topics.HAVE, Have(digest=digest), recipient="pi-1"),
        fleet.signed(topics.WANT, Have(digest=digest), recipient=DEVICE),
        sign(
            write(Have(digest=digest)),
            Context(fleet=FLEET, kind=topics.HAVE, sender="aggregator", recipient=DEVICE),
            signing_key("pi-1"),
        ),
    ):
        fleet.say(topics.down(FLEET, DEVICE, topics.HAVE), message)
    fleet.settle()
    assert masked_pieces(fleet) == []
    assert fleet.agent.refusals.counts == {"stage": 1, "signature": 3}


def test_have_is_not_answered_while_pieces_of_the_vector_wait_in_the_outbox(fleet: World) -> None:
    fleet.drop = {"masked/"}
    fleet.open_round()
    digest = masked_pieces(fleet)[0].digest
    fleet.link.up = False
    fleet.say(topics.down(FLEET, DEVICE, topics.HAVE), fleet.have(digest, b""))
    fleet.settle()
    waiting = fleet.store.outbox.used()[0]
    assert waiting >= 4
    fleet.say(topics.down(FLEET, DEVICE, topics.HAVE), fleet.have(digest, b"\x01"))
    fleet.settle()
    assert fleet.store.outbox.used()[0] == waiting


def test_what_was_said_in_an_open_round_is_repeated_to_a_broker_that_forgot(fleet: World) -> None:
    fleet.drop = {topics.JOIN}
    fleet.open_round()
    [join] = fleet.said(topics.JOIN)
    fleet.agent.connected(True)
    fleet.later(1)
    assert fleet.said(topics.JOIN) == [join]
    fleet.drop = set()
    fleet.agent.connected(False)
    fleet.settle()
    assert fleet.said(topics.JOIN) == [join], "not before a newer round could have shown itself"
    fleet.later(1)
    assert fleet.said(topics.JOIN) == [join, join], "the same bytes"
    assert fleet.group is not None
    assert DEVICE in fleet.group.survivors
    fleet.close_round()
    fleet.agent.connected(False)
    fleet.later(1)
    assert fleet.said(topics.JOIN) == [join, join], "and not once the round is over"


def test_while_a_session_catches_up_no_round_is_joined(fleet: World) -> None:
    fleet.agent.connected(True)
    fleet.open_round()
    assert joins(fleet) == []
    fleet.agent.deliver(topics.pub(FLEET, topics.ROSTER, "none"), b"stale")
    fleet.settle()
    assert joins(fleet) == []
    fleet.later(1)
    assert len(joins(fleet)) == 1


def test_catching_up_ends_even_if_messages_never_do(fleet: World) -> None:
    fleet.agent.connected(True)
    fleet.open_round()
    for _ in range(40):
        fleet.now += 0.3
        fleet.agent.deliver(topics.pub(FLEET, topics.ROSTER, "none"), b"stale")
        fleet.settle()
    assert len(joins(fleet)) == 1


def test_a_round_that_closes_before_it_could_be_joined_is_not_joined(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round(publish=False)
    delta = fleet.delta
    assert delta is not None
    fleet.serves = False
    fleet.open_round(2)
    fleet.late()
    assert fleet.group is not None
    while fleet.group.stage is not GroupStage.SUMMING:
        fleet.late()
    forged = sign(b"\xa0", fleet.group.opened.context(FLEET, topics.CLOSE, "aggregator"), signing_key("pi-1"))
    fleet.say(topics.pub(FLEET, topics.CLOSE, fleet.group.opened.task), forged)
    fleet.settle()
    assert fleet.agent.refusals.counts["signature"] == 1
    fleet.close_round()
    for piece in split(fleet.blobs[delta.blob.digest], PIECE):
        fleet.say(topics.pub(FLEET, topics.BLOB, delta.blob.digest.hex()), piece.encode())
    fleet.settle()
    assert len(joins(fleet)) == 1


def test_a_question_says_which_pieces_are_here(world: World) -> None:
    world.open_epoch()
    world.serves = False
    world.open_round()
    pieces = list(split(BUNDLE.encode(), PIECE))
    for piece in pieces[1:]:
        world.say(topics.pub(FLEET, topics.BLOB, piece.digest.hex()), piece.encode())
    world.settle()
    world.later(8)
    [want] = world.wants
    assert list(split(BUNDLE.encode(), PIECE, want.have)) == pieces[:1]
    world.say(topics.pub(FLEET, topics.BLOB, pieces[0].digest.hex()), pieces[0].encode())
    world.settle()
    assert len(joins(world)) == 1


# What must be on disk, and what must not


def disk(world: World) -> dict[str, bytes]:
    """Read the marks as they would be after a power cut at this instant: through another connection."""
    other = sqlite3.connect(world.home.database)
    rows = dict(other.execute("SELECT key, value FROM marks"))
    other.close()
    return rows


def test_every_mark_is_on_disk_before_what_it_is_for_leaves(fleet: World) -> None:
    seen: list[str] = []
    masked = f"masked/{content_digest(model.to_bytes(fleet.weights)).hex()}"

    def look(kind: str, payload: bytes) -> None:
        marks = disk(fleet)
        if kind == topics.JOIN:
            assert marks["sequence"] == str(read(Join, envelope.parse(payload).payload).sequence).encode()
            assert marks[f"round/{TASK}"] == b"1.1"
        elif kind == topics.SHARES:
            assert fleet.group is not None
            assert fleet.group.roster is not None
            assert marks[f"roster/{TASK}"] == fleet.group.roster.digest
            assert {f"peer/{name}" for name in fleet.peers} <= set(marks)
        elif kind == topics.MASKED:
            assert marks[masked] == read(Masked, envelope.parse(payload).payload).vector.digest
        elif kind == "masked/":
            assert marks[masked] == Piece.decode(payload).digest
        elif kind == topics.SURVIVORS:
            assert any(key.startswith("signed/") for key in marks)
            assert any(key.startswith("exposure/") for key in marks)
        elif kind == topics.UNMASK:
            assert marks[f"unmask/{TASK}"] == content_digest(payload)
        else:
            return
        seen.append(kind)

    fleet.on_heard = look
    fleet.open_round()
    assert list(dict.fromkeys(seen)) == [
        topics.JOIN,
        topics.SHARES,
        topics.MASKED,
        "masked/",
        topics.SURVIVORS,
        topics.UNMASK,
    ]


def test_secrets_of_a_round_are_never_on_disk(fleet: World) -> None:
    said = set()

    def secrets() -> list[bytes]:
        found = []
        for entropy in fleet.entropy.given:
            found.append(entropy)
            if len(entropy) == ENTROPY:
                made = masking.RoundSecrets.from_entropy(entropy)
                found += [made.masking, made.self_mask, made.sharing]
                found += [masking.masking_key(made.masking), masking.self_mask_seed(made.self_mask)]
                found += [] if topics.SURVIVORS in said else [made.draw]  # it is opened with the consent to U
        return found

    looked = 0

    def look(kind: str, payload: bytes) -> None:
        nonlocal looked
        said.add(kind)
        everything = b"".join(path.read_bytes() for path in fleet.home.path.rglob("*") if path.is_file())
        assert payload in everything or kind == topics.STATE  # the search sees what waits to be sent
        for secret in secrets():
            assert secret not in everything
            assert secret[: len(secret) // 2] not in everything
            assert secret not in payload
        looked += 1

    fleet.entropy.given.clear()  # e_i, which is published
    fleet.on_heard = look
    fleet.open_round()
    assert looked > 8
    fleet.close_round()
    look(topics.STATE, b"")
    everything = b"".join(path.read_bytes() for path in fleet.home.path.rglob("*") if path.is_file())
    assert all(secret not in everything for secret in secrets())


# Power cuts


@pytest.mark.parametrize(
    "silent", [topics.JOIN, topics.SHARES, topics.MASKED, "masked/", topics.SURVIVORS, topics.UNMASK]
)
def test_a_restart_sits_the_round_out_and_takes_part_in_the_next(fleet: World, silent: str) -> None:
    fleet.drop = {silent}
    fleet.open_round()
    assert fleet.group is not None
    said = {kind: len(fleet.said(kind)) for kind in topics.UP_KINDS - {topics.STATE}}
    fleet.drop = set()
    fleet.boot()
    fleet.settle()
    while not fleet.group.finished:
        fleet.late()
    assert fleet.group.stage is GroupStage.SUMMING, fleet.group.aborted
    # Not a word about the round that it has lost the secrets of.
    assert {kind: len(fleet.said(kind)) for kind in said} == said
    assert set(fleet.agent.refusals.counts) <= {"replayed", "stage"}
    fleet.close_round()
    fleet.open_round(2)
    assert fleet.group is not None
    fleet.later(8)
    assert DEVICE in fleet.group.survivors
    assert [join.sequence for join in joins(fleet)] == [1, 2]


def test_what_was_signed_before_a_power_cut_is_sent_once_it_is_over_byte_for_byte(fleet: World) -> None:
    fleet.link.up = False
    fleet.open_round()
    [waiting] = [row.payload for row in fleet.store.outbox.pending() if row.topic.endswith("/join")]
    fleet.boot()
    fleet.link.kick()
    fleet.settle()
    assert fleet.said(topics.JOIN) == [waiting]
    assert fleet.group is not None
    while not fleet.group.finished:
        fleet.late()
    assert DEVICE not in fleet.group.survivors


def test_messages_of_a_lost_round_are_not_sent_into_the_next(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round()
    fleet.link.up = False
    fleet.open_round(2)
    waiting = [place_of(row.payload) for row in fleet.store.outbox.pending() if not row.topic.endswith("/state")]
    assert waiting == [(TASK, 2, 1)]
    fleet.late()
    fleet.boot(up=False)
    fleet.weights, fleet.delta = fleet.weights + np.float32(1e-3), None  # the others have masked for the last one
    fleet.open_round(3)
    for piece in split(model.to_bytes(fleet.weights), PIECE):
        fleet.say(topics.pub(FLEET, topics.BLOB, "model"), piece.encode())
    fleet.settle()
    places = [place_of(row.payload) for row in fleet.store.outbox.pending() if not row.topic.endswith("/state")]
    assert places == [(TASK, 3, 1)]


def test_a_round_that_was_joined_is_not_prepared_for_again(fleet: World) -> None:
    data = fleet.open_round()
    fleet.close_round()
    for path in (fleet.home.path / "blobs").iterdir():
        path.unlink()
    fleet.boot()
    fleet.settle()
    assert fleet.retained[OPEN_TOPIC] == data
    fleet.later(100)
    assert fleet.wants == []
    assert fleet.agent.refusals.counts == {"replayed": 1}


def test_a_disk_that_was_put_back_is_found_out_by_the_sequence(fleet: World, tmp_path: Path) -> None:
    """An old image repeats a sequence number; peers and aggregator refuse it, so no mask is ever used twice."""
    fleet.store.close()
    image = fleet.home.database.read_bytes()
    fleet.boot()
    fleet.settle()
    fleet.open_round()
    fleet.close_round()
    fleet.store.close()
    for path in fleet.home.path.glob("agent.db*"):
        path.unlink()
    fleet.home.database.write_bytes(image)
    fleet.retained.clear()
    fleet.boot()
    with pytest.raises(AssertionError, match="join sequence of 'pi-0' went back to 1"):
        fleet.open_round(2)


def test_a_restart_knows_its_group_and_its_last_model(fleet: World) -> None:
    fleet.open_round()
    fleet.close_round()
    fleet.open_round(2)
    fleet.close_round(publish=False)
    fleet.boot()
    fleet.settle()
    assert fleet.agent.snapshot()["group"] == "1-s-0"
    fleet.open_round(3)
    fleet.later(8)
    assert fleet.delta is not None
    assert [want.digest for want in fleet.wants] == [fleet.delta.blob.digest]
    assert fleet.group is not None
    assert DEVICE in fleet.group.survivors


def test_a_restart_in_an_opening_does_not_commit_twice(world: World) -> None:
    world.drop = {topics.COMMITMENT}
    world.open_epoch()
    world.drop = set()
    first = world.said(topics.COMMITMENT)
    world.boot()
    assert world.opening is not None
    world.carry(world.opening.tick(1e9))
    world.settle()
    assert world.said(topics.COMMITMENT) == first
    world.open_epoch(2)
    assert world.agent.snapshot()["epoch"] == 2


# A full card


def test_a_blob_that_cannot_be_written_does_not_end_the_agent(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    world.open_epoch()
    world.open_round()
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "put", full)
        world.later(8)
    assert "No space left on device" in caplog.text
    assert joins(world) == []
    world.open_round(2)
    world.later(8)
    assert len(joins(world)) == 1


def test_a_full_outbox_does_not_end_the_agent(world: World) -> None:
    world.open_epoch()
    world.open_round()
    limit, world.store.outbox.max_bytes = world.store.outbox.max_bytes, 100
    world.link.up = False
    world.later(8)
    assert world.agent.refusals.counts["outbox-full"] >= 1
    world.store.outbox.max_bytes = limit
    world.link.up = True
    world.later(60)
    assert len(joins(world)) == 1


def test_a_join_that_cannot_be_made_durable_is_not_made(fleet: World) -> None:
    fleet.store.outbox.max_bytes = 600
    fleet.open_round()
    assert joins(fleet) == []
    assert len(fleet.said(topics.DECLINE)) == 1  # there was room for this
    fleet.store.outbox.max_bytes = 1 << 20
    fleet.close_round()
    fleet.open_round(2)
    fleet.later(2)
    assert [join.sequence for join in joins(fleet)] == [2]


# Sketches


def test_a_round_with_sketches_goes_from_its_manifest_to_the_sum(fleet: World) -> None:
    fleet.open_round(sketch=8)
    assert len(fleet.said(topics.ATTEST)) == len(fleet.said(topics.ACCEPT)) == len(fleet.said(topics.UNMASK)) == 1
    assert fleet.group is not None
    assert DEVICE in fleet.group.summed
    assert fleet.agent.snapshot()["sketches"] == {"numbers": 8, "budget": None}
    fleet.close_round()
    fleet.boot()
    assert fleet.agent.snapshot()["sketches"]["numbers"] == 8
    assert sum(fleet.agent.snapshot()["exposure"]["by_grouping"].values()) == 1  # of A, and not of U beside it


def test_marks_of_a_sketch_are_on_disk_before_it_leaves(fleet: World) -> None:
    missing: list[str] = []
    wanted = {topics.ATTEST: ["sketched/", "sketches"], topics.ACCEPT: ["accepted/", "exposure/"]}

    def look(kind: str, _payload: bytes) -> None:
        marks = disk(fleet)
        missing.extend(key for key in wanted.get(kind, []) if not any(mark.startswith(key) for mark in marks))

    fleet.on_heard = look
    fleet.open_round(sketch=8)
    assert len(fleet.said(topics.ACCEPT)) == 1
    assert missing == []
