"""Bundles, models and deltas on the server's disk, and the newest of them in memory for devices that ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from covey_aggregator.files import replace
from covey_protocol import model
from covey_protocol.digest import content_digest, short
from covey_protocol.errors import ConfigError
from covey_protocol.model import Weights

_SERVED = 6
_KEPT = 20


class ModelFolder:
    """Files named by digest; bundles also by task.

    Args:
        folder: Where they are.
        needed: Tells which models must stay: the last one of every task.
    """

    def __init__(self, folder: Path, needed: Callable[[], set[bytes]] = set) -> None:
        self._folder, self._needed = folder, needed
        self._served: OrderedDict[bytes, bytes] = OrderedDict()
        self._bundles: dict[bytes, bytes] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, data: bytes) -> bytes:
        """Store a blob durably and serve it; return its digest."""
        digest = content_digest(data)
        path = self._folder / digest.hex()
        if not path.exists():
            replace(path, data)
            self._prune()
        self._served[digest] = data
        self._served.move_to_end(digest)
        while len(self._served) > _SERVED:
            self._served.popitem(last=False)
        return digest

    def serve(self, digest: bytes) -> bytes | None:
        """Return a blob that devices may ask for: a recent model or delta, or a bundle."""
        return self._served.get(digest) or self._bundles.get(digest)

    def reload(self, digest: bytes) -> bytes | None:
        """Serve a blob of an earlier run of the service again; None if it is gone or damaged."""
        try:
            data = (self._folder / digest.hex()).read_bytes()
        except OSError:
            return None
        return data if content_digest(data) == digest and self.keep(data) else None

    def load(self, digest: bytes) -> Weights:
        """Read a model.

        Raises:
            ConfigError: It is missing or damaged.
        """
        path = self._folder / digest.hex()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: the model cannot be read: {error}") from error
        if content_digest(data) != digest:
            raise ConfigError(f"{path}: the model is damaged: its digest is not {short(digest)}")
        return model.from_bytes(data)

    def put_bundle(self, task: str, data: bytes) -> None:
        """Store a task's bundle and serve it."""
        path = self._folder / f"{task}.bundle"
        if not path.exists() or path.read_bytes() != data:
            replace(path, data)
        self._bundles[content_digest(data)] = data

    def bundle(self, task: str) -> bytes:
        """Read a task's bundle.

        Raises:
            ConfigError: It is missing.
        """
        path = self._folder / f"{task}.bundle"
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: the bundle cannot be read: {error}") from error

    def _prune(self) -> None:
        """Remove all but the newest models and deltas, and those that a task ended with."""
        needed = {digest.hex() for digest in self._needed()}
        blobs = [path for path in self._folder.iterdir() if len(path.name) == 64 and path.name not in needed]
        blobs.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in blobs[_KEPT:]:
            path.unlink(missing_ok=True)
