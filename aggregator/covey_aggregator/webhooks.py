"""Alerts by webhook: one JSON object in a POST for each, in order, again and again until somebody takes it.

Requests run in threads of their own, with a time limit, so a receiver that hangs holds up nothing but itself. What a
receiver has taken is remembered; after a restart it may hear the last one again, and tells it by its number. The URL
may hold a token, so logs name host and port alone. Redirects are not followed: they would carry the alert elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import logging
import random
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from nacl.bindings import crypto_generichash_blake2b_salt_personal

from covey_aggregator.alerts import Alert, AlertBook, summary
from covey_aggregator.home import WebhookSettings
from covey_protocol import __version__
from covey_protocol.digest import content_digest, short
from covey_protocol.errors import ConfigError

log = logging.getLogger("covey.aggregator")

_BACKOFF, _BACKOFF_CAP = 1.0, 300.0
_GIVE_UP_SECONDS = 86400.0
_RETRIED = frozenset({408, 425, 429})  # of the 4xx those that a later try may mend
_KEY_MIN, _KEY_MAX = 16, 64
SIGNATURE = "Covey-Signature"


class Webhook:
    """One receiver.

    Args:
        settings: Where it is, and what it wants to hear.
        folder: Where relative paths in them start.
        fleet: The fleet's name, which stands in every alert.

    Raises:
        ConfigError: The URL or a file cannot be used; the message names the field and never the URL.
    """

    def __init__(self, settings: WebhookSettings, folder: Path, fleet: str) -> None:
        url = settings.url or _line(folder / settings.url_file, "url_file") if settings.url_file else settings.url
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError("alerts.webhooks: url is not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("alerts.webhooks: url: write http://HOST/… or https://HOST/…")
        self._host, self._port, self._tls = parts.hostname, port, parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
        self._key = _line(folder / settings.key_file, "key_file").encode() if settings.key_file else b""
        if self._key and not _KEY_MIN <= len(self._key) <= _KEY_MAX:
            raise ConfigError(f"alerts.webhooks: key_file holds {len(self._key)} bytes, {_KEY_MIN} to {_KEY_MAX} do")
        try:
            ca = str(folder / settings.ca_file) if settings.ca_file else None
            self._ssl = ssl.create_default_context(cafile=ca) if self._tls else None
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"alerts.webhooks: ca_file cannot be used: {error}") from error
        self._kinds, self._timeout, self._fleet = frozenset(settings.kinds), settings.timeout, fleet
        self.receiver = f"webhook-{short(content_digest(url.encode()))}"
        self.name = f"webhook {self._host}:{port or (443 if self._tls else 80)}"

    def wants(self, alert: Alert) -> bool:
        """Say whether the receiver is to hear this."""
        return not self._kinds or alert.kind in self._kinds

    def post(self, alert: Alert, now: int) -> int:
        """Send one alert and return the status; blocks for as long as the settings allow.

        Raises:
            OSError: Nobody is there, or nobody answers in time.
            http.client.HTTPException: The answer is no HTTP.
        """
        body = msgspec.json.encode({"fleet": self._fleet, **summary(alert)})
        headers = {"Content-Type": "application/json", "User-Agent": f"covey/{__version__}", "Connection": "close"}
        if self._user:
            headers["Authorization"] = "Basic " + base64.b64encode(self._user.encode()).decode()
        if self._key:
            headers[SIGNATURE] = f"t={now},blake2b={signature(self._key, now, body)}"
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._ssl)
            if self._ssl is not None
            else http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        )
        try:
            connection.request("POST", self._target, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()


def signature(key: bytes, at: int, body: bytes) -> str:
    """Return the keyed BLAKE2b-256 (RFC 7693, section 2.9) of time and body, in hex.

    ``hashlib.blake2b(b"%d." % at + body, digest_size=32, key=key).hexdigest()`` makes the same.
    """
    return crypto_generichash_blake2b_salt_personal(b"%d." % at + body, digest_size=32, key=key).hex()


class Webhooks:
    """All receivers.

    Args:
        hooks: The receivers.
        book: Where alerts wait.
        wall_clock: Unix seconds.
    """

    def __init__(self, hooks: list[Webhook], book: AlertBook, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._hooks, self._book, self._wall = hooks, book, wall_clock
        self._durable = 0
        self._rung = {hook.receiver: asyncio.Event() for hook in hooks}
        for hook in hooks:
            book.heard(hook.receiver)  # what went before a receiver was there is not for it

    def rung(self, number: int) -> None:
        """Hear that alerts up to a number are durable, so that they may be told."""
        if number == self._durable:
            return
        self._durable = number
        for event in self._rung.values():
            event.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        threads = ThreadPoolExecutor(max(1, len(self._hooks)), "covey-webhooks")
        try:
            await asyncio.gather(*(self._serve(hook, threads) for hook in self._hooks))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, hook: Webhook, threads: ThreadPoolExecutor) -> None:
        event = self._rung[hook.receiver]
        while True:
            event.clear()
            heard = self._book.heard(hook.receiver)
            waiting = [alert for alert in self._book.after(heard) if alert.id <= self._durable]
            if waiting and heard and waiting[0].id > heard + 1:
                log.warning("%s: %d alerts were dropped, it was away too long", hook.name, waiting[0].id - heard - 1)
            for alert in waiting:
                if hook.wants(alert):
                    await self._deliver(hook, alert, threads)
                self._book.hear(hook.receiver, alert.id)
            if not waiting:
                await event.wait()

    async def _deliver(self, hook: Webhook, alert: Alert, threads: ThreadPoolExecutor) -> None:
        """Send one alert until it is taken, refused for good, or too old."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            reason = ""
            try:
                status = await loop.run_in_executor(threads, hook.post, alert, int(self._wall()))
                if status < 300:
                    return
                reason = f"status {status}"
                if 300 <= status < 500 and status not in _RETRIED:
                    log.warning("%s refuses alert %d: %s", hook.name, alert.id, reason)
                    return
            except (OSError, http.client.HTTPException) as error:
                reason = type(error).__name__  # its words may quote the URL
            failures += 1
            if self._wall() - alert.at > _GIVE_UP_SECONDS:
                log.warning("%s: alert %d is given up after %d tries: %s", hook.name, alert.id, failures, reason)
                return
            log.log(
                logging.WARNING if failures == 1 else logging.DEBUG,
                *("%s does not take alert %d (%s); trying again", hook.name, alert.id, reason),
            )
            pause = min(_BACKOFF_CAP, _BACKOFF * 2.0 ** min(failures - 1, 16))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


def _line(path: Path, field: str) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"alerts.webhooks: {field} cannot be read: {type(error).__name__}") from error
