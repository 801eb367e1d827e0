"""What the aggregator passes on of the operator's words and of the time, and when it may no longer command.

Delegation and policy are retained messages that devices keep the newest of; the time is signed anew now and then, and
whenever a round opens, for devices that have no clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from covey_aggregator.home import ServerHome
from covey_protocol import topics
from covey_protocol.effects import Note, Publish
from covey_protocol.signed_time import write_time

TIME_SECONDS = 600
WARN_SECONDS = 30 * 86400
_WARN_AGAIN = 86400
EXPIRED, EXPIRES = "delegation-expired", "delegation-expires"
LOUD = (EXPIRED, EXPIRES)
"""Notes that are worth a warning in the log."""


class AuthorityDesk:
    """The service's side.

    Args:
        home: Whose words and key.
        wall_clock: Unix seconds.
    """

    def __init__(self, home: ServerHome, wall_clock: Callable[[], float] = time.time) -> None:
        self._home, self._wall = home, wall_clock
        self._not_after = home.word.not_after if home.word else 0
        self._said = False
        self._time_due = self._warn_due = 0.0
        self._refused = False

    def poll(self) -> list[Publish | Note]:
        """Return what devices have to hear and what the operator should read."""
        effects: list[Publish | Note] = []
        now = self._wall()
        if not self._said:
            self._said = True
            effects += [
                Publish(topics.DELEGATION, "", self._home.delegation, retain=True),
                Publish(topics.POLICY, "", self._home.signed_policy, retain=True),
            ]
        if now >= self._time_due or now < self._time_due - TIME_SECONDS:  # or the clock was set back
            effects.append(self.time())
        left = self._not_after - now
        if self._not_after and 0 <= left < WARN_SECONDS and now >= self._warn_due:
            self._warn_due = now + _WARN_AGAIN
            text = f"the operator's delegation of this aggregator expires in {int(left // 86400)} days: renew it"
            effects.append(Note(EXPIRES, text))
        return effects

    def again(self) -> None:
        """Say all of it again: a broker that was started anew may have lost it."""
        self._said, self._time_due = False, 0.0

    def time(self) -> Publish:
        """Return the time, signed."""
        now = self._wall()
        self._time_due = now + TIME_SECONDS
        return Publish(topics.TIME, "", write_time(int(now), fleet=self._home.fleet, key=self._home.key), retain=True)

    def expired(self) -> tuple[bool, list[Note]]:
        """Say whether no round may be opened any more, with a note for the first time."""
        if not self._not_after or self._wall() <= self._not_after:
            self._refused = False
            return False, []
        first, self._refused = not self._refused, True
        text = (
            f"no round is opened: the operator's delegation of this aggregator expired at Unix time "
            f"{self._not_after}, and devices follow it no longer; renew it"
        )
        return True, [Note(EXPIRED, text)] if first else []
