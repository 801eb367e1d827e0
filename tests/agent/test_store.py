"""covey_agent.store: marks and messages become durable together, in order, or not at all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_agent.store import Store
from covey_protocol import topics
from covey_protocol.chunks import PIECE_OVERHEAD, Piece, is_piece
from covey_protocol.digest import content_digest
from covey_protocol.effects import Effect, Note, Remember, Send
from covey_protocol.errors import LocalError

LARGEST = 1024


def topic_of(send: Send, digest: bytes) -> str:
    return topics.up("meadow", "pi-0", send.kind, digest.hex()[:16] if digest else "")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "agent.db")
    yield opened
    opened.close()


def carry(store: Store, *effects: Effect, tag: str = "") -> None:
    store.carry(effects, topic_of=topic_of, largest=LARGEST, tag=tag)


def waiting(store: Store) -> list[tuple[str, bytes]]:
    return [(row.topic, row.payload) for row in store.outbox.pending()]


def signed(size: int) -> bytes:
    return b"\xd2" + bytes(range(256)) * (size // 256 + 1)


def test_marks_are_kept_replaced_and_removed_by_an_empty_value(store: Store) -> None:
    carry(store, Remember("sequence", b"1"), Remember("grouping", b"g"))
    carry(store, Remember("sequence", b"2"))
    assert store.marks() == {"sequence": b"2", "grouping": b"g"}
    carry(store, Remember("grouping", b""), Remember("never", b""))
    assert store.marks() == {"sequence": b"2"}


def test_a_restart_reads_marks_and_messages(tmp_path: Path) -> None:
    first = Store(tmp_path / "agent.db")
    carry(first, Remember("sequence", b"7"), Send(topics.JOIN, b"\xd2join"))
    # No close: the process dies here. A second connection sees what was committed.
    second = Store(tmp_path / "agent.db")
    assert second.marks() == {"sequence": b"7"}
    assert waiting(second) == [("covey/v1/meadow/dev/pi-0/up/join", b"\xd2join")]
    first.close()
    second.close()


def test_order_is_kept_and_notes_are_passed_over(store: Store) -> None:
    carry(store, Note("cause", "text"), Send(topics.JOIN, b"\xd21"), Remember("a", b"1"), Send(topics.SHARES, b"\xd22"))
    carry(store, Send(topics.MASKED, b"\xd23"))
    assert [payload for _, payload in waiting(store)] == [b"\xd21", b"\xd22", b"\xd23"]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_an_exception_in_the_middle_leaves_neither(store: Store, at: int) -> None:
    carry(store, Remember("sequence", b"1"), Send(topics.STATE, b"\xd2before"))
    effects: list[Effect] = [Remember("sequence", b"2"), Send(topics.JOIN, b"\xd2"), Remember("x", b"y")]

    def broken() -> Iterator[Effect]:
        yield from effects[:at]
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        store.carry(broken(), topic_of=topic_of, largest=LARGEST)
    assert store.marks() == {"sequence": b"1"}
    assert [payload for _, payload in waiting(store)] == [b"\xd2before"]
    carry(store, *effects)  # the transaction is not left open
    assert store.marks() == {"sequence": b"2", "x": b"y"}


def test_a_message_that_has_no_room_takes_its_marks_with_it(store: Store) -> None:
    store.outbox.max_bytes = 3000
    with pytest.raises(LocalError, match="full"):
        carry(store, Remember("masked/digits", b"digest"), Send(topics.MASKED, signed(4000), transfer=True))
    assert (store.marks(), waiting(store)) == ({}, [])


def test_nothing_of_an_open_transaction_can_be_read_or_sent(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "agent.db")

    def peeking() -> Iterator[Effect]:
        yield Remember("sequence", b"1")
        yield Send(topics.JOIN, b"\xd2")
        assert other.execute("SELECT COUNT(*) FROM marks").fetchone() == (0,)
        assert other.execute("SELECT COUNT(*) FROM outbox").fetchone() == (0,)

    store.carry(peeking(), topic_of=topic_of, largest=LARGEST)
    assert other.execute("SELECT COUNT(*) FROM outbox").fetchone() == (1,)
    other.close()


def test_a_message_is_never_cut(store: Store) -> None:
    """The aggregator puts nothing together that a signed message has not announced."""
    data = signed(5 * LARGEST)
    carry(store, Send(topics.SHARES, data))
    assert [payload for _, payload in waiting(store)] == [data]


@pytest.mark.parametrize("size", [10, 5 * LARGEST])
def test_a_transfer_always_travels_in_pieces_on_a_topic_of_its_own(store: Store, size: int) -> None:
    blob = signed(size)[:size]
    digest = content_digest(blob)
    carry(store, Send(topics.MASKED, blob, transfer=True))
    rows = waiting(store)
    assert {topic for topic, _ in rows} == {f"covey/v1/meadow/dev/pi-0/up/masked/{digest.hex()[:16]}"}
    parts = [Piece.decode(payload) for _, payload in rows]
    assert b"".join(part.data for part in parts) == blob
    assert {(part.digest, part.size) for part in parts} == {(digest, LARGEST - PIECE_OVERHEAD)}
    assert all(is_piece(payload) and len(payload) <= LARGEST for _, payload in rows)


def test_messages_of_a_closed_round_can_be_dropped_by_their_tag(store: Store) -> None:
    carry(store, Send(topics.JOIN, b"\xd2old"), Send(topics.MASKED, signed(3000), transfer=True), tag="digits/")
    carry(store, Send(topics.COMMITMENT, b"\xd2epoch"), tag="epoch")
    store.outbox.discard(tag="digits/")
    assert [payload for _, payload in waiting(store)] == [b"\xd2epoch"]


def test_the_database_is_private(store: Store, tmp_path: Path) -> None:
    carry(store, Remember("a", b"b"))
    for path in tmp_path.glob("agent.db*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_second_store_in_one_process_leaves_the_first_ones_locks(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    first = Store(path)
    Store(path).close()
    carry(first, Remember("a", b"1"))
    script = f"from covey_agent.store import Store; Store({str(path)!r}).close()"
    subprocess.run([sys.executable, "-c", script], check=True)
    carry(first, Remember("b", b"2"))
    script = f"from covey_agent.store import Store; print(sorted(Store({str(path)!r}).marks()))"
    seen = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert seen.stdout.strip() == "['a', 'b']"
    first.close()
