"""Models and bundles on the device's disk, by digest: whole ones, and the pieces of those that are still coming."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from covey_agent.files import append, write_atomically
from covey_protocol.chunks import Piece
from covey_protocol.digest import content_digest, short
from covey_protocol.errors import CoveyError

log = logging.getLogger("covey.agent")

_LENGTH, _CHECK = 4, 16


class BlobStore:
    """A folder of blobs; what is read is checked against its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep a blob whose digest has been checked."""
        write_atomically(self._path(digest), data)

    def get(self, digest: bytes) -> bytes | None:
        """Return a blob, or None if it is not here or damaged (a damaged one is removed)."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if content_digest(data) != digest:
            path.unlink(missing_ok=True)
            return None
        return data

    def keep_only(self, digests: set[bytes]) -> None:
        """Remove all others."""
        _keep_only(self._folder, digests)

    def _path(self, digest: bytes) -> Path:
        return self._folder / digest.hex()


class PieceLog:
    """Pieces that have come of blobs that are not whole yet, so that a restart of the agent costs none of them.

    One file a blob, to which each piece is appended with its length and a checksum. Nothing is flushed: what a power
    cut tears off or damages is found by the checksum and asked for again. A file holds at most twice its blob's bytes,
    because each piece in it brought something new and the rest is refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._failed = False

    def append(self, piece: Piece) -> None:
        """Keep a piece; a disk that is full costs the copy and nothing else."""
        data = piece.encode()
        path = self._path(piece.digest)
        try:
            if path.exists() and path.stat().st_size > 2 * piece.total:
                return
            append(path, len(data).to_bytes(_LENGTH, "big") + _checksum(data) + data)
        except OSError as error:
            if not self._failed:
                log.warning("pieces of blob %s are kept in memory only: %s", short(piece.digest), error)
            self._failed = True

    def load(self, digest: bytes) -> Iterator[Piece]:
        """Yield the pieces of a blob, up to the first that is damaged."""
        try:
            file = self._path(digest).open("rb")
        except OSError:
            return
        with file:
            while len(head := file.read(_LENGTH + _CHECK)) == _LENGTH + _CHECK:
                data = file.read(int.from_bytes(head[:_LENGTH], "big"))
                if _checksum(data) != head[_LENGTH:]:
                    return
                try:
                    piece = Piece.decode(data)
                except CoveyError:
                    return
                if piece.digest == digest:
                    yield piece

    def drop(self, digest: bytes) -> None:
        """Forget a blob's pieces."""
        self._path(digest).unlink(missing_ok=True)

    def keep_only(self, digests: set[bytes]) -> None:
        """Forget the pieces of all others."""
        _keep_only(self._folder, digests)

    def _path(self, digest: bytes) -> Path:
        return self._folder / digest.hex()


def _keep_only(folder: Path, digests: set[bytes]) -> None:
    names = {digest.hex() for digest in digests}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink(missing_ok=True)


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK).digest()
