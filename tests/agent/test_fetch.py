"""covey_agent.fetch: what does not come by itself is asked for, patiently."""

from __future__ import annotations

import itertools

import pytest

from covey_agent.fetch import PATIENCE, PATIENCE_MAX, UNANNOUNCED_BYTES, Fetcher
from covey_protocol.chunks import Piece, bit, split
from covey_protocol.digest import content_digest
from covey_protocol.errors import MalformedError, RefusedError

BLOB = bytes(range(250)) * 40
NAME = content_digest(BLOB)
PIECES = list(split(BLOB, 1000))
BUDGET = 1 << 20


@pytest.fixture
def fetcher() -> Fetcher:
    fetcher = Fetcher(BUDGET)
    fetcher.want(NAME, len(BLOB), 100.0)
    return fetcher


def test_nothing_is_asked_for_while_it_may_come_by_itself(fetcher: Fetcher) -> None:
    assert Fetcher(BUDGET).next_due() is None
    assert fetcher.next_due() == 100 + PATIENCE
    assert fetcher.due(100.0) == []
    assert fetcher.due(100 + PATIENCE - 0.01) == []
    assert fetcher.due(100 + PATIENCE) == [(NAME, b"")]


def test_the_question_says_what_is_here(fetcher: Fetcher) -> None:
    for index in (0, 3, 9):
        assert fetcher.add(PIECES[index], 100.0) is None
    [(digest, have)] = fetcher.due(200.0)
    assert digest == NAME
    assert [index for index in range(len(PIECES)) if bit(have, index)] == [0, 3, 9]
    blob = None
    for piece in split(BLOB, 1000, have):
        blob = fetcher.add(piece, 200.0)
    assert blob == BLOB


def test_questions_grow_rarer_up_to_a_minute(fetcher: Fetcher) -> None:
    asked: list[float] = []
    while len(asked) < 10:
        now = fetcher.next_due() or 0.0
        assert fetcher.due(now - 0.001) == []
        assert len(fetcher.due(now)) == 1
        asked.append(now)
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps[:3] == [2 * PATIENCE, 4 * PATIENCE, 8 * PATIENCE]
    assert gaps == sorted(gaps)
    assert gaps[-1] == PATIENCE_MAX


def test_progress_postpones_the_question_and_restores_patience(fetcher: Fetcher) -> None:
    for _ in range(4):
        fetcher.due(fetcher.next_due() or 0.0)
    fetcher.add(PIECES[0], 500.0)
    assert fetcher.next_due() == 500 + PATIENCE
    assert fetcher.due(500 + PATIENCE / 2) == []
    fetcher.add(PIECES[1], 500 + PATIENCE / 2)
    assert fetcher.due(500 + PATIENCE) == []
    assert len(fetcher.due(500 + 1.5 * PATIENCE)) == 1


def test_wanting_again_neither_resets_the_clock_nor_what_has_come(fetcher: Fetcher) -> None:
    fetcher.add(PIECES[0], 100.0)
    fetcher.want(NAME, len(BLOB), 100 + PATIENCE / 2)
    assert fetcher.due(100 + PATIENCE)[0][1] == b"\x01\x00"


def test_a_whole_blob_is_no_longer_asked_for(fetcher: Fetcher) -> None:
    blobs = [fetcher.add(piece, 100.0) for piece in PIECES]
    assert blobs == [None] * (len(PIECES) - 1) + [BLOB]
    assert fetcher.next_due() is None
    assert fetcher.due(1e9) == []


def test_what_is_forgotten_is_not_asked_for_and_gives_its_place_back(fetcher: Fetcher) -> None:
    with pytest.raises(RefusedError, match="budget"):
        fetcher.want(bytes(32), BUDGET, 100.0)
    fetcher.forget(NAME)
    assert fetcher.due(1e9) == []
    fetcher.want(bytes(32), BUDGET, 100.0)
    fetcher.forget(b"never wanted")


def test_only_what_is_needed_is_kept(fetcher: Fetcher) -> None:
    fetcher.want(bytes(32), 100, 100.0)
    fetcher.keep_only({bytes(32)})
    assert [digest for digest, _ in fetcher.due(1e9)] == [bytes(32)]
    fetcher.want(b"\x01" * 32, BUDGET - 100, 100.0)


def test_the_budget_holds_for_all_wanted_blobs_together(fetcher: Fetcher) -> None:
    fetcher.want(bytes(32), BUDGET - len(BLOB), 100.0)
    with pytest.raises(RefusedError, match="budget"):
        fetcher.want(b"\x01" * 32, 1, 100.0)
    # What was refused is not asked for either.
    assert {digest for digest, _ in fetcher.due(1e9)} == {NAME, bytes(32)}


def test_pieces_that_come_before_anybody_wants_them_are_taken_within_bounds() -> None:
    fetcher = Fetcher(BUDGET)
    for piece in PIECES[:-1]:
        fetcher.add(piece, 100.0)
    fetcher.want(NAME, len(BLOB), 100.0)
    assert fetcher.add(PIECES[-1], 100.0) == BLOB
    large = Piece(bytes(32), UNANNOUNCED_BYTES + 1, 1000, 0, bytes(1000))
    with pytest.raises(RefusedError, match="nobody announced"):
        fetcher.add(large, 100.0)


def test_a_blob_of_another_size_or_digest_is_refused_and_still_wanted(fetcher: Fetcher) -> None:
    with pytest.raises(MalformedError, match="announced"):
        fetcher.add(Piece(NAME, len(BLOB) - 1, 1000, 0, PIECES[0].data), 100.0)
    for piece in PIECES[:-1]:
        fetcher.add(piece, 100.0)
    with pytest.raises(MalformedError, match="digest"):
        fetcher.add(Piece(NAME, len(BLOB), 1000, 9, bytes(1000)), 100.0)
    assert len(fetcher.due(1e9)) == 1
    assert [fetcher.add(piece, 100.0) for piece in PIECES][-1] == BLOB
