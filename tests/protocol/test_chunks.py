"""covey_protocol.chunks: blobs arrive whole, in any order, within their budget, or not at all."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import Entropy, signing_key

from covey_protocol import cbor, chunks, envelope
from covey_protocol.chunks import PIECE_OVERHEAD, Piece, Reassembler
from covey_protocol.digest import content_digest
from covey_protocol.envelope import Context
from covey_protocol.errors import MalformedError, RefusedError

SIZE = 256
blobs = st.integers(0, 6 * SIZE + 5).map(lambda size: Entropy(str(size))(size))
BLOB = Entropy("blob")(5 * SIZE + 17)
NAME = content_digest(BLOB)


def pieces_of(blob: bytes = BLOB, have: bytes = b"") -> list[Piece]:
    return list(chunks.split(blob, SIZE, have))


def announced(blob: bytes = BLOB) -> Reassembler:
    reassembler = Reassembler(budget=100_000)
    reassembler.expect(content_digest(blob), len(blob))
    return reassembler


@settings(deadline=None, max_examples=60)
@given(blobs, st.randoms(use_true_random=False))
def test_pieces_in_any_order_and_twice(blob: bytes, dice: random.Random) -> None:
    pieces = pieces_of(blob)
    order = pieces + dice.sample(pieces, dice.randrange(len(pieces) + 1))
    dice.shuffle(order)
    reassembler, missing = announced(blob), set(range(len(pieces)))
    for piece in order:
        missing.discard(piece.index)
        result = reassembler.add(Piece.decode(piece.encode()))
        assert result == (blob if not missing else None)
        if not missing:
            break
    assert not missing


@settings(deadline=None, max_examples=60)
@given(blobs, st.randoms(use_true_random=False))
def test_a_bitmap_resumes_with_what_is_missing(blob: bytes, dice: random.Random) -> None:
    pieces = pieces_of(blob)
    arrived = dice.sample(pieces, dice.randrange(len(pieces)))
    reassembler = announced(blob)
    for piece in arrived:
        assert reassembler.add(piece) is None
    rest = pieces_of(blob, reassembler.have(content_digest(blob)))
    assert {piece.index for piece in rest} == {piece.index for piece in pieces} - {piece.index for piece in arrived}
    assert [reassembler.add(piece) for piece in rest][-1] == blob


def test_split_names_and_sizes() -> None:
    pieces = pieces_of()
    assert [piece.index for piece in pieces] == list(range(6))
    assert {(piece.digest, piece.total, piece.size) for piece in pieces} == {(NAME, len(BLOB), SIZE)}
    assert b"".join(piece.data for piece in pieces) == BLOB
    assert [len(piece.data) for piece in pieces] == [SIZE] * 5 + [17]


def test_an_empty_blob_has_one_empty_piece() -> None:
    (piece,) = pieces_of(b"")
    assert announced(b"").add(piece) == b""


def test_the_overhead_of_a_piece_is_bounded() -> None:
    piece = Piece(bytes(32), 1 << 30, 1 << 20, 1023, bytes(1 << 20))
    assert len(piece.encode()) <= (1 << 20) + PIECE_OVERHEAD
    assert Piece.decode(piece.encode()) == piece


def test_bits() -> None:
    assert [chunks.bit(b"\x05\x80", index) for index in (0, 1, 2, 7, 15, 16, 1000)] == [
        True,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert chunks.split(BLOB, SIZE, b"\xff")
    assert pieces_of(BLOB, b"\xff") == []


def test_a_blob_with_a_wrong_byte_is_refused_and_can_be_sent_again() -> None:
    reassembler, pieces = announced(), pieces_of()
    wrong = replace(pieces[2], data=bytes(SIZE))
    for piece in [*pieces[:2], wrong, *pieces[3:5]]:
        assert reassembler.add(piece) is None
    with pytest.raises(MalformedError) as caught:
        reassembler.add(pieces[5])
    assert caught.value.cause == "digest"
    assert reassembler.have(NAME) == b"\0"
    assert [reassembler.add(piece) for piece in pieces][-1] == BLOB


def test_the_first_copy_of_a_piece_stays() -> None:
    reassembler, pieces = announced(), pieces_of()
    reassembler.add(pieces[0])
    reassembler.add(replace(pieces[0], data=bytes(SIZE)))
    assert [reassembler.add(piece) for piece in pieces[1:]][-1] == BLOB


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": bytes(31)},
        {"digest": bytes(33)},
        {"size": 255, "data": bytes(255)},
        {"size": (1 << 20) + 1},
        {"size": 0},
        {"size": -1},
        {"index": -1},
        {"index": 6},
        {"index": 5},  # the last piece is shorter
        {"index": 2**63},
        {"total": -1},
        {"total": 2 * SIZE},
        {"data": bytes(SIZE - 1)},
        {"data": bytes(SIZE + 1)},
        {"data": b""},
    ],
)
def test_pieces_whose_numbers_do_not_fit(changes: dict[str, object]) -> None:
    piece = replace(pieces_of()[2], **changes)  # type: ignore[arg-type]
    with pytest.raises(MalformedError):
        Piece.decode(piece.encode())


@pytest.mark.parametrize(("total", "index"), [(0, 1), (SIZE, 1), (2 * SIZE, 2), (2 * SIZE, 3)])
def test_pieces_behind_the_end(total: int, index: int) -> None:
    with pytest.raises(MalformedError):
        Piece.decode(Piece(NAME, total, SIZE, index, b"").encode())


@pytest.mark.parametrize(
    "value", [[], [1, 2, 3, 4, 5], {}, b"piece", [NAME, 1, 256, 0, "x"], [NAME, 1, 256, 0, b"x", 0]]
)
def test_other_values_are_no_pieces(value: object) -> None:
    with pytest.raises(MalformedError):
        Piece.decode(cbor.encode(value))


def test_pieces_are_bounded() -> None:
    with pytest.raises(MalformedError) as caught:
        Piece.decode(bytes((1 << 20) + PIECE_OVERHEAD + 1))
    assert caught.value.cause == "oversized"


def test_pieces_are_told_from_signed_messages() -> None:
    signed = envelope.sign(b"\xa0", Context(fleet="meadow", kind="join", sender="pi"), signing_key("x"))
    assert not chunks.is_piece(signed)
    assert all(chunks.is_piece(piece.encode()) for piece in pieces_of())


def test_nobody_announced_the_blob() -> None:
    reassembler = Reassembler(budget=100_000)
    with pytest.raises(RefusedError) as caught:
        reassembler.add(pieces_of()[0])
    assert caught.value.cause == "unannounced"
    assert reassembler.have(NAME) == b""


def test_a_blob_of_another_size_than_announced() -> None:
    reassembler = Reassembler(budget=100_000)
    reassembler.expect(NAME, len(BLOB) - 1)
    with pytest.raises(MalformedError):
        reassembler.add(pieces_of()[0])


def test_pieces_that_disagree_about_the_length() -> None:
    reassembler = announced()
    reassembler.add(pieces_of()[0])
    with pytest.raises(MalformedError):
        reassembler.add(replace(pieces_of()[1], total=len(BLOB) + 1))
    assert [reassembler.add(piece) for piece in pieces_of()[1:]][-1] == BLOB


@settings(deadline=None, max_examples=60)
@given(blobs, st.randoms(use_true_random=False))
def test_pieces_of_many_sizes_make_one_blob_and_bitmaps_ask_for_what_is_missing(
    blob: bytes, dice: random.Random
) -> None:
    reassembler, name = announced(blob), content_digest(blob)
    for _ in range(100):
        size = dice.choice([256, 300, 512, 700, 4096])
        have, unit = reassembler.have(name), reassembler.size(name)
        rest = list(chunks.split(blob, size, have, unit))
        assert rest, "a blob that is not whole lacks something in every size"
        for piece in rest if unit else []:
            covered = range(piece.index * size, piece.index * size + len(piece.data))
            assert any(not chunks.bit(have, byte // unit) for byte in covered)
        whole = reassembler.add(dice.choice(rest))
        if whole is not None:
            assert whole == blob
            break
    else:
        pytest.fail("every piece brings something")


def test_a_bitmap_that_counts_in_larger_pieces_is_not_read_as_one_of_smaller_ones() -> None:
    have = announced()
    for piece in chunks.split(BLOB, 512):
        if piece.index != 2:  # bytes 1024 to 1297
            have.add(piece)
    bitmap, unit = have.have(NAME), have.size(NAME)
    assert (bitmap, unit) == (b"\x03", 512)
    assert [piece.index for piece in chunks.split(BLOB, 256, bitmap, unit)] == [4, 5]
    assert [piece.index for piece in chunks.split(BLOB, 4096, bitmap, unit)] == [0]
    with pytest.raises(MalformedError, match="pieces of 255 bytes"):
        list(chunks.split(BLOB, 512, bitmap, 255))


def test_what_brings_nothing_is_no_news() -> None:
    reassembler, pieces = announced(), pieces_of()
    reassembler.add(pieces[0])
    assert reassembler.news
    reassembler.add(pieces[0])
    assert not reassembler.news
    reassembler.add(pieces[1])
    assert reassembler.news


def test_one_want_is_worth_a_window() -> None:
    assert chunks.window_count(chunks.PIECE_BYTES) == 4
    assert chunks.window_count(1 << 20) == 1


def test_announced_blobs_stay_within_the_budget() -> None:
    reassembler = Reassembler(budget=1000)
    reassembler.expect(b"a" * 32, 600)
    with pytest.raises(RefusedError) as caught:
        reassembler.expect(b"b" * 32, 401)
    assert caught.value.cause == "budget"
    reassembler.expect(b"a" * 32, 600)  # the same again counts once
    reassembler.expect(b"b" * 32, 400)
    reassembler.forget(b"a" * 32)
    reassembler.expect(b"c" * 32, 600)


def test_a_finished_blob_frees_its_budget() -> None:
    reassembler = Reassembler(budget=len(BLOB))
    reassembler.expect(NAME, len(BLOB))
    assert [reassembler.add(piece) for piece in pieces_of()][-1] == BLOB
    reassembler.expect(b"b" * 32, len(BLOB))


def test_forgetting_drops_what_has_come() -> None:
    reassembler = announced()
    reassembler.add(pieces_of()[0])
    assert reassembler.have(NAME) == b"\1"
    reassembler.forget(NAME)
    assert reassembler.have(NAME) == b""
    with pytest.raises(RefusedError):
        reassembler.add(pieces_of()[1])


def test_unannounced_blobs_give_way_to_newer_ones() -> None:
    first, second, third = (Entropy(name)(2 * SIZE) for name in "abc")
    reassembler = Reassembler(budget=10 * SIZE, unannounced=4 * SIZE)
    for blob in (first, second):
        reassembler.add(pieces_of(blob)[0])
    reassembler.add(pieces_of(third)[0])
    assert [reassembler.have(content_digest(blob)) for blob in (first, second, third)] == [b"", b"\1", b"\1"]
    assert reassembler.add(pieces_of(second)[1]) == second
    with pytest.raises(RefusedError):
        reassembler.add(pieces_of(Entropy("d")(4 * SIZE + 1))[0])


def test_unannounced_blobs_never_displace_announced_ones() -> None:
    reassembler = Reassembler(budget=10 * SIZE, unannounced=2 * SIZE)
    reassembler.expect(NAME, len(BLOB))
    reassembler.add(pieces_of()[0])
    for index in range(5):
        reassembler.add(pieces_of(Entropy(str(index))(2 * SIZE))[0])
    assert [reassembler.add(piece) for piece in pieces_of()[1:]][-1] == BLOB
