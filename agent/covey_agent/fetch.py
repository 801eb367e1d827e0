"""Blobs on their way in: bundles, models and deltas, asked for again when nothing comes.

Most pieces arrive unasked, because the aggregator publishes what everybody needs. Only what has not moved for a while
is asked for, with a bitmap of what is here, at growing intervals; so a short cut costs the missing pieces and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from covey_protocol.chunks import Piece, Reassembler

PATIENCE = 1.0
PATIENCE_MAX = 60.0
UNANNOUNCED_BYTES = 1 << 20


@dataclass
class _Wanted:
    total: int
    ask_at: float
    patience: float


class Fetcher:
    """What is wanted, what has come, and when to ask.

    Args:
        budget: Bytes that all blobs on their way may take together.
    """

    def __init__(self, budget: int) -> None:
        self._reassembler = Reassembler(budget, UNANNOUNCED_BYTES)
        self._wanted: dict[bytes, _Wanted] = {}

    def want(self, digest: bytes, total: int, now: float) -> None:
        """Wait for a blob, and ask for it if it does not come by itself.

        Raises:
            RefusedError: It does not fit the budget.
        """
        if digest not in self._wanted:
            self._reassembler.expect(digest, total)
            self._wanted[digest] = _Wanted(total, now + PATIENCE, PATIENCE)

    def forget(self, digest: bytes) -> None:
        """No longer wait for a blob."""
        self._wanted.pop(digest, None)
        self._reassembler.forget(digest)

    def keep_only(self, digests: set[bytes]) -> None:
        """No longer wait for any others."""
        for digest in set(self._wanted) - digests:
            self.forget(digest)

    def add(self, piece: Piece, now: float) -> bytes | None:
        """Take a piece; return the blob when it is whole; errors as ``Reassembler.add``."""
        wanted = self._wanted.get(piece.digest)
        if wanted is not None:
            wanted.ask_at, wanted.patience = now + PATIENCE, PATIENCE
        blob = self._reassembler.add(piece)
        if blob is not None:
            self._wanted.pop(piece.digest, None)
        return blob

    def due(self, now: float) -> list[tuple[bytes, bytes]]:
        """Return digest and bitmap of every blob that is to be asked for now."""
        asks = []
        for digest, wanted in self._wanted.items():
            if now >= wanted.ask_at:
                wanted.patience = min(2 * wanted.patience, PATIENCE_MAX)
                wanted.ask_at = now + wanted.patience
                asks.append((digest, self._reassembler.have(digest)))
        return asks

    def next_due(self) -> float | None:
        """Return when ``due`` will have something, or None."""
        return min((wanted.ask_at for wanted in self._wanted.values()), default=None)
