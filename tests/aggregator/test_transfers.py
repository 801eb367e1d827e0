"""Masked vectors in pieces: announced, within their size, and asked for when they stall."""

from __future__ import annotations

import itertools
import os

import pytest
from nacl.signing import SigningKey

from covey_aggregator.transfers import (
    AGAIN_SECONDS,
    BURST_BYTES,
    BYTES_A_SECOND,
    QUEUE_SECONDS,
    STALL_MAX,
    STALL_SECONDS,
    Downloads,
    Transfers,
)
from covey_protocol import topics
from covey_protocol.chunks import WINDOW_BYTES, Piece, split
from covey_protocol.digest import content_digest
from covey_protocol.effects import Expect
from covey_protocol.envelope import Context, open_signed
from covey_protocol.errors import MalformedError, RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import MAX_MODEL_BYTES, Have, Want
from covey_protocol.payload import read

KEY = SigningKey.generate()
BLOB = bytes(range(256)) * 10
OTHER = bytes(2560)


def pieces(blob: bytes = BLOB) -> list[Piece]:
    return list(split(blob, 1000))


def expect(device: str = "pi", blob: bytes = BLOB) -> Expect:
    return Expect(device, content_digest(blob), len(blob))


@pytest.fixture
def transfers() -> Transfers:
    return Transfers("meadow", KEY)


def have(transfers: Transfers, now: float) -> list[tuple[str, Have]]:
    asks = []
    for ask in transfers.stalled(now):
        context = Context(fleet="meadow", kind=topics.HAVE, sender=AGGREGATOR, recipient=ask.device)
        assert ask.kind == topics.HAVE
        asks.append((ask.device, read(Have, open_signed(ask.data, context, bytes(KEY.verify_key)))))
    return asks


