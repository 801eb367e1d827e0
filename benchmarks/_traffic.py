"""What one device sends and receives in a round, in bytes on the wire, from the real state machines' real messages.

Counted are whole MQTT 5 PUBLISH packets: header, topic, packet identifier, properties and payload; blobs in pieces as
agent and aggregator cut them. TLS and TCP are not counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tests.protocol.rig import FLEET, SERVER, TASK

from benchmarks._group import Group
from covey_protocol import envelope, model, topics
from covey_protocol.chunks import PIECE_BYTES, PIECE_OVERHEAD, split
from covey_protocol.digest import content_digest
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Blob, Close, Delta
from covey_protocol.payload import write

_PUBLIC = {topics.ROSTER, topics.SURVIVORS, topics.ATTEST, topics.ACCEPT, topics.UNMASK}
VECTOR, DELTA = "vector", "delta"


@dataclass
class Traffic:
    """Bytes of one device's round by kind of message; ``vector`` and ``delta`` are the two blobs' own bytes."""

    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)

    @property
    def control(self) -> int:
        """Everything but the two blobs themselves; what their pieces are wrapped in counts here."""
        return self.up.total() + self.down.total() - self.up[VECTOR] - self.down[DELTA]


def packet(topic: str, payload: bytes) -> int:
    """Return the size of an MQTT 5 PUBLISH at QoS 1 without properties."""
    remaining = 2 + len(topic.encode()) + 2 + 1 + len(payload)
    return 1 + max(1, -(-remaining.bit_length() // 7)) + remaining


def measure(n: int, dimension: int, sketch: int = 0) -> Traffic:
    """Carry one round of ``n`` members through and add up what the middle one sent and received."""
    group = Group(n, dimension, sketch)
    group.sum_up()
    name = group.names[n // 2]
    traffic = Traffic()
    for way, who, kind, data in group.wire:
        if who != name:
            continue
        if way == "vector":
            _pieces(traffic.up, VECTOR, topics.up(FLEET, name, kind, content_digest(data).hex()[:16]), data)
        elif way == "up":
            traffic.up[kind] += packet(topics.up(FLEET, name, kind), data)
        else:
            pub = kind in _PUBLIC
            topic = topics.pub(FLEET, kind, group.grouping.group) if pub else topics.down(FLEET, name, kind)
            traffic.down[kind] += packet(topic, data)
    traffic.down[topics.OPEN] = packet(topics.pub(FLEET, topics.OPEN, TASK), group.open_data)
    _close(traffic, group, dimension)
    return traffic


def _close(traffic: Traffic, group: Group, dimension: int) -> None:
    """Add the round's end: the signed CLOSE, and the delta to a new model."""
    step = np.random.default_rng(1).standard_normal(dimension, dtype=np.float32)
    blob = model.make_delta(step)
    name = content_digest(blob)
    close = Close(
        model=Blob(digest=bytes(32), bytes=4 * dimension),
        delta=Delta(base=bytes(32), blob=Blob(digest=name, bytes=len(blob))),
        groups_closed=10,
        groups_aborted=0,
        participants=100,
        accuracy=0.5,
    )
    message = envelope.sign(write(close), group.opened.context(FLEET, topics.CLOSE, AGGREGATOR), SERVER)
    traffic.down[topics.CLOSE] = packet(topics.pub(FLEET, topics.CLOSE, TASK), message)
    _pieces(traffic.down, DELTA, topics.pub(FLEET, topics.BLOB, name.hex()), blob)


def _pieces(count: Counter[str], what: str, topic: str, blob: bytes) -> None:
    for piece in split(blob, PIECE_BYTES - PIECE_OVERHEAD):
        count[what] += len(piece.data)
        count[f"{what} wrapping"] += packet(topic, piece.encode()) - len(piece.data)
