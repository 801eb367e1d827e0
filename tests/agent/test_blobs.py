"""covey_agent.blobs: what is read has the digest it goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.agent.cuts import Cut, PowerCut, steps

from covey_agent.blobs import BlobStore
from covey_protocol.digest import content_digest

BLOB = bytes(range(256)) * 40
NAME = content_digest(BLOB)


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
