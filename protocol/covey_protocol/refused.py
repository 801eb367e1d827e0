"""REFUSED: telling a device that it is not let in, and why.

Without it a device that was revoked, or whose token was used by another key, would wait for ever and say nothing. The
answer names the very message that is refused by its digest: of two parties who claim one name, each believes only what
is said about its own words, and an old answer that is played back says nothing about a new message.
"""

from __future__ import annotations

from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.digest import content_digest
from covey_protocol.envelope import Context
from covey_protocol.errors import PeerError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import REASON_MAX, Refused
from covey_protocol.payload import read, write

FOR_GOOD = frozenset({"expired", "second-key", "former-key", "revoked"})
"""Causes that no further attempt of the device changes."""


def write_refused(state: bytes, error: PeerError, *, fleet: str, device: str, key: SigningKey) -> bytes:
    """Answer a STATE message as the aggregator, with why it is refused."""
    body = Refused(state=content_digest(state), cause=error.cause[:40], reason=str(error)[:REASON_MAX])
    return envelope.sign(write(body), _context(fleet, device), key)


def read_refused(data: bytes, *, fleet: str, device: str, aggregator_key: bytes) -> Refused:
    """Read such an answer as the device that it is for.

    Raises:
        PeerError: It is not from the aggregator to this device.
    """
    return read(Refused, envelope.open_signed(data, _context(fleet, device), aggregator_key))


def _context(fleet: str, device: str) -> Context:
    return Context(fleet=fleet, kind=topics.REFUSED, sender=AGGREGATOR, recipient=device)
