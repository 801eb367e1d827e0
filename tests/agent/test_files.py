"""covey_agent.files: whole or absent, and private."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.agent.cuts import Cut, PowerCut, steps

from covey_agent.files import append, destroy, write_atomically

OLD, NEW = b"old" * 100, b"new" * 50_000


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _open_umask() -> Any:
    before = os.umask(0)
    yield
    os.umask(before)


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret")
    assert (mode(tmp_path / "key"), (tmp_path / "key").read_bytes()) == (0o600, b"secret")
    write_atomically(tmp_path / "open", b"words", mode=0o644)
    assert mode(tmp_path / "open") == 0o644


def test_what_is_added_to_is_private_too(tmp_path: Path) -> None:
    append(tmp_path / "f", OLD)
    append(tmp_path / "f", NEW)
    assert (tmp_path / "f").read_bytes() == OLD + NEW
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_wider_file_that_was_left_beside_does_not_pass_its_mode_on(tmp_path: Path) -> None:
    beside = tmp_path / ".key.new"
    beside.write_bytes(b"x")
    beside.chmod(0o666)
    write_atomically(tmp_path / "key", b"secret")
    assert mode(tmp_path / "key") == 0o600


def test_nothing_is_left_beside(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("old", [OLD, None])
def test_a_cut_at_any_step_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    path = tmp_path / "f"
    outcomes = []
    count = steps(monkeypatch, lambda: write_atomically(tmp_path / "rehearsal", NEW))
    assert count >= 7  # open, mode, write, fsync, rename; open and fsync of the folder
    for step in range(count):
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        with Cut(monkeypatch, step), pytest.raises(PowerCut):
            write_atomically(path, NEW)
        outcomes.append(path.read_bytes() if path.exists() else None)
        write_atomically(path, NEW)  # what was left beside does not stand in the way
        assert path.read_bytes() == NEW
    assert set(outcomes) == {old, NEW}
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == NEW)


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[[int, Any], int] = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:7000]))
    write_atomically(tmp_path / "f", NEW)
    destroy_me = tmp_path / "g"
    destroy_me.write_bytes(NEW)
    destroy(destroy_me)
    assert (tmp_path / "f").read_bytes() == NEW
    assert not destroy_me.exists()


def test_content_is_flushed_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        seen.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomically(tmp_path / "f", NEW)
    assert seen == ["file", "rename", "folder"]


def test_destroy_overwrites_before_it_removes(tmp_path: Path) -> None:
    path, other = tmp_path / "secret", tmp_path / "same-blocks"
    path.write_bytes(OLD)
    os.link(path, other)  # another name for the same blocks shows what became of them
    destroy(path)
    assert not path.exists()
    assert other.read_bytes() == bytes(len(OLD))


def test_destroy_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        destroy(tmp_path / "nothing")
