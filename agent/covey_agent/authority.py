"""Whom this device follows, by which rules, and until when: the operator's newer words and the signed time on their way
in.

A message that does not verify may be the first one of an aggregator's new key, come before the word that names this
key: retained messages come in any order. So the newest of each topic is set aside, and looked at again when a newer
delegation is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from covey_agent.courier import Courier
from covey_agent.home import StoredIdentity
from covey_protocol import topics
from covey_protocol.errors import PeerError, SignatureError
from covey_protocol.identity import PinnedKeys
from covey_protocol.policy import Policy
from covey_protocol.revocation import Revocations
from covey_protocol.roster import Trust
from covey_protocol.signed_time import DeviceClock, read_time
from covey_protocol.warrants import Warrants

log = logging.getLogger("covey.agent")

KINDS = (topics.DELEGATION, topics.POLICY, topics.TIME)
_ASIDE_MAX, _ASIDE_BYTES = 16, 64 << 10
_LOOK_SECONDS = 60.0


class Authority:
    """One device's view of operator and aggregator.

    Args:
        stored: What the device was enrolled with.
        marks: What was stored since.
        pins, revocations: For the trust that all checks share.
        clock: Monotonic seconds.
        wall_clock: Unix seconds where the system vouches for them, else None.

    Attributes:
        trust: That trust; kept at the newest words.

    Raises:
        LocalError: A stored word is damaged.
    """

    def __init__(
        self,
        stored: StoredIdentity,
        marks: dict[str, bytes],
        *,
        pins: PinnedKeys,
        revocations: Revocations,
        clock: Callable[[], float],
        wall_clock: Callable[[], int | None],
    ) -> None:
        self._clock, self._wall = clock, wall_clock
        self.trust = Trust(stored.fleet, stored.operator_key, b"", Policy(), pins, revocations)
        self._warrants = Warrants(self.trust, stored.delegation, stored.policy, marks)
        self._time = DeviceClock(earliest=stored.made, rows=marks, monotonic=clock())
        self._aside: dict[str, bytes] = {}
        self._look_at = float("-inf")
        self._ahead: float | None = None  # how far the wall clock is ahead of the monotonic one, where it counts

    def now(self) -> int:
        """Return the time that this device goes by, in Unix seconds."""
        monotonic = self._clock()
        if monotonic >= self._look_at:  # at the system's clock: cheap, and yet this is asked for every message
            self._look_at = monotonic + _LOOK_SECONDS
            wall = self._wall()
            self._ahead = None if wall is None else wall - monotonic
        return self._time.now(monotonic, None if self._ahead is None else int(monotonic + self._ahead))

    def take(self, kind: str, data: bytes, courier: Courier) -> list[tuple[str, bytes]]:
        """Take a DELEGATION, POLICY or TIME message, durably.

        Returns:
            Topics and payloads of messages that were set aside and may hold now.

        Raises:
            PeerError: It does not hold, or is an old one.
            LocalError: There is no room to store it; it counts all the same.
        """
        if kind == topics.TIME:
            at = read_time(data, fleet=self.trust.fleet, aggregator_key=self.trust.aggregator_key)
            courier.carry(self._time.hear(at, self._warrants.delegation.not_after, self._clock()))
            return []
        if kind == topics.POLICY:
            courier.carry(self._warrants.take_policy(data))
            return []
        known = self._warrants.delegation
        courier.carry(self._warrants.take_delegation(data))
        if self._warrants.delegation is known:
            return []
        log.info("the operator's delegation %d is followed from now on", self._warrants.delegation.version)
        aside, self._aside = list(self._aside.items()), {}
        return aside

    def set_aside(self, topic: str, payload: bytes, error: Exception) -> None:
        """Keep a message that would hold under a newer delegation, the newest of its topic."""
        if not isinstance(error, SignatureError) or len(payload) > _ASIDE_BYTES:
            return
        self._aside.pop(topic, None)
        self._aside[topic] = payload
        while len(self._aside) > _ASIDE_MAX:
            del self._aside[next(iter(self._aside))]

    def check(self) -> None:
        """Refuse to follow an aggregator whose delegation has run out.

        Raises:
            RefusedError: It has.
        """
        self._warrants.check(self.now())

    @property
    def complaint(self) -> str:
        """Say why no aggregator is followed at the moment, or nothing."""
        try:
            self.check()
        except PeerError as error:
            return str(error)
        return ""

    def snapshot(self) -> dict[str, Any]:
        """Return what ``covey-agent status`` shows of it."""
        delegation = self._warrants.delegation
        return {
            "version": delegation.version,
            "expires": delegation.not_after or None,
            "expired": self._warrants.expired(self.now()),
            "policy": self.trust.policy.version,
        }
