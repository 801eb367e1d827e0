"""Files of the server's and the operator's homes: private where they hold keys, and never overwritten by accident."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from covey_protocol.errors import ConfigError

PRIVATE = 0o600
T = TypeVar("T")


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter; an existing one stays as it is."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)


def make_private_file(path: Path | str) -> None:
    """Make an empty file for the owner's eyes alone, if there is none yet.

    A file that is there is not opened: where it is a database that this process has open already, closing the second
    handle would drop all locks of the first, and another process could then take the write-ahead log away from under it
    (SQLite, "How To Corrupt An SQLite Database File", section 2.2).
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))


def write_private(path: Path, data: bytes) -> None:
    """Write a new file for its owner's eyes; an existing one is not touched.

    Raises:
        ConfigError: It exists, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error}") from error
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_private(path: Path, size: int) -> bytes:
    """Read a key.

    Raises:
        ConfigError: It is missing, of the wrong size, or readable by others.
    """
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(data) != size:
        raise ConfigError(f"{path}: holds {len(data)} bytes where a key has {size}")
    if mode & 0o077:
        raise ConfigError(f"{path}: readable by others; run: chmod 600 {path}")
    return data


def write_new(path: Path, text: str) -> None:
    """Write a file for people to edit, unless it is there."""
    if not path.exists():
        replace(path, text.encode())


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file in one durable step; nobody whom ``mode`` keeps out sees it at any time."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    flush_folder(path.parent)


def read_yaml(path: Path, kind: type[T]) -> T:
    """Read settings against their schema.

    Raises:
        ConfigError: Not YAML, or not of the schema; the message names file and field.
    """
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, kind)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error  # YAML's errors have many lines


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out for a moment; they wait."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class FolderLock:
    """Keeps a second process off a folder; the system gives it back when the process ends, however that happens.

    Args:
        path: The lock's file.
        what: Who else would be there, for the message.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what, self._handle = path, what, -1

    def __enter__(self) -> FolderLock:
        """Take it.

        Raises:
            ConfigError: Somebody has it.
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 20).decode("ascii", "replace").strip()
            os.close(handle)
            by = f", as process {holder}" if holder.isdigit() else ""
            raise ConfigError(f"{self._path.parent}: {self._what} runs on it already{by}") from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._handle = handle
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back; the file stays, because removing it would race with the next one."""
        os.close(self._handle)
