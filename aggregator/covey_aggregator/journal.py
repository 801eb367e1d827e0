"""The journal of what is open: a round's or an epoch's inputs in the order in which they were taken, with their times.

The state machines are deterministic, so whoever plays the same inputs at the same times again has the same state and
says the same, byte for byte. That is how an aggregator goes on after a restart. Every line also holds a digest of what
was said in answer: a journal whose replay would say anything else (it is damaged, or was written by other code or under
another policy) is not gone on with, for members must never hear two versions of one message.

Times are seconds since the beginning, so that they outlive the monotonic clock; they go on while nothing runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from covey_aggregator.store import Store
from covey_protocol.digest import content_digest
from covey_protocol.effects import Deliver, Effect, Publish
from covey_protocol.errors import CoveyError, LocalError

VERSION = 2

# Inputs that are no messages; a message goes under its kind.
TICK = "tick"
GRACE = "grace"
RESUMED = "resumed"
# After a restart, and whenever the broker was away, a stage goes on for at least this share of its window.
GRACE_SHARE = 0.5


class RoundHead(msgspec.Struct, frozen=True, kw_only=True, tag="round"):
    """What a round begins with: the place and bytes of its manifest, its members' last join sequences, the groups that
    attest however the lot falls, and the members who have no place on a roster.

    ``opened`` is in Unix seconds; ``failures`` counts the rounds that had failed in a row. The groups are the store's.
    """

    task: str
    round: int
    attempt: int
    manifest: bytes
    sequences: dict[str, int]
    failures: int
    opened: float
    watched: list[str] = []
    excluded: list[str] = []


class EpochHead(msgspec.Struct, frozen=True, kw_only=True, tag="epoch"):
    """What an epoch's opening begins with; ``members`` are names and keys, ``probation`` names of newcomers."""

    task: str
    epoch: int
    members: dict[str, bytes]
    group_size: int
    list_min: int
    window: float
    failures: int
    opened: float
    probation: list[str] = []


Head = RoundHead | EpochHead


class Entry(NamedTuple):
    """One input: when, what, from whom; and the digest of what was said in answer."""

    at: float
    kind: str
    device: str
    data: bytes
    said: bytes


class JournalError(LocalError):
    """A journal that cannot be played again."""

    cause = "journal"


class Journal:
    """The one journal in a store.

    Args:
        store: Where it is; lines become durable with its next commit.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, head: Head) -> None:
        """Open a journal in the place of any other."""
        self._store.put_head(VERSION, msgspec.msgpack.encode(head))

    def add(self, at: float, kind: str, device: str, data: bytes, effects: Sequence[Effect]) -> None:
        """Note an input that was taken, and what was said in answer."""
        self._store.put_entry(at, kind, device, data, said(effects))

    def clear(self) -> None:
        """Nothing is open any more."""
        self._store.clear_journal()

    @property
    def is_open(self) -> bool:
        """Whether there is a journal, be it readable or not."""
        return self._store.head() is not None

    @property
    def resumed(self) -> int:
        """How often what is open was taken up again."""
        return self._store.count_entries(RESUMED)

    def head(self) -> Head | None:
        """Return what the open journal begins with.

        Raises:
            JournalError: It was written by another version, or is damaged.
        """
        found = self._store.head()
        if found is None:
            return None
        version, data = found
        if version != VERSION:
            raise JournalError(f"its journal is of version {version}, this is version {VERSION}")
        try:
            head: Head = msgspec.msgpack.decode(data, type=Head)
        except msgspec.MsgspecError as error:
            raise JournalError(f"the head of its journal is damaged: {error}") from error
        return head

    def entries(self) -> list[Entry]:
        """Return all lines."""
        return [Entry(*row) for row in self._store.entries()]


def said(effects: Sequence[Effect]) -> bytes:
    """Return a digest of what is published and delivered; empty for nothing."""
    spoken = [
        (effect.kind, effect.id if isinstance(effect, Publish) else effect.device, content_digest(effect.data))
        for effect in effects
        if isinstance(effect, Publish | Deliver)
    ]
    return content_digest(msgspec.msgpack.encode(spoken)) if spoken else b""


class Recorded(ABC):
    """A state machine whose inputs are noted as they are taken, and can be played again.

    Args:
        journal: Where they are noted.
        now: Monotonic seconds at which it began; earlier than the clock's zero where it is older than this process.
    """

    def __init__(self, journal: Journal, now: float) -> None:
        self._journal, self.started = journal, now
        self.resumed = 0

    def take(self, kind: str, device: str, data: bytes, now: float) -> list[Effect]:
        """Take an input: a message under its kind, or one of this module's.

        Raises:
            PeerError: It breaks a rule; nothing has changed.
        """
        at, before = now - self.started, self.place() if kind == TICK else None
        effects = self.play(kind, device, data, at)
        if kind != TICK or effects or self.place() != before:
            self._journal.add(at, kind, device, self.kept(kind, device, data), effects)
        return effects

    def replay(self, entries: Sequence[Entry]) -> list[Effect]:
        """Play a journal; return what has to be said again because it may not have been heard.

        Raises:
            JournalError: Something comes out other than before.
        """
        last: dict[str, list[Effect]] = {}
        for number, entry in enumerate(entries, 1):
            try:
                effects = self.play(
                    entry.kind, entry.device, self.restored(entry.kind, entry.device, entry.data), entry.at
                )
            except CoveyError as error:
                raise JournalError(f"line {number} of its journal, {entry.kind}, is refused: {error}") from error
            if said(effects) != entry.said:
                raise JournalError(f"line {number} of its journal, {entry.kind}, leads to other messages than before")
            self.resumed += entry.kind == RESUMED
            self.note_said(effects, last)
        return [effect for effects in last.values() for effect in effects]

    @abstractmethod
    def play(self, kind: str, device: str, data: bytes, at: float) -> list[Effect]:
        """Take an input at a time since the beginning; the same inputs always lead to the same effects."""

    @abstractmethod
    def place(self) -> object:
        """Return something that changes whenever a tick has changed anything."""

    @abstractmethod
    def note_said(self, effects: Sequence[Effect], last: dict[str, list[Effect]]) -> None:
        """Keep, for each part that goes its own way, the messages of its present stage."""

    def kept(self, kind: str, device: str, data: bytes) -> bytes:
        """Return what stands in the journal for an input's data."""
        return data

    def restored(self, kind: str, device: str, data: bytes) -> bytes:
        """Return an input's data from what stands in the journal."""
        return data
