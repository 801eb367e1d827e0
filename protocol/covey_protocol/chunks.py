"""Blobs in pieces: named by digest, resumable by bitmap, put together within a byte budget.

A piece is the CBOR array [digest, total bytes, piece size, index, data]. Pieces carry no signature: a blob counts only
once all of it is there and its digest is the one that a signed message named. Anything larger than the piece size
travels this way, on the topic it would have had in one piece.

Piece sizes may change on the way, because a sender's limit is that of the broker it is connected to at the moment. So
what has come is kept as stretches of bytes, and a bitmap goes together with the piece size that it counts in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from covey_protocol import cbor
from covey_protocol.digest import DIGEST_BYTES, content_digest, short
from covey_protocol.envelope import FIRST_BYTE
from covey_protocol.errors import MalformedError, RefusedError

PIECE_BYTES = 64 * 1024
PIECE_OVERHEAD = 64
WINDOW_BYTES = 4 * PIECE_BYTES  # what one WANT is answered with, at most
_PIECE_MIN, _PIECE_MAX = 256, 1 << 20


@dataclass(frozen=True)
class Piece:
    """One piece of a blob."""

    digest: bytes
    total: int
    size: int
    index: int
    data: bytes

    def encode(self) -> bytes:
        """Return the piece as it travels."""
        return cbor.encode([self.digest, self.total, self.size, self.index, self.data])

    @staticmethod
    def decode(data: bytes) -> Piece:
        """Read a piece and check that its numbers fit together.

        Raises:
            MalformedError: They do not, or the bytes are no piece.
        """
        match cbor.decode(data, max_bytes=_PIECE_MAX + PIECE_OVERHEAD):
            case [bytes(digest), int(total), int(size), int(index), bytes(body)]:
                pass
            case _:
                raise MalformedError("not a piece of a blob")
        if len(digest) != DIGEST_BYTES or not _PIECE_MIN <= size <= _PIECE_MAX or total < 0 or index < 0:
            raise MalformedError("a piece with an impossible digest, size or index")
        if index >= piece_count(total, size) or len(body) != min(size, total - index * size):
            raise MalformedError(f"piece {index} of {total} bytes in pieces of {size} has {len(body)} bytes")
        return Piece(digest, total, size, index, body)


def is_piece(data: bytes) -> bool:
    """Tell a piece from a signed message by its first byte."""
    return data[:1] != bytes([FIRST_BYTE])


def piece_count(total: int, size: int) -> int:
    """Return how many pieces a blob has; an empty blob has one."""
    return max(1, -(-total // size))


def window_count(size: int) -> int:
    """Return how many pieces of a size one WANT is answered with."""
    return max(1, WINDOW_BYTES // size)


def split(blob: bytes, size: int = PIECE_BYTES, have: bytes = b"", have_size: int = 0) -> Iterator[Piece]:
    """Yield the pieces of a blob that are not marked in the bitmap ``have``.

    Args:
        blob: The whole.
        size: Bytes a piece.
        have: What the receiver has.
        have_size: Piece size that the bitmap counts in; 0 means the same as ``size``.
    """
    name = content_digest(blob)
    for index in lacking(len(blob), size, have, have_size):
        yield Piece(name, len(blob), size, index, blob[index * size : (index + 1) * size])


def lacking(total: int, size: int, have: bytes = b"", have_size: int = 0) -> Iterator[int]:
    """Yield the indices of pieces that hold anything not marked in ``have``; arguments as for ``split``.

    Raises:
        MalformedError: The bitmap counts in pieces of a size that no piece has.
    """
    unit = have_size or size
    if not _PIECE_MIN <= unit <= _PIECE_MAX:
        raise MalformedError(f"a bitmap of pieces of {unit} bytes")
    for index in range(piece_count(total, size)):
        first, last = index * size, max(index * size, min(total, (index + 1) * size) - 1)
        if not all(bit(have, number) for number in range(first // unit, last // unit + 1)):
            yield index


def bit(bitmap: bytes, index: int) -> bool:
    """Return bit ``index`` of a bitmap, least significant first; beyond its end all bits are 0."""
    return index // 8 < len(bitmap) and bool(bitmap[index // 8] >> (index % 8) & 1)


class Transfer:
    """One blob on its way in.

    Attributes:
        size: Piece size of the newest piece, in which ``have`` counts; 0 before there is one.
    """

    def __init__(self, digest: bytes, total: int) -> None:
        self.digest, self.total, self.size = digest, total, 0
        self._buffer = bytearray(total)
        self._here: list[tuple[int, int]] = []  # stretches [start, end), in order, with gaps between them

    def add(self, piece: Piece) -> bool:
        """Take a piece; tell whether it brought anything new.

        Raises:
            MalformedError: It contradicts what is known of the blob's length.
        """
        if piece.total != self.total:
            raise MalformedError(f"pieces of blob {short(self.digest)} disagree about its size")
        self.size = piece.size
        start = piece.index * piece.size
        end = start + len(piece.data)
        if self._holds(start, end):
            return False
        self._buffer[start:end] = piece.data
        self._mark(start, end)
        return True

    def blob(self) -> bytes | None:
        """Return the blob if it is whole.

        Raises:
            MalformedError: It is whole but does not have the digest it goes by; everything is to be sent again.
        """
        if not self._holds(0, self.total):
            return None
        blob = bytes(self._buffer)
        if content_digest(blob) != self.digest:
            self._here = []
            raise MalformedError(f"blob {short(self.digest)} does not have the digest it goes by", cause="digest")
        return blob

    def have(self) -> bytes:
        """Return the bitmap of the pieces that are here, in pieces of ``size`` bytes."""
        if not self.size:
            return b""
        count = piece_count(self.total, self.size)
        bitmap = bytearray(-(-count // 8))
        for index in range(count):
            if self._holds(index * self.size, min(self.total, (index + 1) * self.size)):
                bitmap[index // 8] |= 1 << (index % 8)
        return bytes(bitmap)

    def _holds(self, start: int, end: int) -> bool:
        place = bisect_left(self._here, (start + 1,)) - 1
        return start == end or (place >= 0 and self._here[place][1] >= end)

    def _mark(self, start: int, end: int) -> None:
        """Add a stretch and join it with those it touches."""
        first = bisect_left(self._here, (start,))
        if first and self._here[first - 1][1] >= start:
            first -= 1
        last = first
        while last < len(self._here) and self._here[last][0] <= end:
            start, end = min(start, self._here[last][0]), max(end, self._here[last][1])
            last += 1
        self._here[first:last] = [(start, end)]


class Reassembler:
    """All blobs on their way in from one sender, within a byte budget.

    Blobs that a signed message announced (``expect``) may take ``budget`` bytes together. Where ``unannounced`` is
    positive, blobs nobody announced are taken too, within that many bytes, the oldest giving way to the newest.
    """

    def __init__(self, budget: int, unannounced: int = 0) -> None:
        self._budget = budget
        self._unannounced = unannounced
        self._expected: dict[bytes, int] = {}
        self._transfers: dict[bytes, Transfer] = {}
        self.news = False  # whether the last piece brought anything

    def expect(self, digest: bytes, total: int) -> None:
        """Announce a blob.

        Raises:
            RefusedError: It does not fit the budget.
        """
        promised = sum(size for name, size in self._expected.items() if name != digest)
        if promised + total > self._budget:
            raise RefusedError(
                f"blob {short(digest)} of {total} bytes exceeds the budget of {self._budget}", cause="budget"
            )
        self._expected[digest] = total

    def forget(self, digest: bytes) -> None:
        """Drop a blob and what has come of it."""
        self._expected.pop(digest, None)
        self._transfers.pop(digest, None)

    def add(self, piece: Piece) -> bytes | None:
        """Take a piece; return the blob, and forget it here, when it is whole.

        Raises:
            RefusedError: Nobody announced the blob and unannounced ones are not taken.
            MalformedError: It contradicts its announcement or its digest.
        """
        transfer = self._transfers.get(piece.digest)
        if transfer is None:
            transfer = self._start(piece)
        self.news = transfer.add(piece)
        blob = transfer.blob()
        if blob is not None:
            self.forget(piece.digest)
        return blob

    def have(self, digest: bytes) -> bytes:
        """Return the bitmap of a blob's pieces that are here; empty when there is none yet."""
        transfer = self._transfers.get(digest)
        return transfer.have() if transfer else b""

    def size(self, digest: bytes) -> int:
        """Return the piece size that ``have`` counts in; 0 when no piece is here."""
        transfer = self._transfers.get(digest)
        return transfer.size if transfer else 0

    def _start(self, piece: Piece) -> Transfer:
        announced = self._expected.get(piece.digest)
        if announced is not None and announced != piece.total:
            raise MalformedError(f"blob {short(piece.digest)} has {piece.total} bytes, not the announced {announced}")
        if announced is None:
            if piece.total > self._unannounced:
                raise RefusedError(f"nobody announced blob {short(piece.digest)}", cause="unannounced")
            loose = [name for name in self._transfers if name not in self._expected]
            while loose and sum(self._transfers[name].total for name in loose) + piece.total > self._unannounced:
                self._transfers.pop(loose.pop(0))
        transfer = Transfer(piece.digest, piece.total)
        self._transfers[piece.digest] = transfer
        return transfer
