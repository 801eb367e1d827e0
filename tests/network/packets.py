"""What travels through a proxy, read as MQTT: the PUBLISH packets that were forwarded whole."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from covey_protocol.chunks import Piece, is_piece
from covey_protocol.errors import MalformedError

PUBLISH = 3


class Published(NamedTuple):
    """One PUBLISH packet."""

    topic: str
    payload: bytes
    again: bool
    retained: bool


class PublishEar:
    """Reads one direction of a proxy's connections; MQTT 5, or 3.1.1 where ``five`` is False."""

    def __init__(self, *, five: bool = True) -> None:
        self._five = five
        self._buffers: dict[int, bytearray] = {}
        self._lock = threading.Lock()
        self._heard: list[Published] = []

    def __call__(self, connection: int, data: bytes) -> None:
        """Take a stretch of bytes; a connection that is cut leaves half a packet behind."""
        buffer = self._buffers.setdefault(connection, bytearray())
        buffer += data
        for first, body in _packets(buffer):
            if first >> 4 == PUBLISH:
                with self._lock:
                    self._heard.append(self._read(first, body))

    @property
    def heard(self) -> list[Published]:
        """All PUBLISH packets so far."""
        with self._lock:
            return list(self._heard)

    def pieces(self) -> Counter[tuple[bytes, int]]:
        """Count how often each piece of a blob was forwarded, by digest and index."""
        counts: Counter[tuple[bytes, int]] = Counter()
        for each in self.heard:
            if is_piece(each.payload):
                try:
                    piece = Piece.decode(each.payload)
                except MalformedError:
                    continue
                counts[piece.digest, piece.index] += 1
        return counts

    def _read(self, first: int, body: bytes) -> Published:
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        if first >> 1 & 3:
            end += 2
        if self._five:
            length, used = _varint(body, end)
            end += used + length
        return Published(topic, body[end:], bool(first & 8), bool(first & 1))


def _packets(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Yield and remove the whole packets at the front."""
    while len(buffer) >= 2:
        try:
            length, used = _varint(buffer, 1)
        except IndexError:
            return
        if len(buffer) < 1 + used + length:
            return
        first, body = buffer[0], bytes(buffer[1 + used : 1 + used + length])
        del buffer[: 1 + used + length]
        yield first, body


def _varint(data: bytes | bytearray, start: int) -> tuple[int, int]:
    """Read a variable byte integer (MQTT 5, 1.5.5): its value and how many bytes it took."""
    value = used = 0
    while True:
        byte = data[start + used]
        value |= (byte & 127) << 7 * used
        used += 1
        if byte < 128:
            return value, used
