"""RECALL: telling a device whose disk was put back how far it had been, by its own signatures.

A device whose disk was restored from an old image, copied to another card or lost its database counts again from where
the image stood. Its states and joins are refused then, because their numbers were used before. The aggregator answers
with the newest of both that the device itself had signed. Nobody else can make such a message, so the device needs
trust nobody to jump ahead of it; and how many joins it has forgotten bounds how many sums it has forgotten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.envelope import Context, Envelope
from covey_protocol.errors import SignatureError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Join, Recall, State
from covey_protocol.payload import read, write


@dataclass(frozen=True)
class Recalled:
    """How far a device had been: its start counter, its join sequence, and the round of that join."""

    counter: int = 0
    sequence: int = 0
    task: str = ""
    round: int = 0
    attempt: int = 0


def write_recall(recall: Recall, *, fleet: str, device: str, key: SigningKey) -> bytes:
    """Sign a RECALL as the aggregator."""
    return envelope.sign(write(recall), _context(fleet, device), key)


def read_recall(data: bytes, *, fleet: str, device: str, own_keys: Sequence[bytes], aggregator_key: bytes) -> Recalled:
    """Read a RECALL as the device that it is for.

    Args:
        data: The message.
        fleet: Fleet name.
        device: This device.
        own_keys: The public keys that it has had, with one of which what it is reminded of must be signed.
        aggregator_key: The delegated key.

    Raises:
        PeerError: It is not from the aggregator to this device, or holds what this device has never signed.
        StaleError: It holds nothing.
    """
    recall = read(Recall, envelope.open_signed(data, _context(fleet, device), aggregator_key))
    if not recall.state and not recall.join:
        raise StaleError("a recall of nothing", cause="replayed")
    counter, sequence, place = 0, 0, ("", 0, 0)
    if recall.state:
        context = Context(fleet=fleet, kind=topics.STATE, sender=device)
        counter = read(State, _open(envelope.parse(recall.state), context, own_keys)).counter
    if recall.join:
        message = envelope.parse(recall.join)
        place = (message.task, message.round, message.attempt)
        context = Context(
            fleet=fleet,
            kind=topics.JOIN,
            sender=device,
            task=message.task,
            round=message.round,
            attempt=message.attempt,
            roster=recall.grouping,
        )
        sequence = read(Join, _open(message, context, own_keys)).sequence
    return Recalled(counter, sequence, *place)


def _open(message: Envelope, context: Context, own_keys: Sequence[bytes]) -> bytes:
    """Return the payload of a message that one of a device's keys has signed."""
    for key in own_keys[:-1]:
        with contextlib.suppress(SignatureError):
            return envelope.verify(message, context, key)
    return envelope.verify(message, context, own_keys[-1])


def _context(fleet: str, device: str) -> Context:
    return Context(fleet=fleet, kind=topics.RECALL, sender=AGGREGATOR, recipient=device)
