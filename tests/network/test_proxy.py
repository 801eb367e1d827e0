"""tests.network.proxy: it is as bad as it is told to be, and no worse."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from tests.network.packets import PublishEar
from tests.network.proxy import HOST, SECONDS, Proxy


class Echo:
    """A server that sends back what it hears."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self.port = self._server.getsockname()[1]
        self.ends: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(4096):
                    peer.sendall(data)
                self.ends.append("fin")
            except OSError:
                self.ends.append("reset")

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as proxy:
        yield proxy


def client(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=SECONDS)


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


@pytest.mark.parametrize("options", [{}, {"delay": 0.01, "jitter": 0.02}, {"rate": 2_000_000}])
def test_everything_arrives_in_order(proxy: Proxy, options: dict[str, float]) -> None:
    proxy.poor(**options)  # type: ignore[arg-type]
    data = bytes(range(256)) * 1000
    with client(proxy) as sock:
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
        assert read(sock, len(data)) == data
    assert (proxy.up.carried, proxy.down.carried) == (len(data), len(data))


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_comes_after_so_many_bytes_and_once(proxy: Proxy, echo: Echo, way: str, reset: bool) -> None:
    proxy.reset = reset
    proxy.cut_after(10_000, way)  # type: ignore[arg-type]
    for whole in (False, True):
        with client(proxy) as sock:
            got = b""
            try:
                sock.sendall(bytes(30_000))
                got = read(sock, 30_000)
            except OSError:
                pass
            assert (len(got) == 30_000) == whole
    line = getattr(proxy, way)
    assert line.carried == 10_000 + 30_000
    assert proxy.cuts == 1
    assert proxy.opened == 2


def test_cuts_every_so_many_bytes_count_for_each_connection(proxy: Proxy) -> None:
    proxy.up.cut_every = 5000
    for _ in range(3):
        with client(proxy) as sock:
            try:
                sock.sendall(bytes(9000))
                assert len(read(sock, 9000)) < 9000
            except OSError:
                pass
    assert proxy.up.carried == 3 * 5000
    assert proxy.cuts == 3


def test_a_black_hole_forwards_nothing_until_it_does(proxy: Proxy) -> None:
    with client(proxy) as sock:
        sock.sendall(b"one")
        assert read(sock, 3) == b"one"
        proxy.swallow()
        sock.sendall(b"two")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(3)
        with client(proxy) as other:
            other.sendall(b"accepted")
        proxy.forward()
        sock.settimeout(SECONDS)
        assert read(sock, 3) == b"two"


def test_an_abandoned_client_hears_nothing_and_is_not_told(proxy: Proxy) -> None:
    with client(proxy) as sock:
        sock.sendall(b"one")
        assert read(sock, 3) == b"one"
        proxy.abandon()
        sock.sendall(b"two")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(3)
    with client(proxy) as sock:
        sock.sendall(b"three")
        assert read(sock, 5) == b"three"


def test_refused_connections_are_refused(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        client(proxy)
    proxy.admit()
    with client(proxy) as sock:
        sock.sendall(b"one")
        assert read(sock, 3) == b"one"


def test_a_cut_now_ends_what_is_open(proxy: Proxy) -> None:
    with client(proxy) as sock:
        sock.sendall(b"one")
        read(sock, 3)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_leaving_the_block_ends_everything(echo: Echo) -> None:
    before = threading.active_count()
    with Proxy(echo.port) as proxy:
        sock = client(proxy)
        sock.sendall(b"one")
        read(sock, 3)
        proxy.swallow()
    with sock, pytest.raises(OSError):
        sock.sendall(b"x")
        assert sock.recv(1)
        raise OSError
    with pytest.raises(ConnectionRefusedError):
        client(proxy)
    assert threading.active_count() <= before + 1  # the echo server's thread of that connection may be ending


def test_packets_are_read_from_any_cuts_of_the_stream() -> None:
    body = b"\x00\x03a/b" + b"\x00\x07" + b"\x05\x02\x00\x00\x00\x09" + b"x" * 300
    stream = b"\x20\x03\x00\x00\x00" + b"\x3b" + bytes([128 | len(body) & 127, len(body) >> 7]) + body
    for size in (1, 2, 7, 1000):
        ear = PublishEar()
        for start in range(0, len(stream), size):
            ear(1, stream[start : start + size])
            ear(start + 2, stream[:10])  # other connections, each cut in the middle
        assert (ear.heard[0].topic, ear.heard[0].payload) == ("a/b", b"x" * 300)
        assert (ear.heard[0].again, ear.heard[0].retained) == (True, True)
        assert len(ear.heard) == 1
