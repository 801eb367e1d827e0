"""A device's TLS certificate, renewed over the air before it ends.

The certificate opens the broker's door and nothing else, so no certificate request is needed. The device makes a new
TLS key and signs its public half with the device key that everybody knows it by (RENEW); the aggregator, who holds the
broker's CA, answers with a certificate for it (CERTIFICATE). When it ends stands in the answer, so that the device need
not read X.509.
"""

from __future__ import annotations

import base64

from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.envelope import Context
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import IssuedCertificate, Renew
from covey_protocol.payload import read, write

CERTIFICATE_SECONDS = 400 * 86400
RENEW_SECONDS = CERTIFICATE_SECONDS // 3
"""A certificate is renewed when so much of its life is left."""

_PKCS8_ED25519 = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410, section 7: all but the seed is fixed


def is_due(not_after: int, now: int) -> bool:
    """Whether a certificate has less than a third of its life left; one of which nothing is known is not."""
    return bool(not_after) and now > not_after - RENEW_SECONDS


def write_renew(public_key: bytes, *, fleet: str, device: str, key: SigningKey) -> bytes:
    """Ask for a certificate for a TLS key, as a device."""
    return envelope.sign(
        write(Renew(public_key=public_key)), Context(fleet=fleet, kind=topics.RENEW, sender=device), key
    )


def read_renew(data: bytes, *, fleet: str, device: str, key: bytes) -> bytes:
    """Return the TLS key that a device asks a certificate for.

    Raises:
        PeerError: The device did not sign it.
    """
    context = Context(fleet=fleet, kind=topics.RENEW, sender=device)
    return read(Renew, envelope.open_signed(data, context, key)).public_key


def write_certificate(answer: IssuedCertificate, *, fleet: str, device: str, key: SigningKey) -> bytes:
    """Answer with a certificate, as the aggregator."""
    return envelope.sign(write(answer), _context(fleet, device), key)


def read_certificate(data: bytes, *, fleet: str, device: str, aggregator_key: bytes) -> IssuedCertificate:
    """Read such an answer as the device that it is for.

    Raises:
        PeerError: It is not from the aggregator to this device.
    """
    return read(IssuedCertificate, envelope.open_signed(data, _context(fleet, device), aggregator_key))


def private_key_pem(seed: bytes) -> str:
    """Return an Ed25519 private key as PEM text (PKCS #8, RFC 8410)."""
    body = base64.b64encode(_PKCS8_ED25519 + seed).decode()
    return f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"


def _context(fleet: str, device: str) -> Context:
    return Context(fleet=fleet, kind=topics.CERTIFICATE, sender=AGGREGATOR, recipient=device)
