"""Tells devices that are not let in why not.

Only who shows a token of the operator's, and a STATE that the endorsed key has signed, is answered: strangers cost
nothing. A device is answered once a minute, and all of them together 120 times a minute, so that nobody can make
the aggregator talk.
"""

from __future__ import annotations

from covey_aggregator.home import ServerHome
from covey_protocol import envelope, topics
from covey_protocol.effects import Deliver
from covey_protocol.envelope import Context
from covey_protocol.errors import PeerError
from covey_protocol.messages import State
from covey_protocol.payload import read
from covey_protocol.refused import FOR_GOOD, write_refused
from covey_protocol.roster import Trust

SECONDS = 60.0
ANSWERS = 120


class Doorkeeper:
    """Answers refused STATE messages.

    Args:
        home: Whose key signs.
        trust: The fleet's anchors.
    """

    def __init__(self, home: ServerHome, trust: Trust) -> None:
        self._home, self._trust = home, trust
        self._answered: dict[str, float] = {}  # of the last minute: never more than ANSWERS of them

    def turn_away(self, device: str, state: bytes, error: PeerError, now: float) -> list[Deliver]:
        """Return the answer to a STATE message that was refused, if there is to be one.

        Args:
            device: The name in the topic.
            state: The message.
            error: Why it was refused.
            now: Monotonic seconds.
        """
        if error.cause not in FOR_GOOD:
            return []
        self._answered = {name: at for name, at in self._answered.items() if at > now - SECONDS}
        if device in self._answered or len(self._answered) >= ANSWERS or not self._is_known(device, state):
            return []
        self._answered[device] = now
        data = write_refused(state, error, fleet=self._home.fleet, device=device, key=self._home.key)
        return [Deliver(device, topics.REFUSED, data)]

    def _is_known(self, device: str, data: bytes) -> bool:
        """Whether the operator has invited this device, and the key that its token endorses has signed the message."""
        try:
            message = envelope.parse(data)
            state = read(State, message.payload)
            who = self._trust.identify(state.chain, device)
            envelope.verify(message, Context(fleet=self._trust.fleet, kind=topics.STATE, sender=device), who.key)
        except PeerError:
            return False
        return state.status == "online"
