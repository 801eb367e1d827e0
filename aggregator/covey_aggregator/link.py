"""The aggregator's connection: aiomqtt with reconnection, and an outgoing queue that survives a lost connection."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from covey_aggregator.home import BrokerSettings
from covey_protocol.errors import ConfigError

log = logging.getLogger("covey.aggregator.link")

CLIENT_ID = "aggregator"
_IN_FLIGHT = 200
_BACKOFF_CAP = 30.0
_SESSION_SECONDS = 86400


@dataclass
class _Outgoing:
    topic: str
    payload: bytes = field(repr=False)
    retain: bool


class BrokerLink:
    """Publishes in order and keeps what was not acknowledged for the next connection.

    Args:
        settings: The broker.
        folder: Where relative file names in the settings start.
        filters: Topic filters to subscribe to.
        on_message: Called on the event loop with topic and payload; must not raise.
    """

    def __init__(
        self, settings: BrokerSettings, folder: Path, filters: list[str], on_message: Callable[[str, bytes], None]
    ) -> None:
        self._settings, self._folder, self._filters = settings, folder, filters
        self._on_message = on_message
        self._outgoing: deque[_Outgoing] = deque()
        self._wake = asyncio.Event()
        self.connected = asyncio.Event()
        self.connections = 0

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message."""
        self._outgoing.append(_Outgoing(topic, payload, retain))
        self._wake.set()

    async def drained(self) -> None:
        """Wait until everything queued has been handed to the broker."""
        while self._outgoing:
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        pause = 0.5
        while True:
            try:
                async with self._client() as client:
                    self.connections += 1
                    self.connected.set()
                    log.info("connected to %s:%s", self._settings.host, self._settings.port)
                    pause = 0.5
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._receive(client), name="covey-receive")
                        group.create_task(self._send(client), name="covey-send")
            except* aiomqtt.MqttError as errors:
                reason = "; ".join(sorted(_reasons(errors)))
                log.warning("broker %s:%s: %s", self._settings.host, self._settings.port, reason)
            finally:
                self.connected.clear()
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret
            pause = min(2 * pause, _BACKOFF_CAP)

    async def _receive(self, client: aiomqtt.Client) -> None:
        for topic_filter in self._filters:
            await client.subscribe(topic_filter, qos=1)
        async for message in client.messages:
            payload = message.payload
            self._on_message(str(message.topic), payload if isinstance(payload, bytes) else b"")
        raise aiomqtt.MqttError("the connection ended")

    async def _send(self, client: aiomqtt.Client) -> None:
        """Hand messages over in order, many at a time; what fails goes back to the front of the queue."""
        slots = asyncio.Semaphore(_IN_FLIGHT)
        unacknowledged: dict[int, _Outgoing] = {}

        async def one(number: int, item: _Outgoing) -> None:
            await client.publish(item.topic, item.payload, qos=1, retain=item.retain, timeout=60)
            unacknowledged.pop(number)
            slots.release()

        number = 0
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    while self._outgoing:
                        await slots.acquire()
                        item = self._outgoing.popleft()
                        number += 1
                        unacknowledged[number] = item
                        group.create_task(one(number, item))
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            self._outgoing.extendleft(reversed(list(unacknowledged.values())))

    def _client(self) -> aiomqtt.Client:
        settings, v5 = self._settings, self._settings.protocol == "5"
        properties = None
        if v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = _SESSION_SECONDS
        password = None
        if settings.password_file:
            try:
                password = (self._folder / settings.password_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"{self._folder / settings.password_file}: cannot be read: {error}") from error
        client = aiomqtt.Client(
            settings.host,
            settings.port,
            username=settings.username or None,
            password=password,
            identifier=CLIENT_ID,
            protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
            clean_start=False if v5 else MQTT_CLEAN_START_FIRST_ONLY,
            clean_session=None if v5 else False,
            properties=properties,
            max_inflight_messages=_IN_FLIGHT,
            max_queued_outgoing_messages=0,
            tls_context=self._tls(),
        )
        client.pending_calls_threshold = 2 * _IN_FLIGHT
        return client

    def _tls(self) -> ssl.SSLContext | None:
        settings = self._settings
        if not settings.ca_file:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self._folder / settings.ca_file))
            if settings.cert_file:
                context.load_cert_chain(self._folder / settings.cert_file, self._folder / settings.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS files of {self._folder}: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _reasons(error: BaseException) -> set[str]:
    """Return what the errors inside a group, and groups inside it, say."""
    if isinstance(error, BaseExceptionGroup):
        return {reason for inner in error.exceptions for reason in _reasons(inner)}
    return {str(error)}
