"""One paho client and what it has in hand: the part of a link that runs on the link's thread only.

A message is handed to a client object at most once: paho keeps what is unacknowledged when a connection
breaks and repeats it by itself on the next one, so handing it over again would send it twice. The thread
waits with ``poll``, which unlike paho's ``select`` has no limit of 1,024 descriptors.

How many bytes may be unacknowledged grows with what the broker acknowledges and is halved by every connection that
breaks with something unacknowledged, down to one message at a time. Else a line that is cut before the first
acknowledgement is back would carry the same messages on every connection and never get further.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import Any, NamedTuple

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from covey_agent.link_options import NO_LIMIT, LinkEvents, LinkOptions, Shared, publish_size
from covey_agent.outbox import Outbox, Row
from covey_agent.paho_client import Guard, build_client, connect_client, log

ROOM_START, ROOM_MAX = 64 << 10, 1 << 20  # bytes unacknowledged at once
TICK = 1.0  # longest wait: paho's keepalive needs a turn, and rows enqueued without a wake are found
GOODBYE_SECONDS = 2.0
FILTERS_A_PACKET = 8  # AWS IoT takes no more in one SUBSCRIBE
TRANSIENT = frozenset({0x80, 0x97})  # PUBACK reasons worth another try: unspecified error, quota exceeded


class End(NamedTuple):
    """How a connection went: was it opened, did the broker accept us, or does it not know the protocol."""

    opened: bool
    accepted: bool
    unsupported: bool


class InHand(NamedTuple):
    """A message that paho has and the broker has not acknowledged."""

    row: int
    topic: str
    size: int


class Wire:
    """A client of one protocol version, connected again and again."""

    def __init__(
        self,
        *,
        options: LinkOptions,
        protocol: MQTTProtocolVersion,
        context: ssl.SSLContext | None,
        outbox: Outbox,
        shared: Shared,
        events: LinkEvents,
    ) -> None:
        """Set up the client; ``events`` must not raise."""
        self._options = options
        self._outbox = outbox
        self._shared = shared
        self._events = events
        self._mids: dict[int, InHand] = {}
        self._cursor = 0  # rows up to here were handed to the client
        self._resume_at = 0.0
        self._window = options.inflight
        self._room = ROOM_START
        self._acked: list[int] = []
        self._asked: dict[int, list[str]] = {}  # SUBSCRIBE packets without an answer
        self._refused: set[str] = set()  # filters the broker does not grant on this connection
        self._accepted = self._unsupported = self._up = False
        self._client = client = build_client(options, protocol, context)
        guard = Guard()
        client.on_connect = guard("connect", self._on_connect)
        client.on_disconnect = guard("disconnect", self._on_disconnect)
        client.on_message = guard("message", self._on_message)
        client.on_publish = guard("publish", self._on_publish)
        client.on_subscribe = guard("subscribe", self._on_subscribe)
        with shared.changed:
            shared.granted.clear()

    def hold(self, ear: socket.socket, patience: float) -> End:
        """Connect and serve until the connection ends or the link is told to stop.

        Args:
            ear: Becomes readable when another thread wants attention.
            patience: Seconds within which the broker must answer CONNECT.
        """
        self._accepted = self._unsupported = False
        try:
            connect_client(self._client, self._options)
        except OSError as error:
            self._trouble(f"cannot connect to {self._options.host}:{self._options.port}: {error}")
            return End(False, False, False)
        try:
            self._serve(ear, patience)
        finally:
            self._shut()
        return End(True, self._accepted, self._unsupported)

    def _serve(self, ear: socket.socket, patience: float) -> None:
        client, deadline, leaving = self._client, time.monotonic() + patience, False
        poller = select.poll()
        poller.register(ear, select.POLLIN)
        first = client.socket()
        if first is None:
            return
        poller.register(first.fileno(), select.POLLIN)
        while (sock := client.socket()) is not None:
            writing = select.POLLOUT if client.want_write() else 0
            poller.modify(sock.fileno(), select.POLLIN | writing)
            buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            ready = dict(poller.poll(0 if buffered else TICK * 1000))
            if ear.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    ear.recv(4096)
            found = ready.get(sock.fileno(), 0)
            if found & ~select.POLLOUT or buffered:
                client.loop_read()
            if found & select.POLLOUT:
                client.loop_write()
            client.loop_misc()
            self._settle()
            if self._shared.stopping.is_set() and not leaving:
                leaving, deadline = True, time.monotonic() + GOODBYE_SECONDS
                client.disconnect()
            elif self._up and not leaving:
                self._sync_subscriptions()
                self._pump()
            elif time.monotonic() > deadline:
                if not leaving:
                    self._trouble(f"no answer to CONNECT within {patience:g} s")
                return

    def _shut(self) -> None:
        """Close a socket that is still open, without a DISCONNECT packet."""
        sock: Any = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            self._client.loop_read()  # finds the end of the stream and lets paho clean up
        self._up = False
        self._settle()

    def _trouble(self, what: str) -> None:
        with self._shared.changed:
            self._shared.status.last_error = what

    def _pump(self) -> None:
        """Hand waiting rows to paho, as many as the window holds, once it has written what it had."""
        free = self._window - len(self._mids)
        if free <= 0 or self._client.want_write() or time.monotonic() < self._resume_at:
            return
        in_hand = {each.row for each in self._mids.values()}
        weight = self._weight()
        while free > 0 and (rows := self._outbox.pending(after=self._cursor, limit=free)):
            for row in rows:
                # After a transient refusal the cursor has gone back behind rows that paho still has.
                if row.id not in in_hand:
                    size = publish_size(row.topic, len(row.payload))
                    if weight and weight + size > self._room:
                        return
                    if not self._hand_over(row):
                        return
                    free, weight = free - 1, weight + size
                self._cursor = row.id

    def _weight(self) -> int:
        """Return how many bytes the broker has not acknowledged."""
        return sum(publish_size(each.topic, each.size) for each in self._mids.values())

    def _hand_over(self, row: Row) -> bool:
        """Give one row to paho; False if paho cannot take it now."""
        size = publish_size(row.topic, len(row.payload))
        if size > self._shared.packet_limit:
            self._undeliverable(row.id, row.topic, len(row.payload), f"exceeds {self._shared.packet_limit}")
            return True
        if row.qos == 0:
            self._outbox.delete(row.id)  # before sending: at most once
        try:
            info = self._client.publish(row.topic, row.payload, qos=row.qos, retain=row.retain)
        except ValueError as error:
            self._undeliverable(row.id, row.topic, len(row.payload), str(error))
            return True
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            return False
        if row.qos:
            self._mids[info.mid] = InHand(row.id, row.topic, len(row.payload))
        self._count_up(1, size)
        return True

    def _count_up(self, messages: int, size: int) -> None:
        with self._shared.changed:
            self._shared.status.messages_up += messages
            self._shared.status.bytes_up += size

    def _undeliverable(self, row: int, topic: str, size: int, why: str) -> None:
        log.error("link: %d bytes for %s cannot be delivered and were dropped: %s", size, topic, why)
        self._acked.append(row)
        with self._shared.changed:
            self._shared.status.undeliverable += 1
        if self._events.on_undeliverable:
            self._events.on_undeliverable(topic, size, why)

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, reason: ReasonCode, _props: Properties) -> None:
        sent = self._mids.pop(mid, None)
        if sent is None:
            return
        if not reason.is_failure:
            self._acked.append(sent.row)
            self._room = min(ROOM_MAX, self._room + publish_size(sent.topic, sent.size))
        elif reason.value in TRANSIENT:
            self._cursor = min(self._cursor, sent.row - 1)
            self._resume_at = time.monotonic() + self._options.backoff_cap
            self._trouble(f"the broker refused {sent.topic} for now: {reason}")
        else:
            self._undeliverable(sent.row, sent.topic, sent.size, f"the broker answered: {reason}")

    def _settle(self) -> None:
        """Take what was acknowledged out of the outbox, and wake whoever waits for that."""
        if self._acked:
            self._outbox.delete(*self._acked)
            self._acked.clear()
            with self._shared.changed:
                self._shared.changed.notify_all()

    def _sync_subscriptions(self) -> None:
        pending = {topic for topics in self._asked.values() for topic in topics}
        with self._shared.changed:
            missing = sorted(self._shared.wanted - self._shared.granted - pending - self._refused)
            surplus = sorted(self._shared.unwanted)
            self._shared.unwanted.clear()
            self._shared.granted.difference_update(surplus)
        for start in range(0, len(surplus), FILTERS_A_PACKET):
            self._client.unsubscribe(surplus[start : start + FILTERS_A_PACKET])
        for start in range(0, len(missing), FILTERS_A_PACKET):
            part = missing[start : start + FILTERS_A_PACKET]
            _, mid = self._client.subscribe([(topic, 1) for topic in part])
            if mid is not None:
                self._asked[mid] = part

    def _on_subscribe(
        self, _client: Client, _userdata: Any, mid: int, reasons: list[ReasonCode], _props: Properties
    ) -> None:
        for topic, reason in zip(self._asked.pop(mid, []), reasons, strict=False):
            if reason.is_failure:
                self._refused.add(topic)
                log.error("link: the broker refuses the subscription to %s: %s", topic, reason)
                continue
            with self._shared.changed:
                if topic in self._shared.wanted:
                    self._shared.granted.add(topic)
                self._shared.changed.notify_all()

    def _on_connect(
        self, client: Client, _userdata: Any, flags: ConnectFlags, reason: ReasonCode, props: Properties
    ) -> None:
        if reason.is_failure:
            self._unsupported = reason == "Unsupported protocol version"
            self._trouble(f"the broker refused the connection: {reason}")
            return
        limit = int(getattr(props, "MaximumPacketSize", NO_LIMIT))
        self._window = min(self._options.inflight, int(getattr(props, "ReceiveMaximum", self._options.inflight)))
        sizes = [publish_size(each.topic, each.size) for each in self._mids.values()]
        if len(sizes) > self._window or max(sizes, default=0) > limit or (len(sizes) > 1 and sum(sizes) > self._room):
            # The limits are tighter now than what paho is about to repeat: take it back.
            client.drop_out_messages()
            self._mids.clear()
            self._cursor, sizes = 0, []
        self._count_up(len(sizes), sum(sizes))
        self._accepted = self._up = True
        self._asked.clear()
        self._refused.clear()
        with self._shared.changed:
            if not flags.session_present:
                self._shared.granted.clear()
            self._shared.packet_limit = limit
            status = self._shared.status
            status.connected, status.last_error = True, ""
            status.protocol = "5" if client.protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"
            status.connects += 1
            self._shared.changed.notify_all()
        if self._events.on_connect:
            self._events.on_connect(flags.session_present)

    def _on_disconnect(
        self, _client: Client, _userdata: Any, flags: DisconnectFlags, reason: ReasonCode, _props: Properties
    ) -> None:
        was_up, self._up = self._up, False
        if self._mids:
            self._room //= 2
        why = f"connection {'ended' if was_up else 'closed before it was accepted'}: {reason}"
        if flags.is_disconnect_packet_from_server:
            why = f"the broker disconnected us: {reason}"
        with self._shared.changed:
            self._shared.status.connected = False
            if not self._shared.stopping.is_set() and (was_up or not self._shared.status.last_error):
                self._shared.status.last_error = why
            self._shared.changed.notify_all()
        if was_up and self._events.on_disconnect:
            self._events.on_disconnect(why)

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        with self._shared.changed:
            self._shared.status.messages_down += 1
            self._shared.status.bytes_down += publish_size(message.topic, len(message.payload))
        if self._events.on_message:
            self._events.on_message(message.topic, bytes(message.payload))
