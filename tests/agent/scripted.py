"""A broker on a real socket that does what a test says: for what Mosquitto cannot be made to do on cue."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14

PACKET_LIMIT = b"\x27"  # property "Maximum Packet Size", four bytes follow
RECEIVE_MAXIMUM = b"\x21"  # two bytes follow


class Packet(NamedTuple):
    """One MQTT packet: kind, flags, everything after the length, and its size on the wire."""

    kind: int
    flags: int
    body: bytes
    size: int

    @property
    def level(self) -> int:
        """Protocol level of a CONNECT: 5, or 4 for 3.1.1."""
        return self.body[6]

    @property
    def topic(self) -> str:
        """Topic of a PUBLISH."""
        return self.body[2 : 2 + self.body[1]].decode()

    @property
    def mid(self) -> bytes:
        """Packet id of a PUBLISH at QoS 1, or of a SUBSCRIBE."""
        start = 2 + self.body[1] if self.kind == PUBLISH else 0
        return self.body[start : start + 2]


class Peer:
    """The broker's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        """Talk over ``sock``."""
        self._sock = sock
        self._file = sock.makefile("rb")

    def read(self) -> Packet:
        """Return the next packet.

        Raises:
            EOFError: The client has gone.
        """
        first = self._file.read(1)
        if not first:
            raise EOFError
        length, shift, count = 0, 0, 1
        while True:
            byte = self._file.read(1)[0]
            length, shift, count = length | (byte & 127) << shift, shift + 7, count + 1
            if byte < 128:
                return Packet(first[0] >> 4, first[0] & 15, self._file.read(length), count + length)

    def expect(self, kind: int) -> Packet:
        """Return the next packet, which must be of this kind."""
        packet = self.read()
        assert packet.kind == kind, packet
        return packet

    def send(self, kind: int, body: bytes) -> None:
        """Send one short packet."""
        self._sock.sendall(bytes([kind << 4, len(body)]) + body)

    def accept(self, *, present: bool = False, properties: bytes = b"") -> Packet:
        """Answer CONNECT: 3.1.1's way if that is what the client speaks, which cannot carry properties."""
        packet = self.expect(CONNECT)
        tail = bytes([len(properties)]) + properties if packet.level == 5 else b""
        self.send(CONNACK, bytes([present, 0]) + tail)
        return packet

    def until_gone(self) -> list[Packet]:
        """Read what the client sends until it leaves."""
        packets = []
        with contextlib.suppress(EOFError, ConnectionError, IndexError):
            while True:
                packets.append(self.read())
        return packets


@contextlib.contextmanager
def scripted(*scripts: Callable[[Peer], object]) -> Iterator[tuple[int, queue.Queue[object]]]:
    """Serve one connection by each script in turn, closing it when the script ends.

    Yields:
        The port, and a queue of what the scripts returned or raised.
    """
    results: queue.Queue[object] = queue.Queue()
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        for script in scripts:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(20)
                try:
                    results.put(script(Peer(sock)))
                except Exception as error:
                    results.put(error)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], results
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(20)
