"""Asks for a new TLS certificate in good time, and takes it in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from covey_agent.courier import Courier
from covey_agent.home import AgentHome
from covey_agent.tls_pairs import TlsPairs
from covey_protocol import topics
from covey_protocol.errors import StaleError
from covey_protocol.renewal import is_due, read_certificate, write_renew

log = logging.getLogger("covey.agent")

ASK_SECONDS = 3600.0


class CertificateRenewal:
    """One device's side.

    Args:
        home: Whose key signs.
        pairs: What it can show the broker; None where it shows no certificate.
        courier: Sends what is to be said.
        clock: Monotonic seconds.
    """

    def __init__(self, home: AgentHome, pairs: TlsPairs | None, courier: Courier, clock: Callable[[], float]) -> None:
        self._home, self._pairs, self._courier, self._clock = home, pairs, courier, clock
        self._next = 0.0

    def ask(self, now: int) -> None:
        """Ask if it is time.

        Args:
            now: Unix seconds, as far as this device knows them.

        Raises:
            OSError: The new key cannot be written.
            LocalError: The outbox is full.
        """
        if self._pairs is None or self._clock() < self._next or not is_due(self._pairs.not_after, now):
            return
        if not self._courier.online:
            return
        self._next = self._clock() + ASK_SECONDS
        fleet, device = self._home.fleet, self._home.device
        data = write_renew(self._pairs.wanted(), fleet=fleet, device=device, key=self._home.key)
        self._courier.link.publish(topics.up(fleet, device, topics.RENEW), data)

    def take(self, payload: bytes, aggregator_key: bytes) -> None:
        """Take a CERTIFICATE message; it is shown to the broker at the next connection.

        Raises:
            PeerError: It does not hold, or was not asked for.
        """
        fleet, device = self._home.fleet, self._home.device
        answer = read_certificate(payload, fleet=fleet, device=device, aggregator_key=aggregator_key)
        if self._pairs is None:
            raise StaleError("a certificate that was not asked for", cause="replayed")
        self._pairs.take(answer.certificate, answer.public_key, answer.not_after)
        log.info("%s: the broker certificate is renewed until Unix time %d", device, answer.not_after)
        renewed: Any = getattr(self._courier.link, "credentials_changed", None)
        if renewed is not None:
            renewed()

    def snapshot(self) -> int | None:
        """Return when the newest certificate ends, if that is known."""
        return (self._pairs.not_after or None) if self._pairs is not None else None
