"""What a server home asks of an operator who is elsewhere, and the answers: one line of text each, to be carried about.

A request is signed by the aggregator, so that nothing is slipped in on its way; a reply needs no signature of its own,
because all that is in it is signed by the operator. Token secrets are made in the operator's home and stay there: a
server cannot become a device. A request for tokens holds the TLS keys that go into the bundles.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from nacl.signing import SigningKey

from covey_aggregator.files import PRIVATE, make_private_folder, replace
from covey_aggregator.succession_file import BYTES_MAX as SUCCESSION_BYTES_MAX
from covey_protocol import envelope
from covey_protocol.digest import content_digest
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, CoveyError, MalformedError
from covey_protocol.identity import AGGREGATOR, Time
from covey_protocol.payload import Count, Digest, Key, Name, Payload, prepare, read, write
from covey_protocol.provisioning import Broker, Certificate
from covey_protocol.revocation import LIST_BYTES_MAX, Revocation

REQUEST, REPLY = "covey-request-1:", "covey-reply-1:"
_BYTES_MAX = 16 << 20
_KIND = "request"
_DEVICES_MAX = 4096
T = TypeVar("T", bound=Payload)
Body = Annotated[bytes, msgspec.Meta(max_length=LIST_BYTES_MAX)]


class WantsDelegation(Payload, frozen=True, kw_only=True, tag_field="wants", tag="delegation"):
    """The aggregator's key is to be signed for; versions are those that the server has, 0 for none."""

    delegation: Count
    policy: Count


class Wanted(Payload, frozen=True, kw_only=True):
    """A device that is to be invited, and how it reaches the broker."""

    device: Name
    broker: Broker


class WantsTokens(Payload, frozen=True, kw_only=True, tag_field="wants", tag="tokens"):
    """Devices are to be invited."""

    profile: Name
    seconds: Annotated[int, msgspec.Meta(ge=0, le=100 * 366 * 86400)]
    devices: Annotated[list[Wanted], msgspec.Meta(min_length=1, max_length=_DEVICES_MAX)]


class WantsRevocation(Payload, frozen=True, kw_only=True, tag_field="wants", tag="revocation"):
    """Devices are to be shut out; ``head`` and ``body`` are the list that the server has, if there is one."""

    entries: Annotated[list[Revocation], msgspec.Meta(min_length=1, max_length=_DEVICES_MAX)]
    head: Certificate = b""
    body: Body = b""


class Request(Payload, frozen=True, kw_only=True):
    """What one server home asks."""

    fleet: Name
    operator_key: Key
    aggregator_key: Key
    made: Time
    wants: WantsDelegation | WantsTokens | WantsRevocation


class Reply(Payload, frozen=True, kw_only=True):
    """What the operator has signed; empty where nothing was asked.

    Attributes:
        fleet, operator_key: Whose word it is.
        aggregator_key: For which server, or empty for all of the fleet's.
        request: Digest of the request that it answers, or empty.
        delegation, policy, tokens: Each signed.
        head, body: The revocation list.
        succession: How the operator's key came to be this one, for a server that goes by an earlier one.
    """

    fleet: Name
    operator_key: Key
    aggregator_key: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    request: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    delegation: Certificate = b""
    policy: Certificate = b""
    tokens: Annotated[list[Certificate], msgspec.Meta(max_length=_DEVICES_MAX)] = msgspec.field(default_factory=list)
    head: Certificate = b""
    body: Body = b""
    succession: Annotated[bytes, msgspec.Meta(max_length=SUCCESSION_BYTES_MAX)] = b""


def request_text(request: Request, key: SigningKey) -> str:
    """Return a request as one line, signed by the aggregator."""
    return _line(REQUEST, envelope.sign(write(request), _context(request.fleet), key))


def read_request(path: Path) -> tuple[Request, Digest]:
    """Read a request and check that the aggregator that it names has signed it.

    Returns:
        The request, and the digest by which it goes.

    Raises:
        ConfigError: It is none, or was changed on its way.
    """
    data = _bytes(path, REQUEST, "request")
    try:
        message = envelope.parse(data, max_bytes=_BYTES_MAX)
        request = read(Request, message.payload, max_bytes=_BYTES_MAX)
        envelope.verify(message, _context(request.fleet), request.aggregator_key)
    except CoveyError as error:
        raise ConfigError(f"{path}: not a request of an aggregator: {error}") from error
    return request, content_digest(message.payload)


def request_digest(request: Request) -> Digest:
    """Return the digest by which a request goes; over the payload, because signatures may differ."""
    return content_digest(write(request))


def reply_text(reply: Reply) -> str:
    """Return a reply as one line."""
    return _line(REPLY, write(reply))


def read_reply(path: Path) -> Reply:
    """Read a reply; what is in it has yet to be checked.

    Raises:
        ConfigError: It is none.
    """
    try:
        return read(Reply, _bytes(path, REPLY, "reply"), max_bytes=_BYTES_MAX)
    except MalformedError as error:
        raise ConfigError(f"{path}: not a reply of an operator: {error}") from error


def leave_request(folder: Path, name: str, request: Request, key: SigningKey) -> Path:
    """Write a request for the operator into a folder, for its owner's eyes."""
    make_private_folder(folder)
    path = folder / f"{name}.request"
    replace(path, request_text(request, key).encode(), PRIVATE)
    return path


def _line(prefix: str, data: bytes) -> str:
    return prefix + base64.urlsafe_b64encode(data).decode() + "\n"


def _bytes(path: Path, prefix: str, what: str) -> bytes:
    limit = len(prefix) + 2 + (_BYTES_MAX + 2) // 3 * 4
    try:
        with path.open("rb") as file:
            line = file.read(limit + 1).strip()
        if not line.startswith(prefix.encode()) or len(line) > limit:
            raise ConfigError(f"{path}: not a {what}: it does not begin with {prefix!r}, or is too long")
        return base64.b64decode(line[len(prefix) :], altchars=b"-_", validate=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except binascii.Error as error:
        raise ConfigError(f"{path}: the {what} is damaged: {error}") from error


def _context(fleet: str) -> Context:
    return Context(fleet=fleet, kind=_KIND, sender=AGGREGATOR)


prepare(globals())
