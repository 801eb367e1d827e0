"""Masked vectors on their way in, each within the size its device has signed for."""

from __future__ import annotations

from nacl.signing import SigningKey

from covey_protocol import topics
from covey_protocol.chunks import Piece, Reassembler
from covey_protocol.effects import Deliver, Expect
from covey_protocol.envelope import Context, sign
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import MAX_MODEL_BYTES, Have
from covey_protocol.payload import write

STALL_SECONDS = 3.0


class Transfers:
    """One reassembly a device; nothing is taken that was not announced by a signed message.

    Args:
        fleet, key: For the messages that ask for missing pieces.
    """

    def __init__(self, fleet: str, key: SigningKey) -> None:
        self._fleet, self._key = fleet, key
        self._by_device: dict[str, tuple[bytes, Reassembler]] = {}
        self._moved: dict[str, float] = {}

    def expect(self, effect: Expect, now: float) -> None:
        """Announce a device's blob; an earlier one that did not come is forgotten."""
        reassembler = Reassembler(min(effect.bytes, MAX_MODEL_BYTES))
        reassembler.expect(effect.digest, effect.bytes)
        self._by_device[effect.device] = (effect.digest, reassembler)
        self._moved[effect.device] = now

    def add(self, device: str, piece: Piece, now: float) -> bytes | None:
        """Take a piece; return the blob when it is whole; errors as ``Reassembler.add``."""
        if device not in self._by_device:
            Reassembler(0).add(piece)  # refuses: nobody announced it
            return None
        digest, reassembler = self._by_device[device]
        blob = reassembler.add(piece)
        self._moved[device] = now
        if blob is not None and piece.digest == digest:
            self._by_device.pop(device)
            self._moved.pop(device)
        return blob

    def stalled(self, now: float) -> list[Deliver]:
        """Tell devices whose transfers do not move which pieces are here."""
        asks = []
        for device, moved in self._moved.items():
            if now - moved >= STALL_SECONDS:
                self._moved[device] = now
                digest, reassembler = self._by_device[device]
                context = Context(fleet=self._fleet, kind=topics.HAVE, sender=AGGREGATOR, recipient=device)
                data = sign(write(Have(digest=digest, have=reassembler.have(digest))), context, self._key)
                asks.append(Deliver(device, topics.HAVE, data))
        return asks

    def clear(self) -> None:
        """Forget everything: the round is over."""
        self._by_device.clear()
        self._moved.clear()
