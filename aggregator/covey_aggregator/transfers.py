"""Blobs in pieces: masked vectors on their way in, models and bundles on their way out to those who ask."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

from nacl.signing import SigningKey

from covey_protocol import topics
from covey_protocol.chunks import WINDOW_BYTES, Piece, Reassembler, lacking, split, window_count
from covey_protocol.effects import Deliver, Expect
from covey_protocol.envelope import Context, sign
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import MAX_MODEL_BYTES, Have, Want
from covey_protocol.payload import write

STALL_SECONDS = 3.0
STALL_MAX = 60.0
QUEUE_SECONDS = 30.0  # how long a transfer may stand still while others move: its pieces may be queued behind theirs


@dataclass
class _Incoming:
    digest: bytes
    total: int
    moved: float
    patience: float = STALL_SECONDS
    asked: float = float("-inf")
    held: bool = False

    def __post_init__(self) -> None:
        """Expect the blob."""
        self.begin_again()

    def begin_again(self) -> None:
        """Forget what has come."""
        self.held = False
        self.reassembler = Reassembler(min(self.total, MAX_MODEL_BYTES))
        self.reassembler.expect(self.digest, self.total)


class Transfers:
    """One reassembly a device; nothing is taken that was not announced by a signed message.

    All together take a bounded number of bytes. A transfer that finds no room is asked for again, as one that stalls
    is; one that has stood still for long gives its room up.

    Args:
        fleet, key: For the messages that ask for missing pieces.
        budget: Bytes that may be held for all devices; one transfer is taken however large it is.
    """

    def __init__(self, fleet: str, key: SigningKey, budget: int = 1 << 30) -> None:
        self._fleet, self._key, self._budget = fleet, key, budget
        self._by_device: dict[str, _Incoming] = {}
        self._moved = float("-inf")  # when a piece came last, whoever sent it

    def expect(self, effect: Expect, now: float) -> None:
        """Announce a device's blob; an earlier one that did not come is forgotten."""
        self._by_device[effect.device] = _Incoming(effect.digest, effect.bytes, now)

    def add(self, device: str, piece: Piece, now: float) -> bytes | None:
        """Take a piece; return the blob when it is whole; errors as ``Reassembler.add``."""
        incoming = self._by_device.get(device)
        if incoming is None:
            Reassembler(0).add(piece)  # refuses: nobody announced it
            return None
        if not incoming.held:
            self._make_room(incoming, now)
        blob = incoming.reassembler.add(piece)
        incoming.held = True  # from its first piece on, all of it is reserved
        self._moved = now
        if incoming.reassembler.news:
            incoming.moved, incoming.patience = now, STALL_SECONDS
        if blob is not None and piece.digest == incoming.digest:
            self._by_device.pop(device)
        return blob

    def _make_room(self, wanted: _Incoming, now: float) -> None:
        """Let transfers that stand still give way to one that begins.

        Raises:
            RefusedError: There is no room; its pieces will be asked for.
        """
        held = sum(each.total for each in self._by_device.values() if each.held)
        for each in sorted((each for each in self._by_device.values() if each.held), key=lambda each: each.moved):
            if held + wanted.total <= self._budget or now - each.moved < QUEUE_SECONDS:
                break
            each.begin_again()
            held -= each.total
        if held and held + wanted.total > self._budget:
            raise RefusedError(f"{held} bytes of vectors are on their way already", cause="budget")

    def stalled(self, now: float) -> list[Deliver]:
        """Tell devices whose transfers do not move which pieces are here, ever more rarely.

        While pieces of others arrive, those of this one may stand in the broker's queue behind them. To ask for them
        then would bring them twice and make the queue longer, at the worst moment.
        """
        asks = []
        flowing = now - self._moved < STALL_SECONDS
        for device, incoming in self._by_device.items():
            patience = max(incoming.patience, QUEUE_SECONDS if flowing else 0.0)
            if now - max(incoming.moved, incoming.asked) < patience:
                continue
            incoming.asked, incoming.patience = now, min(2 * incoming.patience, STALL_MAX)
            have = Have(
                digest=incoming.digest,
                have=incoming.reassembler.have(incoming.digest),
                size=incoming.reassembler.size(incoming.digest),
            )
            context = Context(fleet=self._fleet, kind=topics.HAVE, sender=AGGREGATOR, recipient=device)
            asks.append(Deliver(device, topics.HAVE, sign(write(have), context, self._key)))
        return asks

    def clear(self) -> None:
        """Forget everything: the round is over."""
        self._by_device.clear()


AGAIN_SECONDS = 2.0
BURST_BYTES = 32 * WINDOW_BYTES
BYTES_A_SECOND = 4 * WINDOW_BYTES
_ENCODED_BLOBS = 4
_DEVICES_MAX = 10_000


@dataclass
class _Asker:
    last: Want | None = None
    at: float = 0.0
    allowance: float = BURST_BYTES


class Downloads:
    """Answers WANT messages: a window of the missing pieces each, and no more than a device may ask for.

    The device counts what it has asked for among what it has, so an answer needs no memory of earlier ones; only the
    same question again, as QoS 1 may bring it, is recognised.
    """

    def __init__(self) -> None:
        self._askers: OrderedDict[str, _Asker] = OrderedDict()
        self._encoded: OrderedDict[tuple[bytes, int], list[bytes]] = OrderedDict()

    def answer(self, device: str, want: Want, blob: bytes, size: int, now: float) -> list[bytes]:
        """Return the encoded pieces to send.

        Args:
            device: Who asks.
            want: What it asked.
            blob: The blob it asked for.
            size: Bytes a piece.
            now: Monotonic seconds.

        Raises:
            StaleError: It asks the same again, or for more than its share.
            MalformedError: The bitmap counts in impossible pieces.
        """
        asker = self._askers.setdefault(device, _Asker(at=now))
        self._askers.move_to_end(device)
        if len(self._askers) > _DEVICES_MAX:
            self._askers.popitem(last=False)
        if want == asker.last and now - asker.at < AGAIN_SECONDS:
            raise StaleError(f"{device!r} asks again too soon", cause="too-soon")
        indices = list(itertools.islice(lacking(len(blob), size, want.have, want.size), window_count(size)))
        allowance = min(BURST_BYTES, asker.allowance + (now - asker.at) * BYTES_A_SECOND)
        weight = len(indices) * min(size, len(blob))
        if weight > allowance:
            raise StaleError(f"{device!r} asks for more than its share", cause="too-soon")
        asker.last, asker.at, asker.allowance = want, now, allowance - weight
        pieces = self._pieces(want.digest, blob, size)
        return [pieces[index] for index in indices]

    def _pieces(self, digest: bytes, blob: bytes, size: int) -> list[bytes]:
        """Return all pieces, encoded once for all who ask."""
        key = (digest, size)
        if key not in self._encoded:
            self._encoded[key] = [piece.encode() for piece in split(blob, size)]
            while len(self._encoded) > _ENCODED_BLOBS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]
