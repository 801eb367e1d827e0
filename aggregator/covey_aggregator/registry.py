"""The devices that have shown a valid identity, and whether they are there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from covey_aggregator.store import DeviceRow, Store
from covey_protocol import envelope, topics
from covey_protocol.digest import short
from covey_protocol.envelope import KEY_BYTES, Context
from covey_protocol.errors import PeerError, RefusedError, StaleError
from covey_protocol.messages import Recall, State
from covey_protocol.payload import read
from covey_protocol.roster import Trust

WENT_BACK = "went-back"


@dataclass(frozen=True)
class Seen:
    """What a STATE message changed."""

    device: str
    status: str
    new: bool
    arrived: bool


class Registry:
    """All devices, in memory and in the store.

    Args:
        trust: The fleet's anchors; its pins are filled from the store by the caller.
        store: Where changes go first.
    """

    def __init__(self, trust: Trust, store: Store) -> None:
        self._trust, self._store = trust, store
        pins = trust.pins  # which know the newest key of a device that has changed it
        self._rows = {
            row.name: dataclasses.replace(row, key=pins.pinned(row.token)[-KEY_BYTES:] or row.key)
            for row in store.devices()
        }
        self._gone: set[str] = set()
        self._drop_void()
        self.drop_revoked()
        self.sequences = {row.name: row.sequence for row in self._rows.values()}

    def state(self, device: str, data: bytes, now: float) -> Seen:
        """Take a STATE message: check the chain, pin its key, note the status.

        Args:
            device: The name in the topic.
            data: The signed message.
            now: Unix seconds.

        Raises:
            PeerError: The identity does not hold, its token belongs to another key, or the message is an old one;
                with cause ``went-back`` if it says that a device is there which has been started more often before.
        """
        message = envelope.parse(data)
        state = read(State, message.payload)
        # A token's expiry bounds enrolment: it keeps nobody out who was let in before.
        expiry = None if device in self._rows else int(now)
        who = self._trust.identify(state.chain, device, expiry)
        context = Context(fleet=self._trust.fleet, kind=topics.STATE, sender=device)
        envelope.verify(message, context, who.key)
        self._trust.pins.check(who)
        self._trust.check_member(device, who.key, who.token)
        if device in self._gone:
            raise RefusedError(f"{device!r} was revoked; its name is not given again", cause="revoked")
        known = self._rows.get(device)
        if known is not None and known.key not in who.keys:
            raise RefusedError(
                f"{device!r} is known with key {short(known.key)} and now shows key {short(who.key)}",
                cause="second-key",
            )
        if known is not None and state.counter < known.counter:
            cause = WENT_BACK if state.status == "online" else "replayed"
            raise StaleError(f"state of {device!r} is older than the last one", cause=cause)
        self._trust.pins.pin(who)
        self._store.pin(who.token, self._trust.pins.pinned(who.token))
        row = DeviceRow(
            name=device,
            key=who.key,
            token=who.token,
            profile=who.profile,
            status=state.status,
            counter=state.counter,
            sequence=known.sequence if known else 0,
            software=state.software,
            holds=state.holds,
            seen=now,
        )
        self._store.put_device(row)
        self._store.put_said(device, topics.STATE, data)
        self._rows[device] = row
        arrived = state.status == "online" and (known is None or known.status != "online")
        return Seen(device, state.status, known is None, arrived)

    def drop_revoked(self) -> list[str]:
        """Know devices that the operator has revoked no longer; return who was dropped."""
        gone = [name for name, row in self._rows.items() if self._trust.revoked(row.key, row.token) is not None]
        for name in gone:
            del self._rows[name]
        self._gone.update(gone)
        return gone

    def _drop_void(self) -> None:
        """Know devices no longer whose token the operator did not name when it changed its key."""
        if not self._trust.successions.version:
            return
        for name, row in list(self._rows.items()):
            if self._trust.successions.former.counts(row.token):
                continue
            try:
                state = read(State, envelope.parse(self._store.said(name, topics.STATE)[0]).payload)
                self._trust.identify(state.chain, name)
            except PeerError as error:
                del self._rows[name]
                self._store.event("succession", f"{name} is known no longer: {error}")

    def joined(self, device: str, data: bytes, grouping: bytes) -> None:
        """Keep a JOIN that was accepted, and the digest of the grouping that it was signed over."""
        self._store.put_said(device, topics.JOIN, data, grouping)

    def recall(self, device: str) -> Recall:
        """Return what a device itself has said last."""
        state, _ = self._store.said(device, topics.STATE)
        join, grouping = self._store.said(device, topics.JOIN)
        return Recall(state=state, join=join, grouping=grouping)

    def knows(self, device: str) -> bool:
        """Whether a device has ever shown a valid identity."""
        return device in self._rows

    def identities(self) -> dict[str, tuple[bytes, bytes]]:
        """Return the key of every device, and the digest of the token that it was enrolled with."""
        return {name: (row.key, row.token) for name, row in self._rows.items()}

    def key(self, device: str) -> bytes:
        """Return a known device's key."""
        return self._rows[device].key

    def online(self, *, or_lost: bool = False) -> dict[str, bytes]:
        """Return names and keys of the devices that are there, with those that are only lost if asked for."""
        wanted = ("online", "lost") if or_lost else ("online",)
        return {name: row.key for name, row in self._rows.items() if row.status in wanted}

    def absent(self) -> list[str]:
        """Return the devices that are not there."""
        return [name for name, row in self._rows.items() if row.status != "online"]

    def reload_sequences(self) -> None:
        """Go back to the join sequences in the store."""
        self.sequences.update({name: row.sequence for name, row in self._rows.items()})

    def save_sequences(self, names: list[str]) -> None:
        """Write join sequences through to the store."""
        self._store.put_sequences([(name, self.sequences[name]) for name in names if name in self.sequences])
        for name in names:
            if name in self._rows:
                self._rows[name] = dataclasses.replace(self._rows[name], sequence=self.sequences.get(name, 0))
