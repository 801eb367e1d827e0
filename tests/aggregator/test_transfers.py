"""Masked vectors in pieces: announced, within their size, and asked for when they stall."""

from __future__ import annotations

import pytest
from nacl.signing import SigningKey

from covey_aggregator.transfers import STALL_SECONDS, Transfers
from covey_protocol import topics
from covey_protocol.chunks import Piece, split
from covey_protocol.digest import content_digest
from covey_protocol.effects import Expect
from covey_protocol.envelope import Context, open_signed
from covey_protocol.errors import MalformedError, RefusedError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import MAX_MODEL_BYTES, Have
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
    transfers.expect(expect("late", OTHER), 0)
    transfers.add("pi", pieces()[1], 1)
    assert have(transfers, STALL_SECONDS - 0.1) == []
    assert have(transfers, STALL_SECONDS) == [("late", Have(digest=content_digest(OTHER), have=b""))]
    (ask,) = have(transfers, 1 + STALL_SECONDS)
    assert ask == ("pi", Have(digest=content_digest(BLOB), have=b"\x02"))
    assert have(transfers, 1 + STALL_SECONDS + 0.1) == []
    missing = list(split(BLOB, 1000, ask[1].have))
    assert [piece.index for piece in missing] == [0, 2]
    assert [transfers.add("pi", piece, 5) for piece in missing][-1] == BLOB
    assert [device for device, _ in have(transfers, 100)] == ["late"]


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
