"""How much each sender may ask of the aggregator before anything is read, checked or written for it.

- A known device has a bucket of messages and one of bytes, which fill at a steady rate. Messages that lead to writes
  weigh more. What a signed message announced (a masked vector) may come on top, however large the model is.
- Somebody unknown may show an identity, and nothing else. Names that never showed one share a fixed number of slots,
  which a keyed hash finds, so any number of them costs the same memory, and a loud one crowds out few others.
- Who is over its budget is dropped at the price of two lookups, counted, and named once: neither the log, nor the
  database, nor anybody else's round notices how often.

A name in a topic is the sender's own where the broker has an access list; on an open broker anybody can spend anybody's
budget. No clock is read here: times come in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from covey_protocol import topics

FLOOD, STRANGER = "flood", "unknown-device"
"""Why a message was dropped."""

WEIGHTS = {topics.STATE: 10.0, topics.JOIN: 5.0}  # each of these costs several writes
CALM_SECONDS = 60.0  # without a message over the budget, and a flood is over
SLOTS = 4096
STRANGER_BURST, STRANGER_EVERY = 20.0, 5.0  # states of a slot at once, and seconds until there is room for one more
AGAIN_SECONDS, AGAIN_EVERY = 10.0, 60.0  # after the last state that was dropped; and between two such requests
_VECTOR_TWICE = 2  # pieces may come twice, by QoS 1 and by being asked for again
_PIECE_LEAST = 1024

Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What senders may ask for; a rate of 0 is no limit."""

    messages_per_second: Rate = 20.0
    messages_burst: Rate = 1000.0
    bytes_per_second: Rate = 2.0 * (1 << 20)
    bytes_burst: Rate = 32.0 * (1 << 20)
    newcomers_per_second: Rate = 50.0
    newcomers_burst: Rate = 2000.0
    reassembly_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 40)] = 1 << 30


class Flood(NamedTuple):
    """A device that sends more than its budget; ``over`` once it has stopped to."""

    device: str
    messages: int
    bytes: int
    over: bool


class Bucket:
    """Tokens that come back at a steady rate, up to a limit."""

    __slots__ = ("_at", "_limit", "_rate", "tokens")

    def __init__(self, rate: float, limit: float, now: float) -> None:
        self._rate, self._limit, self.tokens, self._at = rate, limit, limit, now

    def take(self, amount: float, now: float) -> bool:
        """Take tokens, all or none; a rate of 0 gives any number."""
        if not self._rate:
            return True
        if now > self._at:
            if self.tokens < self._limit:
                self.tokens = min(self._limit, self.tokens + (now - self._at) * self._rate)
            self._at = now
        if self.tokens < amount:
            return False
        self.tokens -= amount
        return True

    def give(self, amount: float) -> None:
        """Put tokens in on top of a bucket that is full at most: what was given before is not saved up."""
        self.tokens = min(self.tokens, self._limit) + amount


@dataclass(slots=True)
class _Account:
    messages: Bucket
    bytes: Bucket
    dropped: int = 0
    dropped_bytes: int = 0
    last: float = 0.0
    told: bool = False


class Budgets:
    """The budgets of all senders.

    Args:
        settings: How large they are.
        knows: Whether a name has shown an identity.
        secret: Finds the slots of those who have not; nobody else may know it.
    """

    def __init__(self, settings: BudgetSettings, knows: Callable[[str], bool], secret: bytes) -> None:
        self._settings, self._knows, self._secret = settings, knows, secret
        self._accounts: dict[str, _Account] = {}
        self._flooding: set[str] = set()
        self._slots: list[Bucket | None] = [None] * SLOTS
        self._newcomers: Bucket | None = None
        self._missed = False
        self._missed_at = self._again_at = float("-inf")
        self.strangers = 0

    def admit(self, topic: str, size: int, now: float) -> str:
        """Count a message and say why it is to be dropped, or nothing.

        Args:
            topic: Where it came; it need not be one of ours.
            size: Its bytes.
            now: Monotonic seconds.
        """
        parts = topic.split("/", 7)
        device, kind = (parts[4], parts[6]) if len(parts) > 6 and parts[3] == "dev" else ("", "")
        if not self._knows(device):
            return self._stranger(device, kind, now)
        account = self._account(device, now)
        if account.bytes.take(size, now) and account.messages.take(WEIGHTS.get(kind, 1.0), now):
            return ""
        account.dropped += 1
        account.dropped_bytes += size
        account.last = now
        self._flooding.add(device)
        self._miss(kind, now)
        return FLOOD

    def _account(self, device: str, now: float) -> _Account:
        """Return the account of a known device."""
        account = self._accounts.get(device)
        if account is None:
            own = self._settings
            account = self._accounts[device] = _Account(
                Bucket(own.messages_per_second, own.messages_burst, now),
                Bucket(own.bytes_per_second, own.bytes_burst, now),
            )
        return account

    def _stranger(self, device: str, kind: str, now: float) -> str:
        if not self._settings.newcomers_per_second:
            return ""
        if kind != topics.STATE:
            self.strangers += 1
            return STRANGER
        digest = hashlib.blake2b(device.encode("utf-8", "replace"), digest_size=8, key=self._secret).digest()
        slot = int.from_bytes(digest, "little") % SLOTS
        bucket = self._slots[slot]
        if bucket is None:
            bucket = self._slots[slot] = Bucket(1 / STRANGER_EVERY, STRANGER_BURST, now)
        if self._newcomers is None:
            own = self._settings
            self._newcomers = Bucket(own.newcomers_per_second, own.newcomers_burst, now)
        if bucket.take(1.0, now) and self._newcomers.take(1.0, now):
            return ""
        self.strangers += 1
        self._miss(kind, now)
        return STRANGER

    def _miss(self, kind: str, now: float) -> None:
        if kind == topics.STATE:
            self._missed, self._missed_at = True, now

    def announced(self, device: str, size: int, now: float) -> None:
        """Let a known device send what it announced by a signed message, twice over, whatever else its budget is."""
        account = self._account(device, now)
        account.bytes.give(_VECTOR_TWICE * size)
        account.messages.give(_VECTOR_TWICE * (1 + size // _PIECE_LEAST))

    def news(self, now: float) -> list[Flood]:
        """Return the devices that have begun to flood, and those that have stopped to, once each."""
        found = []
        for device in sorted(self._flooding):
            account = self._accounts[device]
            if not account.told:
                account.told = True
                found.append(Flood(device, account.dropped, account.dropped_bytes, False))
            elif now - account.last >= CALM_SECONDS:
                found.append(Flood(device, account.dropped, account.dropped_bytes, True))
                account.dropped = account.dropped_bytes = 0
                account.told = False
                self._flooding.discard(device)
        return found

    @property
    def flooding(self) -> frozenset[str]:
        """Who floods at the moment: not all that they say is heard."""
        return frozenset(self._flooding)

    def dropped(self, device: str) -> int:
        """Return how many messages of a device were dropped in the flood that goes on."""
        account = self._accounts.get(device)
        return account.dropped if account else 0

    def states_again(self, now: float) -> bool:
        """Whether states were dropped and it is time to ask the broker for the retained ones again."""
        due = self._missed and now - self._missed_at >= AGAIN_SECONDS and now - self._again_at >= AGAIN_EVERY
        if due:
            self._missed, self._again_at = False, now
        return due
