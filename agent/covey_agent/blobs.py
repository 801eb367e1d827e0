"""Models and bundles on the device's disk, by digest."""

from __future__ import annotations

from pathlib import Path

from covey_agent.files import write_atomically
from covey_protocol.digest import content_digest


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
        names = {digest.hex() for digest in digests}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _path(self, digest: bytes) -> Path:
        return self._folder / digest.hex()
