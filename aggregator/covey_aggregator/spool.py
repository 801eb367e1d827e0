"""A round's masked vectors and its sealing secret on disk, for as long as the round is open.

All vectors of a round are one file that only grows, so that any number of them become durable with one flush; which
bytes are whose stands in the journal, and what no line of the journal names does not count. A sum over whichever
members can be folded from it, one vector in memory at a time. Files of rounds that are not open are removed at start.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from covey_aggregator.files import PRIVATE, flush_folder, read_private, write_private
from covey_protocol.errors import LocalError
from covey_protocol.prg import Ring

SECRET_BYTES = 32
_SECRET, _VECTORS = ".key", ".vectors"
_PLACE = struct.Struct("<QQ")  # offset and length


class Spool:
    """One round's files; use ``create`` or ``reopen``."""

    def __init__(self, folder: Path, label: str, secret: bytes) -> None:
        self._folder, self._label, self.secret = folder, label, secret
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(folder / f"{label}{_VECTORS}", flags, PRIVATE)
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._dirty = False

    def __repr__(self) -> str:
        return f"Spool({self._label!r})"

    @staticmethod
    def create(folder: Path, label: str, secret: bytes) -> Spool:
        """Make the files of a round that is about to be opened; they are durable when this returns."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{label}{_SECRET}"
        path.unlink(missing_ok=True)  # of a try that was cut off before its round was opened
        write_private(path, secret)
        spool = Spool(folder, label, secret)
        os.ftruncate(spool._file, 0)
        flush_folder(folder)
        return spool

    @staticmethod
    def reopen(folder: Path, label: str) -> Spool:
        """Open the files of a round that goes on.

        Raises:
            ConfigError: The sealing secret is missing or unusable.
        """
        return Spool(folder, label, read_private(folder / f"{label}{_SECRET}", SECRET_BYTES))

    def put(self, device: str, vector: bytes) -> bytes:
        """Add a device's vector, or find it again when a journal is played; return its place for the journal."""
        if device not in self._places:
            written = os.pwrite(self._file, vector, self._end)
            while written < len(vector):
                written += os.pwrite(self._file, vector[written:], self._end + written)
            self._places[device] = (self._end, len(vector))
            self._end += len(vector)
            self._dirty = True
        return _PLACE.pack(*self._places[device])

    def restore(self, device: str, place: bytes) -> bytes:
        """Take over a place from the journal and return the vector that is there.

        Raises:
            LocalError: There is no such place in the file.
        """
        if len(place) != _PLACE.size:
            raise LocalError(f"the journal has no place for the vector of {device!r}", cause="spool")
        offset, length = _PLACE.unpack(place)
        if offset + length > os.fstat(self._file).st_size:
            raise LocalError(f"the spool ends before the vector of {device!r}", cause="spool")
        self._places[device] = (offset, length)
        self._end = max(self._end, offset + length)
        return self.vector(device)

    def vector(self, device: str) -> bytes:
        """Return a device's vector as it came."""
        offset, length = self._places[device]
        return os.pread(self._file, length, offset)

    def ring(self, device: str) -> Ring:
        """Return a device's vector as numbers."""
        return np.frombuffer(self.vector(device), "<u2")

    def fold(self, devices: Iterable[str], elements: int) -> Ring:
        """Return the sum of some devices' vectors in the ring, shape (elements,)."""
        total = np.zeros(elements, np.uint16)
        for device in devices:
            total += self.ring(device)
        return total

    @property
    def count(self) -> int:
        """How many vectors are here."""
        return len(self._places)

    def sync(self) -> None:
        """Make what was put durable; the journal may name it afterwards."""
        if self._dirty:
            os.fdatasync(self._file)
            self._dirty = False

    def close(self) -> None:
        """Close the files and leave them for the next start."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Forget everything: the round is over."""
        self.close()
        _remove_secret(self._folder / f"{self._label}{_SECRET}")
        (self._folder / f"{self._label}{_VECTORS}").unlink(missing_ok=True)


def clean(folder: Path, label: str = "") -> None:
    """Remove the files of all rounds but one, or of all."""
    if not folder.exists():
        return
    for path in sorted(folder.iterdir()):
        if path.stem == label and label:
            continue
        if path.suffix == _SECRET:
            _remove_secret(path)
        elif path.suffix == _VECTORS:
            path.unlink(missing_ok=True)


def _remove_secret(path: Path) -> None:
    """Overwrite a secret before its name goes; what a flash disk keeps of it is beyond us."""
    try:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink(missing_ok=True)
