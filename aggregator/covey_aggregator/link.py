"""The aggregator's connection: aiomqtt with reconnection, and an outgoing queue that survives a lost connection.

- Nothing larger than the broker's limit is handed over: it would be sent, the connection closed by the broker, and both
  repeated for ever. The limit is the smaller of the configured one and what an MQTT 5 broker says in its CONNACK.
- A message is acknowledged when its receiver says so, after it has made it durable, so what the process had not taken
  when it died comes again. It also keeps the broker from sending faster than messages are dealt with.
- How much may be unacknowledged is bounded in messages and in bytes. The bytes grow with what the broker acknowledges
  and are halved by every connection that breaks, so that a line that is often cut gets further each time. A slow one
  has all the time it needs: keep-alive, not a message's own clock, finds a dead one.
- Who is cancelled first hands over what is queued, within a few seconds.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from covey_aggregator.home import BrokerSettings
from covey_protocol.errors import ConfigError, LocalError
from covey_protocol.messages import SESSION_SECONDS

log = logging.getLogger("covey.aggregator.link")

CLIENT_ID = "aggregator"
PACKET_ROOM = 1024  # for a PUBLISH packet's header, topic and properties
DRAIN_SECONDS = 5.0
_IN_FLIGHT = 200
_ROOM_START, _ROOM_MAX = 64 << 10, 1 << 20  # bytes unacknowledged at once
_BACKOFF, _BACKOFF_SHORT, _BACKOFF_CAP = 0.5, 4.0, 30.0
_STABLE_SECONDS = 10.0


@dataclass
class _Outgoing:
    topic: str
    payload: bytes = field(repr=False)
    retain: bool
    expiry: int

    @property
    def size(self) -> int:
        """Most bytes that the PUBLISH packet takes: 10 for its header, 5 for an expiry."""
        return 15 + len(self.topic.encode()) + len(self.payload)


class _Client(aiomqtt.Client):
    """An aiomqtt client that keeps what CONNACK said and acknowledges when told."""

    session_present = False
    packet_limit = 0
    window = _IN_FLIGHT

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Properties | None = None
    ) -> None:
        self.session_present = bool(flags.session_present)
        self.packet_limit = int(getattr(properties, "MaximumPacketSize", 0))
        self.window = min(_IN_FLIGHT, int(getattr(properties, "ReceiveMaximum", _IN_FLIGHT)))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def __init__(self, *args: Any, **options: Any) -> None:
        """Make a client; arguments as for ``aiomqtt.Client``."""
        super().__init__(*args, **options)
        self._client.manual_ack_set(True)

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """Tell the broker that a message has been dealt with."""
        self._client.ack(message.mid, message.qos)


class BrokerLink:
    """Publishes in order and keeps what was not acknowledged for the next connection.

    Args:
        settings: The broker.
        folder: Where relative file names in the settings start.
        filters: Topic filters to subscribe to.
        on_message: Called on the event loop with topic, payload, and what to call, in order, once the message is safe.
        on_connect: Called on the event loop with whether the broker had kept the session; must not raise.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        folder: Path,
        filters: list[str],
        on_message: Callable[[str, bytes, Callable[[], object]], None],
        on_connect: Callable[[bool], None] | None = None,
    ) -> None:
        self._settings, self._folder, self._filters = settings, folder, filters
        self._on_message, self._on_connect = on_message, on_connect
        self._outgoing: deque[_Outgoing] = deque()
        self._unacknowledged: dict[int, _Outgoing] = {}
        self._wake = asyncio.Event()
        self._limit = settings.max_packet_bytes
        self._room = _ROOM_START
        self._leaving = False
        self._again = asyncio.Event()
        self.connected = asyncio.Event()
        self.connections = 0
        self.undeliverable = 0

    @property
    def max_payload(self) -> int:
        """Most bytes that one message may carry; what is larger must be cut into pieces."""
        return self._limit - PACKET_ROOM

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry: int = 0) -> None:
        """Queue a message.

        Args:
            topic: Where to.
            payload: What.
            retain: Whether the broker keeps it for later subscribers.
            expiry: Seconds after which the broker need not deliver it any more (MQTT 5 only); 0 for never.

        Raises:
            LocalError: It is larger than the broker takes (cause ``too-large``).
        """
        item = _Outgoing(topic, payload, retain, expiry)
        if item.size > self._limit:
            raise LocalError(
                f"broker link: {len(payload)} bytes for {topic} make a packet of {item.size}; "
                f"the broker takes {self._limit}",
                cause="too-large",
            )
        self._outgoing.append(item)
        self._wake.set()

    async def drained(self) -> None:
        """Wait until the broker has acknowledged everything that was queued."""
        while self._outgoing or self._unacknowledged:
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled; then hand over what is queued, if the broker is there.

        Raises:
            ConfigError: A password or certificate cannot be read.
        """
        self._leaving, failures = False, 0
        while True:
            began, ceiling = time.monotonic(), _BACKOFF_CAP
            try:
                async with self._client() as client:
                    ceiling = _BACKOFF_SHORT  # whoever was let in is not knocking on a closed door
                    await self._serve(client)
            except* aiomqtt.MqttError as errors:
                reason = _first(errors)
                log.warning("broker %s:%s: %s", self._settings.host, self._settings.port, reason)
            finally:
                self.connected.clear()
            failures = 0 if time.monotonic() - began >= _STABLE_SECONDS else failures
            pause = min(ceiling, _BACKOFF * 2.0 ** min(failures, 16))
            failures += 1
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret

    async def _serve(self, client: _Client) -> None:
        """Hold one connection for as long as it lasts."""
        self._limit = self._settings.max_packet_bytes
        if client.packet_limit:
            self._limit = min(self._limit, client.packet_limit)
        self.connections += 1
        log.info("connected to %s:%s", self._settings.host, self._settings.port)
        subscribe = asyncio.create_task(self._subscribe(client), name="covey-subscribe")
        receive = asyncio.create_task(self._receive(client), name="covey-receive")
        send = asyncio.create_task(self._send(client), name="covey-send")
        tasks = (subscribe, receive, send)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            self._leaving = True
            self._wake.set()
            await asyncio.wait({send}, timeout=DRAIN_SECONDS)
            if self._outgoing or self._unacknowledged:
                log.warning("%d messages were not handed over", len(self._outgoing) + len(self._unacknowledged))
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    def subscribe_again(self) -> None:
        """Have the broker send what is retained once more."""
        self._again.set()

    async def _subscribe(self, client: _Client) -> None:
        while True:
            self._again.clear()
            for topic_filter in self._filters:
                await client.subscribe(topic_filter, qos=1, timeout=math.inf)
            self.connected.set()
            await self._again.wait()

    async def _receive(self, client: _Client) -> None:
        """Deal with messages, from the first on: with a session they come before the answer to SUBSCRIBE."""
        if self._on_connect is not None:
            self._on_connect(client.session_present)
        async for message in client.messages:
            payload = message.payload
            acknowledge = functools.partial(client.acknowledge, message)
            self._on_message(str(message.topic), payload if isinstance(payload, bytes) else b"", acknowledge)
        raise aiomqtt.MqttError("the connection ended")

    async def _send(self, client: _Client) -> None:
        """Hand messages over in order, many at a time; what fails goes back to the front of the queue."""
        flying = self._unacknowledged
        number = weight = 0

        async def one(number: int, item: _Outgoing) -> None:
            nonlocal weight
            await client.publish(
                item.topic,
                item.payload,
                qos=1,
                retain=item.retain,
                properties=self._properties(item),
                timeout=math.inf,
            )
            flying.pop(number)
            weight -= item.size
            self._room = min(_ROOM_MAX, self._room + item.size)
            self._wake.set()

        try:
            async with asyncio.TaskGroup() as group:
                while self._outgoing or flying or not self._leaving:
                    while self._outgoing and len(flying) < client.window:
                        if flying and weight + self._outgoing[0].size > self._room:
                            break
                        item = self._outgoing.popleft()
                        if item.size > self._limit:
                            self._undeliverable(item)
                            continue
                        number += 1
                        weight += item.size
                        flying[number] = item
                        group.create_task(one(number, item))
                    self._wake.clear()
                    if self._outgoing or flying or not self._leaving:
                        await self._wake.wait()
        finally:
            self._room //= 2 if flying else 1
            self._outgoing.extendleft(reversed(list(flying.values())))
            flying.clear()

    def _undeliverable(self, item: _Outgoing) -> None:
        """Drop what was queued under a larger limit than the broker has now."""
        self.undeliverable += 1
        log.error("%d bytes for %s exceed the broker's %d and are dropped", item.size, item.topic, self._limit)

    def _properties(self, item: _Outgoing) -> Properties | None:
        if not item.expiry or self._settings.protocol != "5":
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = item.expiry
        return properties

    def _client(self) -> _Client:
        settings, v5 = self._settings, self._settings.protocol == "5"
        properties = None
        if v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_SECONDS
        password = None
        if settings.password_file:
            try:
                password = (self._folder / settings.password_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"{self._folder / settings.password_file}: cannot be read: {error}") from error
        client = _Client(
            settings.host,
            settings.port,
            username=settings.username or None,
            password=password,
            identifier=CLIENT_ID,
            protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
            clean_start=False if v5 else MQTT_CLEAN_START_FIRST_ONLY,
            clean_session=None if v5 else False,
            properties=properties,
            keepalive=settings.keepalive,
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


def _first(error: BaseException) -> BaseException:
    """Return the first error inside a group, and groups inside it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
