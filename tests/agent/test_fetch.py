"""covey_agent.fetch: what does not come by itself is asked for, patiently."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from covey_agent.blobs import PieceLog
from covey_agent.fetch import FRESH_SECONDS, FRESH_SPREAD, PATIENCE, PATIENCE_MAX, UNANNOUNCED_BYTES, Ask, Fetcher
from covey_protocol.chunks import WINDOW_BYTES, Piece, bit, split, window_count
from covey_protocol.digest import content_digest
from covey_protocol.errors import MalformedError, RefusedError

BLOB = bytes(range(250)) * 40
NAME = content_digest(BLOB)
PIECES = list(split(BLOB, 1000))
BUDGET = 1 << 22


class Still:
    """Jitter that always draws the least."""

    def uniform(self, a: float, b: float) -> float:
        return a


def make(budget: int = BUDGET, kept: PieceLog | None = None) -> Fetcher:
    return Fetcher(budget, kept, Still())


@pytest.fixture
def fetcher() -> Fetcher:
    fetcher = make()
    fetcher.want(NAME, len(BLOB), 100.0)
    return fetcher


def test_nothing_is_asked_for_while_it_may_come_by_itself(fetcher: Fetcher) -> None:
    assert make().next_due() is None
    assert fetcher.next_due() == 100 + PATIENCE
    assert fetcher.due(100.0) == []
    assert fetcher.due(100 + PATIENCE - 0.01) == []
    assert fetcher.due(100 + PATIENCE) == [Ask(NAME, b"", 0)]


def test_the_question_says_what_is_here(fetcher: Fetcher) -> None:
    for index in (0, 3, 9):
        assert fetcher.add(PIECES[index], 100.0) is None
    [ask] = fetcher.due(200.0)
    assert (ask.digest, ask.size) == (NAME, 1000)
    assert [index for index in range(len(PIECES)) if bit(ask.have, index)] == [0, 3, 9]
    blob = None
    for piece in split(BLOB, 1000, ask.have, ask.size):
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


def test_patience_is_spread_so_that_a_fleet_does_not_ask_at_one_instant() -> None:
    times = set()
    for _ in range(50):
        fetcher = Fetcher(BUDGET)
        fetcher.want(NAME, len(BLOB), 100.0)
        times.add(fetcher.next_due())
    assert len(times) > 40
    assert all(100 + PATIENCE <= at <= 100 + 1.5 * PATIENCE for at in times if at)


def test_progress_postpones_the_question_and_restores_patience(fetcher: Fetcher) -> None:
    for _ in range(4):
        fetcher.due(fetcher.next_due() or 0.0)
    fetcher.add(PIECES[0], 101.0)
    assert fetcher.due(101.0) == []  # the rest was asked for and is still expected
    assert fetcher.next_due() == 101 + PATIENCE
    assert fetcher.due(101 + PATIENCE / 2) == []
    fetcher.add(PIECES[1], 101 + PATIENCE / 5)
    assert fetcher.due(101 + PATIENCE / 5) == []
    assert fetcher.due(101 + PATIENCE) == []
    assert len(fetcher.due(101 + 1.2 * PATIENCE)) == 1


def test_a_piece_that_is_here_already_is_no_progress(fetcher: Fetcher) -> None:
    fetcher.add(PIECES[0], 100.0)
    fetcher.add(PIECES[0], 100 + PATIENCE / 2)
    assert fetcher.next_due() == 100 + PATIENCE


def test_patience_follows_the_pace_of_a_slow_line(fetcher: Fetcher) -> None:
    for number in range(3):
        fetcher.add(PIECES[number], 100.0 + 4 * number)
    assert fetcher.next_due() == 108 + 4 * 4
    fetcher.want(bytes(32), 10_000, 110.0)
    assert fetcher.due(110 + PATIENCE) == []
    fetcher.forget(bytes(32))
    fetcher.add(PIECES[3], 1000.0)
    assert fetcher.next_due() == 1000 + PATIENCE_MAX


LONG = bytes(2 * WINDOW_BYTES + 70_000)
LONG_PIECES = list(split(LONG, 65_536))
WINDOW = window_count(65_536)


def answer(ask: Ask) -> list[Piece]:
    """What the aggregator sends for a question."""
    return list(itertools.islice(split(LONG, 65_536, ask.have, ask.size), WINDOW))


def test_a_long_blob_is_fetched_window_by_window_and_no_piece_twice() -> None:
    fetcher, line, sent, blob, now = make(), list[Piece](), list[int](), None, 0.0
    fetcher.want(content_digest(LONG), len(LONG), now)
    while blob is None:
        asks = fetcher.due(fetcher.next_due() or 0.0 if not line else now)
        now = max(now, fetcher.next_due() or 0.0) if not line and not asks else now
        for ask in asks:
            line += answer(ask)
            sent += [piece.index for piece in answer(ask)]
        assert len(line) <= 2 * WINDOW, "what is on its way stays bounded"
        if line:
            now += 0.1
            blob = fetcher.add(line.pop(0), now)
    assert blob == LONG
    assert sorted(sent) == list(range(len(LONG_PIECES)))


def test_a_window_that_does_not_come_is_asked_for_again_from_its_first_piece(fetcher: Fetcher) -> None:
    name = content_digest(LONG)
    fetcher.forget(NAME)
    fetcher.want(name, len(LONG), 100.0)
    [first] = fetcher.due(100 + PATIENCE)
    for piece in answer(first)[:2]:
        fetcher.add(piece, 106.0)
    [second] = fetcher.due(106.0)  # pieces 2 and 3 are still on their way
    assert [piece.index for piece in answer(second)] == [4, 5, 6, 7]
    assert fetcher.due(106 + PATIENCE / 2) == []
    [third] = fetcher.due(106 + PATIENCE)
    assert [piece.index for piece in answer(third)] == [2, 3, 4, 5]


def test_nothing_is_asked_for_while_the_link_is_down(fetcher: Fetcher) -> None:
    assert fetcher.due(1000.0, online=False) == []
    assert fetcher.next_due() == 1000 + PATIENCE  # and nobody spins meanwhile
    fetcher.connected(True, 1003.0)
    assert fetcher.due(1003.0) == []
    assert fetcher.next_due() == 1003 + PATIENCE


def test_without_a_session_what_is_wanted_is_asked_for_soon(fetcher: Fetcher) -> None:
    assert len(fetcher.due(200.0)) == 1
    fetcher.add(PIECES[0], 200.0)
    fetcher.connected(False, 300.0)
    [again] = fetcher.due(300 + FRESH_SPREAD)
    assert bit(again.have, 0)
    assert again.size == 1000
    fresh, late = b"\x01" * 32, b"\x02" * 32
    fetcher.want(fresh, 100, 301.0)
    assert fetcher.due(301 + FRESH_SPREAD) == [Ask(fresh, b"", 0)]
    fetcher.want(late, 100, 300 + FRESH_SECONDS)
    assert fetcher.due(300 + FRESH_SECONDS + FRESH_SPREAD) == []


def test_what_cannot_come_by_itself_is_asked_for_soon() -> None:
    fetcher = make()
    fetcher.want(NAME, len(BLOB), 100.0, overdue=True)
    assert fetcher.due(100 + FRESH_SPREAD) == [Ask(NAME, b"", 0)]
    assert fetcher.next_due() == 100 + FRESH_SPREAD + 2 * PATIENCE


def test_with_a_session_what_was_asked_for_is_still_expected() -> None:
    fetcher, name = make(), content_digest(LONG)
    fetcher.want(name, len(LONG), 0.0)
    [first] = fetcher.due(PATIENCE)
    fetcher.add(answer(first)[0], 6.0)
    for present, again in ((True, []), (False, [1, 2, 3, 4])):
        fetcher.connected(present, 7.0)
        asks = fetcher.due(7.5)
        assert [piece.index for ask in asks for piece in answer(ask)] == again


def test_a_piece_of_another_size_makes_a_new_count(fetcher: Fetcher) -> None:
    fetcher.add(PIECES[0], 100.0)
    half = list(split(BLOB, 500))
    for piece in half[2:-1]:
        assert fetcher.add(piece, 101.0) is None
    [ask] = fetcher.due(200.0)
    assert ask.size == 500
    assert [piece.index for piece in split(BLOB, 500, ask.have, ask.size)] == [19]
    assert [piece.index for piece in split(BLOB, 1000, ask.have, ask.size)] == [9]
    assert fetcher.add(PIECES[9], 201.0) == BLOB


def test_a_restart_costs_no_piece(tmp_path: Path) -> None:
    kept = PieceLog(tmp_path / "pieces")
    before = make(kept=kept)
    before.want(NAME, len(BLOB), 0.0)
    for piece in [*PIECES[:6], *PIECES[:6]]:
        before.add(piece, 1.0)
    after = make(kept=PieceLog(tmp_path / "pieces"))
    after.want(NAME, len(BLOB), 2.0)
    after.connected(False, 2.0)
    [ask] = after.due(3.0)
    rest = list(split(BLOB, 1000, ask.have, ask.size))
    assert [piece.index for piece in rest] == [6, 7, 8, 9]
    assert [after.add(piece, 3.0) for piece in rest][-1] == BLOB
    after.forget(NAME)
    assert list((tmp_path / "pieces").iterdir()) == []


def test_pieces_of_blobs_that_nobody_wants_leave_the_disk(tmp_path: Path) -> None:
    fetcher = make(kept=PieceLog(tmp_path))
    fetcher.add(PIECES[0], 0.0)
    assert list(tmp_path.iterdir()) == []
    fetcher.want(NAME, len(BLOB), 0.0)
    fetcher.add(PIECES[1], 0.0)
    assert len(list(tmp_path.iterdir())) == 1
    make(kept=PieceLog(tmp_path)).keep_only(set())
    assert list(tmp_path.iterdir()) == []


def test_pieces_that_do_not_make_the_blob_are_dropped_from_the_disk(tmp_path: Path) -> None:
    fetcher = make(kept=PieceLog(tmp_path))
    fetcher.want(NAME, len(BLOB), 0.0)
    for piece in PIECES[:-1]:
        fetcher.add(Piece(piece.digest, piece.total, piece.size, piece.index, bytes(len(piece.data))), 0.0)
    with pytest.raises(MalformedError):
        fetcher.add(PIECES[-1], 0.0)
    after = make(kept=PieceLog(tmp_path))
    after.want(NAME, len(BLOB), 0.0)
    assert [after.add(piece, 0.0) for piece in PIECES][-1] == BLOB


def test_wanting_again_neither_resets_the_clock_nor_what_has_come(fetcher: Fetcher) -> None:
    fetcher.add(PIECES[0], 100.0)
    fetcher.want(NAME, len(BLOB), 100 + PATIENCE / 2)
    assert fetcher.due(100 + PATIENCE)[0].have == b"\x01\x00"


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
    assert [ask.digest for ask in fetcher.due(1e9)] == [bytes(32)]
    fetcher.want(b"\x01" * 32, BUDGET - 100, 100.0)


def test_the_budget_holds_for_all_wanted_blobs_together(fetcher: Fetcher) -> None:
    fetcher.want(bytes(32), BUDGET - len(BLOB), 100.0)
    with pytest.raises(RefusedError, match="budget"):
        fetcher.want(b"\x01" * 32, 1, 100.0)
    # What was refused is not asked for either.
    assert {ask.digest for ask in fetcher.due(1e9)} == {NAME, bytes(32)}


def test_pieces_that_come_before_anybody_wants_them_are_taken_within_bounds() -> None:
    fetcher = make()
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
