"""What an MQTT link is told once: where to, as whom, within which limits; and how long it backs off."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from covey_protocol.errors import ConfigError
from covey_protocol.messages import SESSION_SECONDS

# One PUBLISH packet: type byte, up to four length bytes, two for the topic's length, two for the packet id,
# one for an empty property list (MQTT 5).
PUBLISH_HEADER = 10
TOPIC_ALLOWANCE = 256  # the longest topic AWS IoT takes; what max_payload sets aside
NO_LIMIT = 1 << 28  # what MQTT's length field can express


class Credentials(Protocol):
    """Certificates that a device can show, of which the broker may refuse some."""

    def candidates(self) -> list[tuple[Path, Path | None]]:
        """Return files of certificate and key, those to be tried first in front."""


class Jitter(Protocol):
    """The one method of ``random.Random`` that back-off needs."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number between ``a`` and ``b``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkOptions:
    """Settings of one link; all times in seconds.

    ``client_id`` is the device's name and must be stable: the broker keeps the session under it. ``protocol``
    "auto" tries MQTT 5 and falls back to 3.1.1. ``max_payload`` is our own ceiling, for brokers that do not
    state one (with 3.1.1 they cannot); ``credentials``, if given, are tried in turn in place of ``cert_file`` and
    ``key_file``; ``max_packet_in`` is what we ask an MQTT 5 broker not to exceed
    (0: not asked).
    """

    host: str
    client_id: str
    port: int = 1883
    keepalive: int = 60
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    session_expiry: int = SESSION_SECONDS
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    credentials: Credentials | None = field(default=None, repr=False)
    will_topic: str | None = None
    will_payload: bytes = b""
    backoff_base: float = 1.0
    backoff_cap: float = 120.0
    connect_timeout: float = 10.0
    inflight: int = 16
    max_payload: int = 128 << 10
    max_packet_in: int = 4 << 20
    rng: Jitter = field(default_factory=random.SystemRandom, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: Naming the field.
        """
        rules: list[tuple[bool, str]] = [
            (bool(self.host), "host is empty"),
            (0 < self.port < 65536, f"port {self.port} is not within 1..65535"),
            (0 < len(self.client_id.encode()) < 65536, "client_id is empty or longer than 65535 bytes"),
            (0 < self.keepalive < 65536, f"keepalive {self.keepalive} is not within 1..65535"),
            (self.protocol in ("auto", "5", "3.1.1"), f"protocol {self.protocol!r} is not auto, 5 or 3.1.1"),
            (
                0 <= self.session_expiry < 1 << 32,
                f"session_expiry {self.session_expiry} is too long",
            ),
            (self.password is None or self.username is not None, "password without username"),
            ((self.cert_file is None) == (self.key_file is None), "cert_file and key_file go together"),
            (
                self.tls or not (self.ca_file or self.cert_file),
                "ca_file or cert_file without tls",
            ),
            (len(self.will_payload) < 65536, f"will_payload of {len(self.will_payload)} bytes exceeds 65535"),
            (0 < self.backoff_base <= self.backoff_cap, "backoff_base must lie within 0..backoff_cap"),
            (self.connect_timeout > 0, "connect_timeout must be positive"),
            (0 < self.inflight < 65536, f"inflight {self.inflight} is not within 1..65535"),
            (0 < self.max_payload < 1 << 28, f"max_payload {self.max_payload} is not within 1..268435455"),
            (0 <= self.max_packet_in < 1 << 32, f"max_packet_in {self.max_packet_in} does not fit 32 bits"),
        ]
        for holds, complaint in rules:
            if not holds:
                raise ConfigError(f"link: {complaint}")
        for name in ("ca_file", "cert_file", "key_file"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ConfigError(f"link: {name} {path} is not a file")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkEvents:
    """Callbacks of a link, called on its thread; what they raise is logged and goes no further.

    ``on_undeliverable(topic, size, reason)`` reports a message that was taken out of the outbox because the
    broker will never accept it: too large for a limit it stated later, or refused in its PUBACK.
    """

    on_message: Callable[[str, bytes], None] | None = None
    on_connect: Callable[[bool], None] | None = None
    on_disconnect: Callable[[str], None] | None = None
    on_undeliverable: Callable[[str, int, str], None] | None = None


@dataclass(slots=True)
class LinkStatus:
    """Counters since the link was made: PUBLISH packets, retransmissions and their headers included."""

    connected: bool = False
    protocol: str = ""
    connects: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    messages_up: int = 0
    messages_down: int = 0
    undeliverable: int = 0
    last_error: str = ""


@dataclass(slots=True)
class Shared:
    """What the link's thread and its callers both use; everything but the event under ``changed``."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    stopping: threading.Event = field(default_factory=threading.Event)
    status: LinkStatus = field(default_factory=LinkStatus)
    wanted: set[str] = field(default_factory=set)
    unwanted: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    packet_limit: int = NO_LIMIT


def publish_size(topic: str, payload: int) -> int:
    """Return the most bytes that a PUBLISH packet of ours takes with such a topic and payload."""
    return PUBLISH_HEADER + len(topic.encode()) + payload


def backoff_delay(attempt: int, base: float, cap: float, rng: Jitter) -> float:
    """Return how long to wait before reconnecting: full jitter under an exponential, capped ceiling.

    A fleet that lost its broker at one instant must not come back at one instant, so the whole interval from
    zero is drawn from, not only its end.

    Args:
        attempt: 0 for the first wait after a good connection.
        base: Ceiling of the first wait.
        cap: Ceiling of all waits.
        rng: Source of the jitter.
    """
    return rng.uniform(0.0, min(cap, base * 2.0 ** min(attempt, 64)))
