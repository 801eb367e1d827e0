"""A TCP proxy between a client and its broker that is as bad as a test tells it to be.

It runs on an event loop in a thread of its own, on a free port of loopback, and may be told anything at any time from
any thread: how slow each direction is, where to cut, whether to swallow everything or to be unreachable. What it holds
back is bounded, and leaving the ``with`` block ends every connection and the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal, TypeVar

HOST = "127.0.0.1"
SECONDS = 20.0  # patience for what must happen
READ_BYTES = 4096
HELD_BYTES = 64 << 10  # on their way in one direction of one connection

Way = Literal["up", "down"]
T = TypeVar("T")
_RESET = struct.pack("ii", 1, 0)


class Line:
    """One direction of all connections.

    Attributes:
        delay, jitter: Seconds that everything takes, and up to how many more; order is kept.
        rate: Bytes a second; 0 for no limit.
        cut_every: Bytes after which a connection is cut, each anew, in the middle of whatever it carries; 0 for never.
        carried: Bytes forwarded so far.
    """

    def __init__(self) -> None:
        self.delay = self.jitter = 0.0
        self.rate = 0
        self.cut_every = 0
        self.cut_once: int | None = None
        self.carried = 0
        self.ears: list[Callable[[int, bytes], None]] = []

    def hear(self, ear: Callable[[int, bytes], None]) -> None:
        """Call something with a connection's number and each stretch of bytes that was forwarded on it."""
        self.ears.append(ear)


class Proxy:
    """A proxy in front of one port, used in a ``with`` block.

    Attributes:
        up, down: The directions, towards the broker and towards the client.
        port: Where it listens.
        reset: Whether cuts are RSTs; else FINs, as from a peer that says goodbye.
        opened, cuts: Connections accepted, and connections that were cut, so far.
    """

    host = HOST

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.up, self.down = Line(), Line()
        self.reset = True
        self.opened = self.cuts = 0
        self.port = 0
        self._target = target
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()  # cleared, nothing is forwarded
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._thread = threading.Thread(target=self._run, name="test-proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._listen)
        self._loop.call_soon_threadsafe(self._open.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def poor(self, *, delay: float = 0.0, jitter: float = 0.0, rate: int = 0, cut_every: int = 0) -> Proxy:
        """Make both directions poor."""
        for line in (self.up, self.down):
            line.delay, line.jitter, line.rate, line.cut_every = delay, jitter, rate, cut_every
        return self

    def good(self) -> None:
        """Make both directions good again."""
        self.poor()

    def cut(self) -> None:
        """Cut all connections now."""

        async def cut() -> None:
            for connection in list(self._connections):
                connection.cut()

        self._call(cut)

    def cut_after(self, size: int, way: Way) -> None:
        """Cut the connection that carries this many more bytes in one direction, once."""
        line: Line = getattr(self, way)
        line.cut_once = line.carried + size

    def swallow(self) -> None:
        """Be a black hole: accept connections and bytes, and forward nothing."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def forward(self) -> None:
        """Forward again, what was swallowed first."""
        self._loop.call_soon_threadsafe(self._open.set)

    def abandon(self) -> None:
        """Leave every client with a connection that nobody is at the other end of."""

        async def abandon() -> None:
            for connection in list(self._connections):
                connection.abandon()

        self._call(abandon)

    def refuse(self) -> None:
        """Be unreachable for new connections."""
        self._call(self._unlisten)

    def admit(self) -> None:
        """Be reachable again, on the same port."""
        self._call(self._listen)

    # On the loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _call(self, function: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(function(), self._loop).result(SECONDS)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        await self._unlisten()
        while self._connections:
            for connection in list(self._connections):
                connection.cut()
            await asyncio.sleep(0.005)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        connection = _Connection(self, self.opened, writer)
        self._connections.add(connection)
        try:
            await connection.run(reader, self._target)
        finally:
            self._connections.discard(connection)

    def draw(self, line: Line) -> float:
        """Return how long a stretch of bytes takes."""
        return line.delay + self._dice.uniform(0, line.jitter)

    async def passage(self) -> None:
        """Wait until bytes may pass."""
        await self._open.wait()


class _Connection:
    """A client, its broker, and four tasks between them."""

    def __init__(self, proxy: Proxy, number: int, client: asyncio.StreamWriter) -> None:
        self._proxy, self.number, self._client = proxy, number, client
        self._broker: asyncio.StreamWriter | None = None
        self._over = asyncio.Event()
        self._abandoned = False

    async def run(self, reader: asyncio.StreamReader, target: int) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            with contextlib.suppress(OSError):
                answers, self._broker = await asyncio.open_connection(HOST, target)
                for writer in (self._client, self._broker):
                    writer.transport.set_write_buffer_limits(0)
                    sock: socket.socket = writer.get_extra_info("socket")
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tasks += self._pump(self._proxy.up, reader, self._broker)
                tasks += self._pump(self._proxy.down, answers, self._client)
                await self._over.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in (self._client, self._broker):
                if each is not None:
                    each.transport.abort()

    def cut(self) -> None:
        """End both connections."""
        self._proxy.cuts += 1
        for writer in (self._client, self._broker):
            if writer is not None:
                self._end(writer)
        self._over.set()

    def abandon(self) -> None:
        """End the broker's connection and keep the client's, which hears nothing any more."""
        self._abandoned = True
        if self._broker is not None:
            self._end(self._broker)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if self._proxy.reset:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        else:
            writer.close()

    def _pump(
        self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Iterator[asyncio.Task[None]]:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_BYTES // READ_BYTES)
        yield asyncio.create_task(self._read(line, reader, held))
        yield asyncio.create_task(self._write(line, writer, held))

    async def _read(self, line: Line, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]) -> None:
        due, clock = 0.0, asyncio.get_running_loop().time
        data = b"-"
        while data:
            try:
                data = await reader.read(READ_BYTES)
            except OSError:
                data = b""
            due = max(due, clock() + self._proxy.draw(line))
            await held.put((due, data))

    async def _write(self, line: Line, writer: asyncio.StreamWriter, held: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock, here = asyncio.get_running_loop().time, 0
        while True:
            due, data = await held.get()
            await asyncio.sleep(max(0.0, due - clock()))
            await self._proxy.passage()
            if self._abandoned:
                continue
            if not data:
                break
            if line.rate:
                await asyncio.sleep(len(data) / line.rate)
            room = len(data)
            if line.cut_every:
                room = min(room, line.cut_every - here)
            if line.cut_once is not None:
                room = min(room, max(0, line.cut_once - line.carried))
            here, line.carried = here + room, line.carried + room
            for ear in line.ears:
                ear(self.number, data[:room])
            try:
                writer.write(data[:room])
                await writer.drain()
            except OSError:
                break
            if room < len(data) or (line.cut_once is not None and line.carried >= line.cut_once):
                line.cut_once = None
                self.cut()
                return
        # One end has said goodbye: tell the other in the same way.
        writer.close()
        self._over.set()
