"""The provisioning bundle: what one device needs to join a fleet, in one line of text.

It holds the secret half of a one-time token, so whoever has it can become that device once; it is destroyed when the
device has made its own key.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Annotated

import msgspec
from nacl.signing import SigningKey

from covey_protocol import identity
from covey_protocol.errors import MalformedError, SignatureError
from covey_protocol.payload import Count, Key, Name, Payload, prepare, read, write
from covey_protocol.policy import verify_policy
from covey_protocol.revocation import verify_head

PREFIX, COMPACT = "covey-bundle-1:", "covey-bundle-1z:"
_MAX_TEXT = 64 * 1024
Certificate = Annotated[bytes, msgspec.Meta(max_length=4096)]
Pem = Annotated[str, msgspec.Meta(max_length=16 * 1024)]


class Broker(Payload, frozen=True, kw_only=True):
    """Where and how to connect; certificates and keys are PEM text, empty where TLS or passwords are not used.

    ``certificate_not_after`` says in Unix seconds when the certificate ends, so that a device need not read X.509.
    """

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    username: Annotated[str, msgspec.Meta(max_length=255)] = ""
    password: Annotated[str, msgspec.Meta(max_length=255)] = ""
    ca: Pem = ""
    certificate: Pem = ""
    key: Pem = ""
    certificate_not_after: Count = 0

    def __repr__(self) -> str:
        return f"Broker(host={self.host!r}, port={self.port})"


class Provisioning(Payload, frozen=True, kw_only=True):
    """The content of a provisioning bundle."""

    fleet: Name
    device: Name
    profile: Name
    operator_key: Key
    token: Certificate
    token_secret: Key
    delegation: Certificate
    policy: Certificate
    broker: Broker
    made: identity.Time = 0  # Unix seconds: no device that is enrolled with it lives before
    revocations: Certificate = b""  # head of the newest list, so that no server can show a new device an older one

    def __repr__(self) -> str:
        return f"Provisioning(fleet={self.fleet!r}, device={self.device!r})"

    def check(self, now: int | None = None) -> None:
        """Check that token, delegation, policy and list of revocations are the operator's and fit together.

        Raises:
            SignatureError: One of them does not hold, or has expired.
            MalformedError: One of them is not what it should be.
        """
        token = identity.read_token(
            self.token, operator_key=self.operator_key, fleet=self.fleet, device=self.device, now=now
        )
        if bytes(SigningKey(self.token_secret).verify_key) != token.token_key:
            raise SignatureError("the bundle's secret does not belong to its token", cause="chain")
        identity.verify_delegation(self.delegation, operator_key=self.operator_key, fleet=self.fleet, now=now)
        verify_policy(self.policy, operator_key=self.operator_key, fleet=self.fleet)
        if self.revocations:
            verify_head(self.revocations, operator_key=self.operator_key, fleet=self.fleet)


def encode(provisioning: Provisioning, *, compact: bool = False) -> str:
    """Return the bundle as one line of text.

    Args:
        provisioning: What is in it.
        compact: Whether to deflate it (RFC 1950): certificates as PEM text shrink to what they are, so that the line
            fits a QR code.
    """
    data = write(provisioning)
    packed = zlib.compress(data, 9) if compact else data
    return (COMPACT if compact else PREFIX) + base64.urlsafe_b64encode(packed).decode()


def decode(text: str) -> Provisioning:
    """Read a bundle in either form.

    Raises:
        MalformedError: The text is not a provisioning bundle, or a part of it is lost.
    """
    line = text.strip()
    prefix = COMPACT if line.startswith(COMPACT) else PREFIX
    if not line.startswith(prefix) or len(line) > _MAX_TEXT:
        raise MalformedError(f"not a provisioning bundle: it does not begin with {PREFIX!r}")
    try:
        data = base64.b64decode(line[len(prefix) :].encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise MalformedError(f"the provisioning bundle is damaged: {error}") from error
    if prefix == COMPACT:
        data = _inflate(data)
    return read(Provisioning, data)


def _inflate(data: bytes) -> bytes:
    """Undo the compact form; a few bytes that would become very many are refused."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, _MAX_TEXT)
    except zlib.error as error:
        raise MalformedError(f"the provisioning bundle is damaged: {error}") from error
    if not stream.eof or stream.unused_data:
        raise MalformedError("the provisioning bundle is cut off, too large, or has something behind its end")
    return found


prepare(globals())
