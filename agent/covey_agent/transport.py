"""The device's link to the broker: an outbox in front, MQTT 5 or 3.1.1 below, and one thread that never dies.

Everything that touches paho runs on the link's own thread (see ``wire``); other threads only write to the
outbox, edit the wanted subscriptions and wake it. What holds:

- A message is in the outbox before ``publish`` returns and leaves it on PUBACK.
- Nothing larger than the broker's limit reaches paho: such a message would be sent, the connection closed by
  the broker, and both repeated for ever.
- Callbacks may raise what they like. A message counts as received when ``on_message`` has returned.
- ``start`` returns at once and the link tries for ever, at intervals drawn with full jitter.

Delivery is at least once: a message may arrive twice after a broken connection, and receivers must not mind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from paho.mqtt.enums import MQTTProtocolVersion

from covey_agent.link_options import (
    PUBLISH_HEADER,
    TOPIC_ALLOWANCE,
    LinkEvents,
    LinkOptions,
    LinkStatus,
    Shared,
    backoff_delay,
    publish_size,
)
from covey_agent.outbox import Outbox
from covey_agent.paho_client import Guard, log, tls_context
from covey_agent.wire import Wire
from covey_protocol.errors import ConfigError, CoveyError, LocalError, StateError

__all__ = ["Link", "LinkEvents", "LinkOptions", "LinkStatus", "MqttLink"]

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
SILENCE_SECONDS = 4.0  # a broker that lets MQTT 5's CONNECT lie that long may be a 3.1.1 one
STABLE_SECONDS = 10.0  # a connection that lasted this long resets the back-off
LET_IN_FACTOR = 8.0  # ceiling of the back-off after a connection that the broker had accepted, in base waits


class Link(Protocol):
    """What the agent's runtime needs of a transport."""

    def start(self) -> None:
        """Begin to connect; returns at once."""

    def stop(self) -> None:
        """Disconnect cleanly and end the thread; what waits in the outbox stays there."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Make a message durable, then send it; returns its row in the outbox."""

    def subscribe(self, topics: Iterable[str]) -> None:
        """Want these topic filters, now and after every reconnection."""

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """No longer want these topic filters."""


