"""Time on a device without a clock: the aggregator's signed word for it, and a floor that never goes back.

A device that was off for a month starts in the past. It only has to know whether something has expired, so it goes
by the latest of what it can be sure has passed: the day on which this version was made, the day of its provisioning
bundle, and the latest time that its aggregator has signed; and by the seconds that its monotonic clock has counted
since. The wall clock counts where the system says that it is synchronised; it never moves the floor.

A lying aggregator can withhold the time, so that a device without a clock sees nothing expire, or sign a time to come,
so that things expire early. The latter is bounded: a time counts no further than one second behind the expiry of the
signer's own delegation. So the worst that its lie does is to end its own delegation, and the operator's next one finds
the devices willing again.
"""

from __future__ import annotations

from collections.abc import Mapping

from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.effects import Remember
from covey_protocol.envelope import Context
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import TimeSignal
from covey_protocol.payload import read, write

RELEASED = 1_767_225_600
"""1 January 2026: no device that runs this version lives before it."""

STORE_SECONDS = 600
"""A floor is stored when it has moved by so much, to spare the card: a power cut costs no more."""

_FLOOR = "time"


def write_time(at: int, *, fleet: str, key: SigningKey) -> bytes:
    """Sign a TIME message as the aggregator."""
    return envelope.sign(write(TimeSignal(at=at)), _context(fleet), key)


def read_time(data: bytes, *, fleet: str, aggregator_key: bytes) -> int:
    """Return what a TIME message says, in Unix seconds.

    Raises:
        PeerError: It is malformed, or not signed by the aggregator.
    """
    return read(TimeSignal, envelope.open_signed(data, _context(fleet), aggregator_key)).at


class DeviceClock:
    """The time that one device goes by.

    Args:
        earliest: What is certain to have passed: the time of the provisioning bundle, 0 if it names none.
        rows: What was stored under each key.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, *, earliest: int = 0, rows: Mapping[str, bytes] | None = None, monotonic: float = 0.0) -> None:
        self._stored = int((rows or {}).get(_FLOOR, b"0"))
        self._base = max(RELEASED, earliest, self._stored)
        self._since = monotonic

    def hear(self, at: int, not_after: int, monotonic: float) -> list[Remember]:
        """Take a time that the aggregator has signed; one that has passed already changes nothing.

        Args:
            at: Unix seconds.
            not_after: When the aggregator's delegation expires, 0 for never.
            monotonic: Seconds of the monotonic clock.

        Returns:
            What has to be stored: what was signed, and not what was only counted since.
        """
        heard = min(at, not_after + 1) if not_after else at
        if heard > self.now(monotonic):
            self._base, self._since = heard, monotonic
        if heard < self._stored + STORE_SECONDS:
            return []
        self._stored = heard
        return [Remember(_FLOOR, str(heard).encode())]

    def now(self, monotonic: float, synchronised: int | None = None) -> int:
        """Return the time to go by, in Unix seconds.

        Args:
            monotonic: Seconds of the monotonic clock.
            synchronised: The wall clock, where the system says that it is right.
        """
        return max(self._base + max(0, int(monotonic - self._since)), synchronised or 0)


def _context(fleet: str) -> Context:
    return Context(fleet=fleet, kind=topics.TIME, sender=AGGREGATOR)
