"""Blobs on their way in: bundles, models and deltas, asked for when they do not come by themselves.

Most pieces arrive unasked, because the aggregator publishes what everybody needs. A device asks only

- when a blob cannot come by itself: the broker had no session for the device, or it was never published to all; or
- when nothing has come for a while, measured by how quickly pieces have come so far.

It asks for a window of pieces at a time, and for the next when half of it is here. What was asked for and is still on
its way counts as present, so a slow link never carries a piece twice because somebody grew impatient. While the link is
down nothing is asked, and what the broker keeps for a session comes first when the link is back.

What has come of a blob is kept on disk too, and a restarted agent asks for the rest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from covey_agent.blobs import PieceLog
from covey_agent.link_options import Jitter
from covey_protocol.chunks import Piece, Reassembler, lacking, piece_count, window_count
from covey_protocol.errors import MalformedError, PeerError

PATIENCE = 5.0
PATIENCE_MAX = 60.0
FRESH_SECONDS = 2.0  # how long after a connection without a session whatever is wanted was published before it
FRESH_SPREAD = 1.0  # a fleet that lost its broker must not ask at one instant
UNANNOUNCED_BYTES = 1 << 20


class Ask(NamedTuple):
    """A question to put: which blob, what is here or on its way, and the piece size that the bitmap counts in."""

    digest: bytes
    have: bytes
    size: int


@dataclass
class _Wanted:
    total: int
    ask_at: float
    patience: float
    moved: float
    coming: set[int] = field(default_factory=set)  # asked for, in pieces of ``size``
    size: int = 0
    blind: bool = False  # asked before the piece size was known
    more: bool = False  # half a window has come, so the next may be asked for

    def learn(self, piece: Piece) -> None:
        """Note the piece size, and so what a question put without it was worth."""
        if piece.size == self.size:
            return
        count = piece_count(self.total, piece.size)
        first = min(count, window_count(piece.size)) if self.blind and not self.size else 0
        self.size, self.coming, self.blind = piece.size, set(range(first)), False


class Fetcher:
    """What is wanted, what has come, and when to ask.

    Args:
        budget: Bytes that all blobs on their way may take together.
        kept: Where pieces survive a restart; None keeps them in memory only.
        rng: Source of the jitter.
    """

    def __init__(self, budget: int, kept: PieceLog | None = None, rng: Jitter | None = None) -> None:
        self._reassembler = Reassembler(budget, UNANNOUNCED_BYTES)
        self._kept = kept
        self._rng = rng or random.SystemRandom()
        self._wanted: dict[bytes, _Wanted] = {}
        self._pace = 0.0  # seconds between pieces, lately
        self._fresh_until = float("-inf")

    def want(self, digest: bytes, total: int, now: float, *, overdue: bool = False) -> None:
        """Wait for a blob, and ask for it if it does not come by itself.

        Args:
            digest: Its name.
            total: Its length.
            now: Seconds on the caller's monotonic clock.
            overdue: Whether it should be here already if it came by itself, so that nobody need wait for that.

        Raises:
            RefusedError: It does not fit the budget.
        """
        if digest in self._wanted:
            return
        self._reassembler.expect(digest, total)
        soon = overdue or now < self._fresh_until
        wait = self._rng.uniform(0.0, FRESH_SPREAD) if soon else self._patience(PATIENCE)
        wanted = self._wanted[digest] = _Wanted(total, now + wait, PATIENCE, now)
        for piece in self._kept.load(digest) if self._kept else ():
            try:
                if self._reassembler.add(piece) is not None:
                    # It was whole and has not reached the store; so it has to be whole once more.
                    self._reassembler.expect(digest, total)
                    self._drop(digest)
                    break
            except PeerError:
                self._drop(digest)
                break
            wanted.learn(piece)

    def forget(self, digest: bytes) -> None:
        """No longer wait for a blob."""
        self._wanted.pop(digest, None)
        self._reassembler.forget(digest)
        self._drop(digest)

    def keep_only(self, digests: set[bytes]) -> None:
        """No longer wait for any others."""
        for digest in set(self._wanted) - digests:
            self.forget(digest)
        if self._kept:
            self._kept.keep_only(digests)

    def connected(self, session_present: bool, now: float) -> None:
        """Hear that the link is up: with a session, what was on its way comes now; without one it never will."""
        if not session_present:
            self._fresh_until = now + FRESH_SECONDS
        for wanted in self._wanted.values():
            wanted.patience, wanted.moved, wanted.more = PATIENCE, now, False
            if session_present:
                wanted.ask_at = now + self._patience(PATIENCE)
            else:
                wanted.ask_at = now + self._rng.uniform(0.0, FRESH_SPREAD)
                wanted.coming.clear()

    def add(self, piece: Piece, now: float) -> bytes | None:
        """Take a piece; return the blob when it is whole; errors as ``Reassembler.add``.

        Whoever has stored the blob says so with ``forget``, until when its pieces stay on disk.
        """
        wanted = self._wanted.get(piece.digest)
        try:
            blob = self._reassembler.add(piece)
        except MalformedError as error:
            if wanted is not None and error.cause == "digest":  # all of it is to come again
                wanted.coming.clear()
                self._drop(piece.digest)
            raise
        if wanted is None:
            return blob
        if blob is not None:
            self._wanted.pop(piece.digest)
            return blob
        wanted.learn(piece)
        if not self._reassembler.news:
            return None
        if self._kept:
            self._kept.append(piece)
        asked = piece.index in wanted.coming
        wanted.coming.discard(piece.index)
        self._pace, wanted.moved = now - wanted.moved, now
        wanted.patience = PATIENCE
        # With half a window here, the next is asked for before the line falls silent.
        wanted.more = asked and 2 * len(wanted.coming) <= window_count(wanted.size)
        wanted.ask_at = now if wanted.more else now + self._patience(PATIENCE)
        return None

    def due(self, now: float, online: bool = True) -> list[Ask]:
        """Return every question that is to be put now.

        Args:
            now: Seconds on the caller's monotonic clock.
            online: Whether the link is up; nothing is asked while it is not.
        """
        asks = []
        for digest, wanted in self._wanted.items():
            if now < wanted.ask_at:
                continue
            if not online:
                wanted.ask_at = now + PATIENCE
                continue
            ask = self._ask(digest, wanted, now)
            if ask is not None:
                asks.append(ask)
        return asks

    def next_due(self) -> float | None:
        """Return when ``due`` will have something, or None."""
        return min((wanted.ask_at for wanted in self._wanted.values()), default=None)

    def _ask(self, digest: bytes, wanted: _Wanted, now: float) -> Ask | None:
        """Ask for the next window, or again for one that has not come."""
        if not wanted.more:
            wanted.coming.clear()
            wanted.patience = min(2 * wanted.patience, PATIENCE_MAX)
        wanted.more = False
        wanted.ask_at = now + self._patience(wanted.patience)
        have = self._reassembler.have(digest)
        size = wanted.size
        if not size:
            wanted.blind = True
            return Ask(digest, b"", 0)
        bitmap = bytearray(have.ljust(-(-piece_count(wanted.total, size) // 8), b"\0"))
        for index in wanted.coming:
            bitmap[index // 8] |= 1 << index % 8
        rest = list(lacking(wanted.total, size, bytes(bitmap), size))[: window_count(size)]
        if not rest:
            return None
        wanted.coming.update(rest)
        return Ask(digest, bytes(bitmap), size)

    def _patience(self, least: float) -> float:
        """Return a wait that covers a few more pieces at the pace of the last, spread over half its length."""
        wait = min(PATIENCE_MAX, max(least, 4.0 * self._pace))
        return wait * self._rng.uniform(1.0, 1.5)

    def _drop(self, digest: bytes) -> None:
        if self._kept:
            self._kept.drop(digest)
