"""covey_aggregator.webhooks: a real server hears every alert, in order, however often it fails."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.agent.test_paho_client import make_certificate

from covey_aggregator import alerts, webhooks
from covey_aggregator.alerts import AlertBook
from covey_aggregator.home import WebhookSettings
from covey_aggregator.store import Store
from covey_aggregator.webhooks import Webhook, Webhooks
from covey_protocol.errors import ConfigError

SECRET = "hunter2-token"
PATIENCE = 30.0


class Receiver:
    """A real HTTP server that answers as a test says, and keeps what it was sent."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.scheme = "https" if certificate else "http"
        self.answers: list[int] = []
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.hang = threading.Event()
        self.hang.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.hang.wait(PATIENCE)
                receiver.heard.append((self.path, dict(self.headers), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if status in (301, 302, 307, 308):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://user:pass-{SECRET}@127.0.0.1:{self.server.server_port}/hook/{SECRET}?token={SECRET}"

    def texts(self) -> list[str]:
        return [json.loads(body)["text"] for _, _, body in self.heard]

    def stop(self) -> None:
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_BACKOFF", 0.01)


def serve(hooks: Webhooks, book: AlertBook, done: Callable[[], bool]) -> None:
    """Run until something has happened."""

    async def run() -> None:
        task = asyncio.create_task(hooks.run())
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline
            hooks.rung(book.last())
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def rig(path: Path, *settings: WebhookSettings) -> tuple[Webhooks, AlertBook, Store]:
    store = Store(path / "db")
    book = AlertBook(store)
    return Webhooks([Webhook(each, path, "meadow") for each in settings], book), book, store


def test_alerts_arrive_in_order_signed_and_once(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "key").write_text("sixteen-bytes-or-more\n")
    hooks, book, _ = rig(tmp_path, WebhookSettings(url=receiver.url, key_file="key"))
    for number in range(3):
        book.ring(alerts.BANNED, f"alert {number}", device="pi-3", task="digits", round_=7)
    serve(hooks, book, lambda: len(receiver.heard) == 3)
    assert receiver.texts() == ["alert 0", "alert 1", "alert 2"]
    path, headers, body = receiver.heard[0]
    assert path == f"/hook/{SECRET}?token={SECRET}"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"].startswith("Basic ")
    alert = json.loads(body)
    assert (alert["fleet"], alert["id"], alert["kind"], alert["device"], alert["round"]) == (
        *("meadow", 1, "banned", "pi-3", 7),
    )
    stamp, _, signature = headers["Covey-Signature"].partition(",blake2b=")
    text = stamp.removeprefix("t=").encode() + b"." + body
    assert signature == hashlib.blake2b(text, digest_size=32, key=b"sixteen-bytes-or-more").hexdigest()


def test_failures_are_tried_again_and_refusals_are_not(tmp_path: Path, receiver: Receiver) -> None:
    hooks, book, _ = rig(tmp_path, WebhookSettings(url=receiver.url))
    receiver.answers = [500, 429, 200, 404, 302, 200]
    for number in range(4):
        book.ring(alerts.BANNED, f"alert {number}")
    serve(hooks, book, lambda: len(receiver.heard) == 6)
    assert receiver.texts() == ["alert 0"] * 3 + ["alert 1", "alert 2", "alert 3"]
    assert all(path.startswith("/hook/") for path, _, _ in receiver.heard)  # the redirect was not followed


def test_what_was_missed_is_heard_after_a_restart_of_either_side(tmp_path: Path, receiver: Receiver) -> None:
    settings = WebhookSettings(url=receiver.url)
    hooks, book, store = rig(tmp_path, settings)
    book.ring(alerts.BANNED, "first")
    serve(hooks, book, lambda: len(receiver.heard) == 1 and book.heard(hooks._hooks[0].receiver) == 1)
    receiver.answers = [503] * 10_000
    book.ring(alerts.BANNED, "second")
    serve(hooks, book, lambda: len(receiver.heard) >= 2)  # stopped while it is tried again
    store.close()
    receiver.answers = []
    tried = len(receiver.heard)
    hooks, book, _ = rig(tmp_path, settings)
    serve(hooks, book, lambda: book.heard(hooks._hooks[0].receiver) == 2)
    assert set(receiver.texts()[1:]) == {"second"}
    assert len(receiver.heard) > tried


def test_one_that_hangs_holds_up_nobody_else(tmp_path: Path, receiver: Receiver) -> None:
    other = Receiver()
    try:
        settings = [WebhookSettings(url=each.url, timeout=0.2) for each in (receiver, other)]
        hooks, book, _ = rig(tmp_path, *settings)
        receiver.hang.clear()
        book.ring(alerts.BANNED, "one")
        book.ring(alerts.BANNED, "two")
        serve(hooks, book, lambda: len(other.heard) == 2)
        assert receiver.heard == []
    finally:
        other.stop()


def test_a_receiver_hears_the_kinds_that_it_wants_and_nothing_that_is_not_durable(
    tmp_path: Path, receiver: Receiver
) -> None:
    hooks, book, _ = rig(tmp_path, WebhookSettings(url=receiver.url, kinds=["banned"]))
    book.ring(alerts.QUARANTINED, "not this")
    book.ring(alerts.BANNED, "this")
    book.ring(alerts.BANNED, "not yet")

    class Held(AlertBook):
        def last(self) -> int:
            return 2

    serve(hooks, Held(book._store), lambda: len(receiver.heard) == 1 and book.heard(hooks._hooks[0].receiver) == 2)
    assert receiver.texts() == ["this"]


def test_secrets_in_the_url_are_in_no_log_and_no_error(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hooks, book, _ = rig(tmp_path, WebhookSettings(url=receiver.url))
    receiver.answers = [500, 404]
    book.ring(alerts.BANNED, "alert")
    serve(hooks, book, lambda: len(receiver.heard) == 2)
    receiver.server.server_close()  # nobody is there
    receiver.server.shutdown()
    book.ring(alerts.BANNED, "another")
    serve(hooks, book, lambda: "does not take alert 2" in caplog.text)
    assert "127.0.0.1" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr(WebhookSettings(url=receiver.url))
    for url in (f"ftp://{SECRET}", f"http://[{SECRET}", f"http:///{SECRET}", f"http://host:{SECRET}/"):
        with pytest.raises(ConfigError) as caught:
            Webhook(WebhookSettings(url=url), tmp_path, "meadow")
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


def test_tls_is_checked_against_the_ca_of_the_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_certificate(tmp_path, "pager")
    receiver = Receiver((tmp_path / "pager.pem", tmp_path / "pager.key"))
    try:
        hooks, book, _ = rig(tmp_path, WebhookSettings(url=receiver.url))  # which no public CA vouches for
        book.ring(alerts.BANNED, "alert")
        serve(hooks, book, lambda: "SSLCertVerificationError" in caplog.text)
        assert receiver.heard == []
        hooks = Webhooks([Webhook(WebhookSettings(url=receiver.url, ca_file="pager.pem"), tmp_path, "meadow")], book)
        serve(hooks, book, lambda: len(receiver.heard) == 1)
    finally:
        receiver.stop()


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    (tmp_path / "url").write_text("http://localhost:1/\n")
    assert "localhost:1" in Webhook(WebhookSettings(url_file="url"), tmp_path, "meadow").name
    for settings, match in (
        (WebhookSettings(), "url"),
        (WebhookSettings(url_file="none"), "url_file"),
        (WebhookSettings(url="http://h/", key_file="short"), "key_file holds 5"),
        (WebhookSettings(url="https://h/", ca_file="none"), "ca_file"),
    ):
        with pytest.raises(ConfigError, match=match):
            Webhook(settings, tmp_path, "meadow")
