"""covey_agent.blobs: what is read has the digest it goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.agent.cuts import Cut, PowerCut, steps

from covey_agent.blobs import BlobStore, PieceLog
from covey_protocol.chunks import split
from covey_protocol.digest import content_digest

BLOB = bytes(range(256)) * 40
NAME = content_digest(BLOB)
PIECES = list(split(BLOB[:10_000], 1000))


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_a_blob_comes_back_also_after_a_restart(blobs: BlobStore, tmp_path: Path) -> None:
    assert blobs.get(NAME) is None
    blobs.put(NAME, BLOB)
    assert blobs.get(NAME) == BLOB
    assert BlobStore(tmp_path / "blobs").get(NAME) == BLOB
    assert (tmp_path / "blobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [BLOB[:-1], BLOB[:-1] + b"x", b"", BLOB + b"x"])
def test_a_damaged_blob_is_removed_and_can_be_fetched_again(blobs: BlobStore, tmp_path: Path, damage: bytes) -> None:
    blobs.put(NAME, BLOB)
    path = tmp_path / "blobs" / NAME.hex()
    path.write_bytes(damage)
    assert blobs.get(NAME) is None
    assert not path.exists()
    blobs.put(NAME, BLOB)
    assert blobs.get(NAME) == BLOB


def test_keep_only_removes_all_others_and_what_was_cut_off(blobs: BlobStore, tmp_path: Path) -> None:
    other, third = b"other", b"third"
    for blob in (BLOB, other, third):
        blobs.put(content_digest(blob), blob)
    (tmp_path / "blobs" / ".half.new").write_bytes(b"half a blob")
    blobs.keep_only({NAME, content_digest(third), content_digest(b"never seen")})
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {NAME.hex(), content_digest(third).hex()}
    blobs.keep_only(set())
    assert not list((tmp_path / "blobs").iterdir())


def test_a_cut_while_writing_leaves_a_whole_blob_or_none(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(steps(monkeypatch, lambda: blobs.put(NAME, BLOB))):
        blobs.keep_only(set())
        with Cut(monkeypatch, step, half=True), pytest.raises(PowerCut):
            blobs.put(NAME, BLOB)
        path = tmp_path / "blobs" / NAME.hex()
        assert not path.exists() or path.read_bytes() == BLOB


def test_pieces_come_back_in_the_order_they_came(tmp_path: Path) -> None:
    for piece in reversed(PIECES):
        PieceLog(tmp_path / "p").append(piece)
    assert list(PieceLog(tmp_path / "p").load(PIECES[0].digest)) == PIECES[::-1]
    assert list(PieceLog(tmp_path / "p").load(bytes(32))) == []


def test_a_torn_or_damaged_end_costs_that_piece_and_what_follows(tmp_path: Path) -> None:
    log = PieceLog(tmp_path)
    for piece in PIECES[:3]:
        log.append(piece)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    length = len(whole) // 3
    for cut in (length - 1, length, length + 1, length + 4, length + 21, 2 * length - 1):
        path.write_bytes(whole[:cut])
        assert list(log.load(PIECES[0].digest)) == PIECES[: cut // length]
    for place in range(length, 2 * length, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert list(log.load(PIECES[0].digest)) == PIECES[:1]


def test_a_log_stays_within_twice_its_blob(tmp_path: Path) -> None:
    log = PieceLog(tmp_path)
    for _ in range(50):
        log.append(PIECES[0])
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size <= 2 * 10_000 + 1100


def test_a_full_disk_costs_the_copies_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = PieceLog(tmp_path / "p")
    (tmp_path / "p").rmdir()
    for piece in PIECES[:3]:
        log.append(piece)
    assert len(caplog.records) == 1
    assert "kept in memory only" in caplog.text


def test_logs_that_nobody_needs_go(tmp_path: Path) -> None:
    log, other = PieceLog(tmp_path), list(split(b"x" * 5000, 1000))
    log.append(PIECES[0])
    log.append(other[0])
    log.keep_only({other[0].digest})
    assert [path.name for path in tmp_path.iterdir()] == [other[0].digest.hex()]
    log.drop(other[0].digest)
    log.drop(other[0].digest)
    assert list(tmp_path.iterdir()) == []
