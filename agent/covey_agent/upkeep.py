"""What a connection needs besides messages: to say that the device is there, to let a kept session speak first, and to
repeat what a forgetful broker may have lost.
"""

from __future__ import annotations

from collections.abc import Callable

from covey_agent.courier import Courier
from covey_protocol import topics
from covey_protocol.errors import CoveyError, LocalError

HUSH = 0.5  # seconds of silence after which what a session had kept for this device has come
HUSH_MAX = 10.0


class Upkeep:
    """One device's connection, as the agent's thread sees it.

    Args:
        courier: Sends what is to be said.
        under_way: Returns the tasks in whose rounds the device is.
        refuse: Counts and logs what goes wrong, and where.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        courier: Courier,
        *,
        under_way: Callable[[], set[str]],
        refuse: Callable[[Exception, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._courier, self._under_way, self._refuse, self._clock = courier, under_way, refuse, clock
        self._announce_due = False
        self._hushed: tuple[float, float] | None = None  # nothing is joined until the first, at most until the second
        self._repeat: tuple[float, set[str]] | None = None  # when, and of which tasks, what a broker may have forgotten

    @property
    def hushed(self) -> bool:
        """Whether a kept session may still be speaking of what was meanwhile: those rounds may be over."""
        return self._hushed is not None

    def connected(self, session_present: bool, holds: bool) -> None:
        """Hear that a connection stands.

        Args:
            session_present: Whether the broker has kept what was said meanwhile.
            holds: Whether something keeps the device from taking part.
        """
        now = self._clock()
        self._hushed = (now + HUSH, now + HUSH_MAX) if session_present else None
        self._announce_due = True
        self.announce(holds)
        under_way = self._under_way()
        if under_way and not session_present:
            self._repeat = (now + HUSH, under_way)  # by then a newer round has shown itself

    def announce(self, holds: bool) -> None:
        """Say that the device is there, as soon as there is room for it: the Last Will may have said otherwise."""
        if self._announce_due:
            try:
                self._courier.announce("online", holds)
            except LocalError as error:
                self._refuse(error, topics.STATE)
            else:
                self._announce_due = False

    def catch_up(self, spoken: bool) -> bool:
        """Repeat what is due; say whether a kept session has just come to its end.

        Args:
            spoken: Whether a message has just come.
        """
        now = self._clock()
        if self._repeat is not None and now >= self._repeat[0]:
            tasks, self._repeat = self._repeat[1], None
            try:
                self._courier.say_again(tasks & self._under_way())
            except (CoveyError, ValueError, OSError) as error:
                self._refuse(error, "repetition")
        if self._hushed is None:
            return False
        until, latest = self._hushed
        if now >= latest or (now >= until and not spoken):
            self._hushed = None
            return True
        if spoken:
            self._hushed = (min(now + HUSH, latest), latest)
        return False

    def due(self) -> list[float]:
        """Return the times at which something is to be done."""
        return [entry[0] for entry in (self._repeat, self._hushed) if entry is not None]
