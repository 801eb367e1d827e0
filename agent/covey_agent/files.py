"""Files that are whole or absent, and private."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PRIVATE = 0o600


def write_atomically(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Replace a file in one step that survives a power cut: write beside, flush, rename, flush the folder."""
    beside = path.with_name(f".{path.name}.new")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            os.fchmod(handle, mode)  # the umask, or a file left here by another hand, may have made it different
            _write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()  # half of it would go on filling the disk that was full
        raise
    sync_folder(path.parent)


def make_private_file(path: Path | str) -> None:
    """Make an empty file for the owner's eyes alone, if there is none yet.

    A file that is there is not opened: where it is a database that this process has open already, closing the second
    handle would drop all locks of the first, and another process could then take the write-ahead log away from under it
    (SQLite, "How To Corrupt An SQLite Database File", section 2.2).
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))


def append(path: Path, data: bytes) -> None:
    """Add to a private file, without flushing it: a power cut may tear the end off."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
    try:
        _write_all(handle, data)
    finally:
        os.close(handle)


def destroy(path: Path) -> None:
    """Overwrite a file with zeros once and remove it; on flash storage old blocks may outlive this."""
    size = path.stat().st_size
    handle = os.open(path, os.O_WRONLY)
    try:
        _write_all(handle, bytes(size))
        os.fsync(handle)
    finally:
        os.close(handle)
    path.unlink()
    sync_folder(path.parent)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(path: Path) -> None:
    """Make renames and removals in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