def test_pieces_in_any_order_and_twice_make_one_blob(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    first, second, third = pieces()
    assert [transfers.add("pi", piece, 0) for piece in (third, first, third)] == [None] * 3
    assert transfers.add("pi", second, 0) == BLOB
    with pytest.raises(RefusedError, match="nobody announced"):
        transfers.add("pi", first, 0)  # once more, behind the end


@pytest.mark.parametrize("device", ["pi", "stranger"])
def test_what_nobody_announced_is_refused(transfers: Transfers, device: str) -> None:
    transfers.expect(expect(), 0)
    with pytest.raises(RefusedError) as caught:
        transfers.add(device, pieces(OTHER)[0], 0)
    assert caught.value.cause == "unannounced"


def test_one_device_cannot_send_what_another_announced(transfers: Transfers) -> None:
    transfers.expect(expect("pi"), 0)
    with pytest.raises(RefusedError):
        transfers.add("other", pieces()[0], 0)


def test_a_piece_that_contradicts_the_announced_size_is_refused(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    lie = Piece(content_digest(BLOB), 10 * len(BLOB), 1000, 0, bytes(1000))
    with pytest.raises(MalformedError, match="not the announced 2560"):
        transfers.add("pi", lie, 0)
    with pytest.raises(RefusedError, match="budget"):
        transfers.expect(Expect("huge", bytes(32), MAX_MODEL_BYTES + 1), 0)


def test_a_blob_of_another_content_is_refused_and_can_come_again(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    first, second, third = pieces()
    transfers.add("pi", first, 0)
    transfers.add("pi", second, 0)
    with pytest.raises(MalformedError) as caught:
        transfers.add("pi", Piece(third.digest, third.total, third.size, third.index, bytes(len(third.data))), 0)
    assert caught.value.cause == "digest"
    assert [transfers.add("pi", piece, 0) for piece in pieces()][-1] == BLOB


def test_a_transfer_that_stalls_is_asked_for_with_what_is_here(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    transfers.add("pi", pieces()[1], 1)
    assert have(transfers, 1 + STALL_SECONDS - 0.1) == []
    (ask,) = have(transfers, 1 + STALL_SECONDS)
    assert ask == ("pi", Have(digest=content_digest(BLOB), have=b"\x02", size=1000))
    missing = list(split(BLOB, 1000, ask[1].have, ask[1].size))
    assert [piece.index for piece in missing] == [0, 2]
    assert [transfers.add("pi", piece, 5) for piece in missing][-1] == BLOB
    assert have(transfers, 100) == []


def test_questions_grow_rarer_and_progress_restores_patience(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    times = [now / 10 for now in range(3000) if have(transfers, now / 10)]
    gaps = [after - before for before, after in itertools.pairwise([0.0, *times])]
    assert gaps[:4] == [pytest.approx(STALL_SECONDS * 2**number, abs=0.1) for number in range(4)]
    assert max(gaps) <= STALL_MAX + 0.1
    transfers.add("pi", pieces()[0], 400)
    assert have(transfers, 400 + STALL_SECONDS - 0.1) == []
    assert len(have(transfers, 400 + STALL_SECONDS)) == 1
    transfers.add("pi", pieces()[0], 401 + STALL_SECONDS)  # nothing new
    assert have(transfers, 401 + 2 * STALL_SECONDS) == []


def test_nothing_is_asked_for_while_pieces_of_others_arrive(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    transfers.expect(expect("late", OTHER), 0)
    asked = []
    for now in range(int(QUEUE_SECONDS) + 2):
        transfers.add("pi", pieces()[0], now)
        asked += [(now, device) for device, _ in have(transfers, now)]
    assert sorted(asked) == [(QUEUE_SECONDS, "late"), (QUEUE_SECONDS, "pi")]


def test_pieces_may_change_their_size_on_the_way(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    transfers.add("pi", pieces()[0], 0)
    transfers.add("pi", next(split(BLOB, 512, b"\x07")), 0)
    (ask,) = have(transfers, 100)
    assert ask[1].size == 512
    rest = list(split(BLOB, 1000, ask[1].have, ask[1].size))
    assert [transfers.add("pi", piece, 101) for piece in rest][-1] == BLOB


def test_a_new_announcement_and_the_rounds_end_forget_what_came_before(transfers: Transfers) -> None:
    transfers.expect(expect(), 0)
    transfers.add("pi", pieces()[0], 0)
    transfers.expect(expect(blob=OTHER), 1)
    with pytest.raises(RefusedError):
        transfers.add("pi", pieces()[1], 1)
    transfers.clear()
    with pytest.raises(RefusedError):
        transfers.add("pi", pieces(OTHER)[0], 1)
    assert have(transfers, 100) == []


LONG = os.urandom(2 * WINDOW_BYTES + 1000)
SIZE = 65_472
NAME = content_digest(LONG)


def indices(answer: list[bytes]) -> list[int]:
    return [Piece.decode(data).index for data in answer]


def test_a_question_is_answered_with_a_window_of_what_is_missing() -> None:
    downloads = Downloads()
    assert indices(downloads.answer("pi", Want(digest=NAME), LONG, SIZE, 0)) == [0, 1, 2, 3]
    assert indices(downloads.answer("pi", Want(digest=NAME, have=b"\x0b", size=SIZE), LONG, SIZE, 0)) == [2, 4, 5, 6]
    assert indices(downloads.answer("pi", Want(digest=NAME, have=b"\x7f", size=SIZE), LONG, SIZE, 0)) == [7, 8]
    assert downloads.answer("pi", Want(digest=NAME, have=b"\xff\x01", size=SIZE), LONG, SIZE, 0) == []
    whole = [Piece.decode(data) for data in downloads.answer("b", Want(digest=content_digest(BLOB)), BLOB, SIZE, 0)]
    assert [(piece.digest, piece.data) for piece in whole] == [(content_digest(BLOB), BLOB)]


def test_the_same_question_again_is_answered_only_after_a_while() -> None:
    downloads, want = Downloads(), Want(digest=NAME)
    downloads.answer("pi", want, LONG, SIZE, 100)
    with pytest.raises(StaleError) as caught:
        downloads.answer("pi", want, LONG, SIZE, 100 + AGAIN_SECONDS / 2)
    assert caught.value.cause == "too-soon"
    assert downloads.answer("other", want, LONG, SIZE, 100)
    assert indices(downloads.answer("pi", want, LONG, SIZE, 100 + AGAIN_SECONDS)) == [0, 1, 2, 3]


def test_nobody_gets_more_than_a_share() -> None:
    downloads, got, now = Downloads(), 0, 0.0
    for number in range(1000):
        now += 0.01
        want = Want(digest=NAME, have=number.to_bytes(2, "big") + b"\0", size=300)
        try:
            got += sum(len(data) for data in downloads.answer("pi", want, LONG, SIZE, now))
        except StaleError:
            continue
    assert BURST_BYTES < got <= BURST_BYTES + BYTES_A_SECOND * now + WINDOW_BYTES
    assert downloads.answer("pi", Want(digest=NAME), LONG, SIZE, now + 60)


def test_an_impossible_bitmap_is_refused() -> None:
    with pytest.raises(MalformedError):
        Downloads().answer("pi", Want(digest=NAME, have=b"\1", size=1), LONG, SIZE, 0)
