"""Answers devices that ask for a new TLS certificate, where the broker's CA is in this home.

A device is vouched for by its own signature, and by being known: whoever was revoked is not. It is given one new
certificate a day at most; a question that is repeated, because the answer was lost, is answered with the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from covey_aggregator.home import ServerHome
from covey_aggregator.registry import Registry
from covey_aggregator.store import Store
from covey_aggregator.tls_home import TlsHome, has_tls
from covey_protocol import topics
from covey_protocol.effects import Deliver, Effect, Note
from covey_protocol.errors import ConfigError, RefusedError, StaleError
from covey_protocol.messages import IssuedCertificate
from covey_protocol.payload import read, write
from covey_protocol.renewal import read_renew, write_certificate

DAY = 86400
_AGAIN = 60


class CertificateDesk:
    """The service's side.

    Args:
        home: Whose CA and key.
        store: Where it is noted who has which certificate.
        registry: The devices that are known.
        wall_clock: Unix seconds.
    """

    def __init__(
        self, home: ServerHome, store: Store, registry: Registry, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._home, self._store, self._registry, self._wall = home, store, registry, wall_clock
        self._answered: dict[str, float] = {}

    def receive(self, device: str, data: bytes) -> list[Effect]:
        """Take a RENEW message.

        Raises:
            StaleError: The device is not known, or was answered a moment ago.
            RefusedError: It has had a certificate today, or there is no CA here.
            PeerError: The device did not sign it.
        """
        if not self._registry.knows(device):
            raise StaleError(f"renew from {device!r}, who has not shown an identity", cause="unknown-device")
        fleet, now = self._home.fleet, self._wall()
        wanted = read_renew(data, fleet=fleet, device=device, key=self._registry.key(device))
        if abs(now - self._answered.get(device, -_AGAIN)) < _AGAIN:
            raise StaleError(f"{device!r} asks for a certificate again", cause="replayed")
        last = self._store.memory(f"certificate/{device}")
        known = read(IssuedCertificate, last) if last else None
        effects: list[Effect] = []
        if known is None or known.public_key != wanted:
            if known is not None and abs(now - known.made) < DAY:
                raise RefusedError(f"{device!r} has had a new certificate today", cause="renewal")
            known = self._issue(device, wanted, int(now))
            effects = [Note("certificate", f"{device} has a new broker certificate")]
        self._answered[device] = now
        answer = write_certificate(known, fleet=fleet, device=device, key=self._home.key)
        return [*effects, Deliver(device, topics.CERTIFICATE, answer)]

    def _issue(self, device: str, public_key: bytes, now: int) -> IssuedCertificate:
        if not has_tls(self._home.path):
            raise RefusedError(f"{device!r} asks for a certificate, and no CA is in this home", cause="renewal")
        with self._store.together():
            try:
                made = TlsHome(self._home.path, self._store).issue(device, public_key, now)
            except ConfigError as error:
                raise RefusedError(f"no certificate for {device!r}: {error}", cause="renewal") from error
            answer = IssuedCertificate(certificate=made.pem, public_key=public_key, not_after=made.not_after, made=now)
            self._store.keep(f"certificate/{device}", write(answer))
        return answer
