"""Where each message is published.

::

    covey/v1/{fleet}/dev/{device}/up/{kind}[/{transfer}]   written by the device alone
    covey/v1/{fleet}/dev/{device}/down/{kind}              read by the device, written by the aggregator
    covey/v1/{fleet}/pub/{kind}[/{id}]                     read by everybody, written by the aggregator

The depth is fixed and never above seven slashes (AWS IoT's limit). A name is 1 to 63 of ``a-z 0-9 -`` and starts with
a letter or digit, so no name can hold a wildcard or a slash.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from covey_protocol.errors import ConfigError, MalformedError

ROOT = "covey/v1"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TOPIC = re.compile(
    rf"{ROOT}/(?P<fleet>[a-z0-9-]+)/"
    r"(?:dev/(?P<device>[a-z0-9-]+)/(?P<way>up|down)/(?P<kind>[a-z-]+)(?:/(?P<transfer>[a-z0-9]+))?"
    r"|pub/(?P<pub>[a-z-]+)(?:/(?P<id>[a-z0-9-]+))?)"
)

RESERVED = frozenset({"aggregator", "operator", "alerts"})
"""Names that sign, or log in to the broker, as something else than a device."""

# Kinds. One name for one thing in topics, signed contexts, documents and logs.
STATE = "state"
COMMITMENT = "commitment"
OPENING = "opening"
JOIN = "join"
SHARES = "shares"
MASKED = "masked"
SURVIVORS = "survivors"
DECLINE = "decline"
COMPLAINT = "complaint"
ANSWER = "answer"
ATTEST = "attest"
ACCEPT = "accept"
UNMASK = "unmask"
WANT = "want"
RENEW = "renew"
DEALT = "dealt"
HAVE = "have"
RECALL = "recall"
REFUSED = "refused"
CERTIFICATE = "certificate"
BLOB = "blob"
EPOCH = "epoch"
COMMITMENTS = "commitments"
GROUPS = "groups"
OPEN = "open"
ROSTER = "roster"
ABORT = "abort"
CLOSE = "close"
REVOCATIONS = "revocations"
ALERT = "alert"
DELEGATION = "delegation"
POLICY = "policy"
TIME = "time"
SUCCESSION = "succession"

UP_KINDS = frozenset(
    {
        *(STATE, COMMITMENT, OPENING, JOIN, SHARES, COMPLAINT, ANSWER, MASKED, SURVIVORS, ATTEST, ACCEPT),
        *(UNMASK, DECLINE, WANT, RENEW),
    }
)
DOWN_KINDS = frozenset({DEALT, COMPLAINT, HAVE, RECALL, REFUSED, CERTIFICATE, BLOB})
PUB_KINDS = frozenset(
    {
        *(EPOCH, COMMITMENTS, GROUPS, OPEN, ROSTER, SURVIVORS, ATTEST, ACCEPT, UNMASK, ABORT, CLOSE, BLOB),
        *(REVOCATIONS, DELEGATION, POLICY, TIME, SUCCESSION),
        ALERT,
    }
)


class Topic(NamedTuple):
    """A parsed topic; ``device`` is empty on ``pub``, ``id`` is the transfer on ``up``."""

    fleet: str
    way: Literal["up", "down", "pub"]
    device: str
    kind: str
    id: str


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can stand in a topic.

    Raises:
        ConfigError: It cannot; the message says what ``what`` may look like.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r}: use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit")
    return name


def check_device(name: str) -> str:
    """Return ``name`` if a device may have it; errors as ``check_name``."""
    if name in RESERVED:
        raise ConfigError(f"device {name!r}: this name is reserved")
    return check_name(name, "device")


def is_name(name: str) -> bool:
    """Say whether ``name`` can stand in a topic."""
    return _NAME.fullmatch(name) is not None


def up(fleet: str, device: str, kind: str, transfer: str = "") -> str:
    """Return the topic on which a device speaks."""
    return f"{ROOT}/{fleet}/dev/{device}/up/{kind}" + (f"/{transfer}" if transfer else "")


def down(fleet: str, device: str, kind: str) -> str:
    """Return the topic on which one device is spoken to."""
    return f"{ROOT}/{fleet}/dev/{device}/down/{kind}"


def pub(fleet: str, kind: str, id: str = "") -> str:
    """Return the topic on which everybody is spoken to."""
    return f"{ROOT}/{fleet}/pub/{kind}" + (f"/{id}" if id else "")


def parse(topic: str) -> Topic:
    """Take a topic apart.

    Raises:
        MalformedError: It is none of ours.
    """
    match = _TOPIC.fullmatch(topic)
    if match is None:
        raise MalformedError(f"topic {topic[:120]!r} is none of this protocol's", cause="topic")
    parts = match.groupdict()
    if parts["pub"]:
        kind, way, known = parts["pub"], "pub", PUB_KINDS
    else:
        kind, way = parts["kind"], parts["way"]
        known = UP_KINDS if way == "up" else DOWN_KINDS
    names = [name for name in (parts["fleet"], parts["device"]) if name is not None]
    if kind not in known or not all(is_name(name) for name in names):
        raise MalformedError(f"topic {topic[:120]!r} has an unknown kind or name", cause="topic")
    identifier = parts["id"] if way == "pub" else parts["transfer"]
    return Topic(parts["fleet"], way, parts["device"] or "", kind, identifier or "")  # type: ignore[arg-type]


def device_of(topic: str) -> str:
    """Return the device that a topic belongs to, or nobody where it is none of ours."""
    try:
        return parse(topic).device
    except MalformedError:
        return ""


def kind_of(topic: str) -> str:
    """Return a topic's kind for counting and logging, or ``?`` where it is none of ours."""
    try:
        return parse(topic).kind
    except MalformedError:
        return "?"
