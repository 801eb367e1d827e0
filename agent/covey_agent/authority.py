"""Whom this device follows, by which rules, and until when: the operator's newer words and the signed time on their way
in.

A message that does not verify may be the first one of an aggregator's new key, come before the word that names this
key: retained messages come in any order. So the newest of each topic is set aside, and looked at again when a newer
delegation is taken.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from covey_agent.courier import Courier
from covey_agent.home import StoredIdentity
from covey_protocol import topics
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError, PeerError, SignatureError
from covey_protocol.identity import PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Blob
from covey_protocol.policy import Policy
from covey_protocol.roster import Trust
from covey_protocol.signed_time import DeviceClock, read_time
from covey_protocol.warrants import Warrants

log = logging.getLogger("covey.agent")

KINDS = (topics.SUCCESSION, topics.DELEGATION, topics.POLICY, topics.TIME)
_SUCCESSION, _TOKENS = "succession", "succession/tokens"
_ASIDE_MAX, _ASIDE_BYTES = 16, 64 << 10
_LOOK_SECONDS = 60.0


class Authority:
    """One device's view of operator and aggregator.

    Args:
        stored: What the device was enrolled with.
        marks: What was stored since.
        pins: For the trust that all checks share.
        ledger: Its revocations too.
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
        ledger: DeviceLedger,
        clock: Callable[[], float],
        wall_clock: Callable[[], int | None],
    ) -> None:
        self._clock, self._wall = clock, wall_clock
        self._stored, self._ledger = stored, ledger
        self.trust = Trust(stored.fleet, stored.operator_key, b"", Policy(), pins, ledger.revocations)
        self._warrants = recall_words(self.trust, stored, marks)
        self._unlisted = self._is_unlisted()
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
        """Take a SUCCESSION, DELEGATION, POLICY or TIME message, durably.

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
        known = self._warrants.delegation, self.trust.operator_key
        courier.carry(self._succeed(data) if kind == topics.SUCCESSION else self._warrants.take_delegation(data))
        if (self._warrants.delegation, self.trust.operator_key) == known:
            return []
        log.info("the operator's delegation %d is followed from now on", self._warrants.delegation.version)
        aside, self._aside = list(self._aside.items()), {}
        return aside

    def _succeed(self, data: bytes) -> list[Remember]:
        """Go by the operator's next key. All that follows from it is stored in one step, or nothing is."""
        trust, fleet = self.trust, self.trust.fleet
        found = trust.successions.take(data, operator_key=trust.operator_key, fleet=fleet)
        if found is None:
            return []
        marks = [Remember(_SUCCESSION, data), Remember(_TOKENS, b"")]
        head = found.words.revocations
        if found.key != trust.operator_key:
            marks += self._ledger.succeed_revocations(head, operator_key=found.key, fleet=fleet)
        elif head:  # a device of the new key's, which may know a newer list
            with contextlib.suppress(PeerError):
                marks += self._ledger.take_revocations(head, operator_key=found.key, fleet=fleet)
        log.warning("the operator's key has changed to %s", found.key.hex())
        return marks + self._warrants.succeed(found)

    @property
    def wanted_tokens(self) -> Blob | None:
        """The list of tokens of the operator's earlier keys, while it is not here."""
        return self.trust.successions.wanted

    def take_tokens(self, data: bytes) -> list[Remember]:
        """Take that list; errors as ``Successions.take_list``."""
        self.trust.successions.take_list(data)
        self._unlisted = self._is_unlisted()
        return [Remember(_TOKENS, data)]

    def _is_unlisted(self) -> str:
        """Say why this device's own token counts no longer, or nothing."""
        if self.wanted_tokens is not None:
            return ""
        try:
            self.trust.identify(self._stored.chain, self._stored.device)
        except PeerError as error:
            return f"{error}: a new bundle is needed"
        return ""

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
        return self._unlisted

    def snapshot(self) -> dict[str, Any]:
        """Return what ``covey-agent status`` shows of it."""
        delegation = self._warrants.delegation
        return {
            "version": delegation.version,
            "expires": delegation.not_after or None,
            "expired": self._warrants.expired(self.now()),
            "policy": self.trust.policy.version,
        }


def recall_words(trust: Trust, stored: StoredIdentity, marks: dict[str, bytes]) -> Warrants:
    """Return the operator's newest words, by whichever key it has now; ``trust`` is kept at them.

    Raises:
        PeerError: What the device was enrolled with is not the operator's.
        LocalError: A stored word is damaged.
    """
    delegation, policy = stored.delegation, stored.policy
    try:
        if marks.get(_SUCCESSION):
            found = trust.successions.take(marks[_SUCCESSION], operator_key=stored.operator_key, fleet=stored.fleet)
            if found is not None and found.key != stored.operator_key:
                trust.operator_key = found.key
                delegation, policy = found.words.delegation, found.words.policy
        if marks.get(_TOKENS):
            trust.successions.take_list(marks[_TOKENS])
    except PeerError as error:
        raise LocalError(f"the stored succession is damaged: {error}", cause="store") from error
    return Warrants(trust, delegation, policy, marks)