class MqttLink:
    """One device's connection, kept up until ``stop``."""

    def __init__(self, options: LinkOptions, outbox: Outbox, events: LinkEvents | None = None) -> None:
        """Prepare a link; nothing is opened before ``start``.

        Args:
            options: Where to connect and how.
            outbox: Queue of outgoing messages; may hold some from before.
            events: Callbacks, called on the link's thread.

        Raises:
            ConfigError: A TLS file cannot be used.
        """
        self.options = options
        self.outbox = outbox
        self._context = tls_context(options)
        given, guard = events or LinkEvents(), Guard()
        self._events = LinkEvents(
            on_message=guard("on_message", given.on_message),
            on_connect=guard("on_connect", given.on_connect),
            on_disconnect=guard("on_disconnect", given.on_disconnect),
            on_undeliverable=guard("on_undeliverable", given.on_undeliverable),
        )
        self._shared = Shared()
        self._thread: threading.Thread | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None  # (ear, button): wakes the thread
        # The link's thread only:
        self._protocol = V311 if options.protocol == "3.1.1" else V5
        self._proven = False  # this protocol has worked with this broker
        self._wire: Wire | None = None
        self._others = False
        self._choice = 0  # which of the certificates is shown
        self._renewed = threading.Event()

    @property
    def status(self) -> LinkStatus:
        """A copy of the counters."""
        with self._shared.changed:
            return dataclasses.replace(self._shared.status)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and the connection stands."""
        return self._shared.status.connected

    @property
    def max_payload(self) -> int:
        """Most bytes one message may carry at the moment; larger payloads must be cut into chunks."""
        with self._shared.changed:
            return max(1, min(self.options.max_payload, self._shared.packet_limit - PUBLISH_HEADER - TOPIC_ALLOWANCE))

    def check_size(self, topic: str, size: int) -> None:
        """Refuse a payload that the broker, or our own ceiling, would not let through.

        Raises:
            LocalError: Cause ``too-large``; the message names both sizes.
        """
        with self._shared.changed:
            fits = size <= self.options.max_payload and publish_size(topic, size) <= self._shared.packet_limit
        if not fits:
            raise LocalError(
                f"link: {size} bytes for {topic} exceed the {self.max_payload} that one message may carry",
                cause="too-large",
            )

    def start(self) -> None:
        """Begin to connect; returns at once, whether or not the broker is there.

        Raises:
            StateError: The link runs already.
        """
        if self._thread is not None:
            raise StateError("link: started twice")
        self._shared.stopping.clear()
        ear, button = socket.socketpair()
        ear.setblocking(False)
        button.setblocking(False)
        self._bell = (ear, button)
        name = f"covey-link-{self.options.client_id}"
        self._thread = threading.Thread(target=self._run, args=(ear,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect cleanly (the broker keeps the session, the will is not sent) and end the thread."""
        thread, bell = self._thread, self._bell
        self._shared.stopping.set()
        self.kick()
        if thread is None or bell is None or thread is threading.current_thread():
            return
        thread.join(self.options.connect_timeout + 5.0)
        if thread.is_alive():
            log.error("link %s: its thread hangs in a connection attempt; left behind", self.options.client_id)
            return
        self._thread = self._bell = None
        for end in bell:
            end.close()

    def kick(self) -> None:
        """Look at the outbox now; to be called after a commit that enqueued through ``Outbox.put_in``."""
        bell = self._bell
        if bell is not None:
            with contextlib.suppress(OSError):  # full: the thread will wake anyway; closed: nobody to wake
                bell[1].send(b"\0")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1, tag: str = "") -> int:
        """Make a message durable, then send it when the broker can be reached.

        Returns:
            Its row in the outbox.

        Raises:
            LocalError: Too large for the broker (``too-large``), or as for ``Outbox.put``.
        """
        self.check_size(topic, len(payload))
        row = self.outbox.put(topic, payload, retain=retain, qos=qos, tag=tag)
        self.kick()
        return row

    def subscribe(self, topics: Iterable[str]) -> None:
        """Want these topic filters at QoS 1, now and after every reconnection."""
        with self._shared.changed:
            added = set(topics)
            self._shared.wanted |= added
            self._shared.unwanted -= added
        self.kick()

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """No longer want these topic filters; a broker that is away is told when it is back."""
        with self._shared.changed:
            removed = set(topics)
            self._shared.wanted -= removed
            self._shared.unwanted |= removed
        self.kick()

    def credentials_changed(self) -> None:
        """Show the newest certificate from the next connection on."""
        self._renewed.set()

    def wait_connected(self, timeout: float) -> bool:
        """Wait until the link is up with all wanted subscriptions granted; tell whether it came to that."""
        with self._shared.changed:
            return self._shared.changed.wait_for(
                lambda: self._shared.status.connected and self._shared.wanted <= self._shared.granted, timeout
            )

    def drain(self, timeout: float) -> bool:
        """Wait until the broker has acknowledged everything in the outbox; tell whether it came to that."""
        deadline = time.monotonic() + timeout
        while self.outbox.used()[0]:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._shared.changed:
                self._shared.changed.wait(min(left, 0.1))
        return True

    def _run(self, ear: socket.socket) -> None:
        """Connect, serve, wait and begin again, until told to stop."""
        failures, complaint = 0, ""
        while not self._shared.stopping.is_set():
            began, connects = time.monotonic(), self._shared.status.connects
            try:
                again = self._attempt(ear)
            except Exception as error:
                # Whatever it was (a failing disk under the outbox, say), a link that is gone helps nobody.
                known = isinstance(error, CoveyError)
                log.error("link %s: the connection broke down: %s", self.options.client_id, error, exc_info=not known)
                self._wire, again = None, False
                with self._shared.changed:
                    self._shared.status.connected = False
                    self._shared.status.last_error = repr(error)
            with self._shared.changed:
                trouble, news = self._shared.status.last_error, self._shared.status.connects != connects
            if trouble and (news or trouble != complaint):  # once, however often it is repeated
                log.warning("link %s: %s", self.options.client_id, trouble)
            complaint = trouble
            if again:
                continue
            failures = 0 if time.monotonic() - began >= STABLE_SECONDS else failures
            options = self.options
            # Whoever was let in is not knocking on a closed door: the network is poor, and each try brings some more.
            cap = min(options.backoff_cap, LET_IN_FACTOR * options.backoff_base) if news else options.backoff_cap
            pause = backoff_delay(failures, options.backoff_base, cap, options.rng)
            failures += 1
            self._shared.stopping.wait(pause)

    def _attempt(self, ear: socket.socket) -> bool:
        """Hold one connection for as long as it lasts; tell whether to try another protocol at once."""
        if self._renewed.is_set():
            self._renewed.clear()
            self._wire, self._choice = None, 0
        if self._wire is None:
            self._choose()
            self._wire = Wire(
                options=self.options,
                protocol=self._protocol,
                context=self._context,
                outbox=self.outbox,
                shared=self._shared,
                events=self._events,
            )
        guessing = self.options.protocol == "auto" and not self._proven
        patience = self.options.connect_timeout
        if guessing and self._protocol == V5:
            patience = min(patience, SILENCE_SECONDS)
        end = self._wire.hold(ear, patience)
        if end.accepted:
            self._proven = True
        elif self.options.protocol == "auto" and (end.unsupported or (end.opened and guessing)):
            # A 3.1.1 broker says so, closes the connection or, like amqtt, takes MQTT 5's properties for the
            # length of a text and waits for it. The cause may be another one, so the next failure leads back
            # to MQTT 5; what has worked once is kept.
            fallback = self._protocol == V5
            self._protocol = V311 if fallback else V5
            self._wire, self._proven = None, False
            if fallback:
                return True
        if not end.accepted and self._others:
            # Whatever the reason was, an older certificate may do better; a good one comes round again.
            self._wire, self._choice = None, self._choice + 1
        return False

    def _choose(self) -> None:
        """Make the TLS context of the certificate whose turn it is."""
        credentials = self.options.credentials
        candidates = credentials.candidates() if credentials is not None else []
        self._others = len(candidates) > 1
        if not candidates:
            return
        certificate, key = candidates[self._choice % len(candidates)]
        try:
            self._context = tls_context(dataclasses.replace(self.options, cert_file=certificate, key_file=key))
        except ConfigError as error:  # a damaged file; the next one's turn comes with the next attempt
            log.error("link %s: %s", self.options.client_id, error)
