"""What a state machine asks its shell to do.

The shell carries effects out in order, and makes every ``Remember`` durable before it sends anything that follows it:
whatever leaves a device has its high-water mark on disk (``docs/protocol.md``, rule 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Remember:
    """Store a value under a key, durably; an empty value removes the key."""

    key: str
    value: bytes


@dataclass(frozen=True)
class Send:
    """From a device, up: a message, or with ``transfer`` a blob that goes in pieces."""

    kind: str
    data: bytes = field(repr=False)
    transfer: bool = False


@dataclass(frozen=True)
class Publish:
    """From the aggregator, to everybody."""

    kind: str
    id: str
    data: bytes = field(repr=False)
    retain: bool = False


@dataclass(frozen=True)
class Deliver:
    """From the aggregator, to one device."""

    device: str
    kind: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Expect:
    """On the aggregator: a device has signed for a blob, so its pieces may be taken."""

    device: str
    digest: bytes
    bytes: int


@dataclass(frozen=True)
class Note:
    """Something worth a line in the log: a fixed cause to count, and words."""

    cause: str
    text: str


Effect = Remember | Send | Publish | Deliver | Expect | Note
