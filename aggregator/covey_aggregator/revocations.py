"""Revocation lists on the server: where ``covey device revoke`` leaves them, how the service takes them up.

The operator's home keeps the newest list that its key has signed, so that no version is ever signed twice; the server
holds a copy that it publishes and can neither change nor make.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from covey_aggregator.files import PRIVATE, locked, replace
from covey_aggregator.operator import REVOCATIONS_FILE, OperatorHome
from covey_aggregator.store import Store
from covey_aggregator.succession_file import SignedSuccession
from covey_protocol import cbor, revocation, topics
from covey_protocol.digest import short
from covey_protocol.effects import Publish
from covey_protocol.errors import ConfigError, CoveyError, MalformedError, PeerError
from covey_protocol.messages import RevocationHead
from covey_protocol.revocation import LIST_BYTES_MAX, Revocation
from covey_protocol.roster import Trust

FILE = REVOCATIONS_FILE
LOCK = "revocations.lock"
_PUBLISHED = "revocations-published"


@dataclass(frozen=True)
class SignedList:
    """A whole list: its checked head, and both parts as they travel."""

    head: RevocationHead
    signed: bytes = field(repr=False)
    body: bytes = field(repr=False)
    entries: tuple[Revocation, ...] = field(repr=False)

    @property
    def version(self) -> int:
        """The list's version."""
        return self.head.version

    @staticmethod
    def read(signed: bytes, body: bytes, *, operator_key: bytes, fleet: str) -> SignedList:
        """Check both parts.

        Raises:
            PeerError: The operator did not sign the head, or the entries are others.
        """
        head = revocation.verify_head(signed, operator_key=operator_key, fleet=fleet)
        return SignedList(head, signed, body, tuple(revocation.read_list(body, head)))


def revoke(operator: OperatorHome, additions: Iterable[Revocation], known: SignedList | None) -> SignedList:
    """Return a list that holds some more entries, signed under the next version and kept in the operator's home.

    Args:
        operator: Whose key signs.
        additions: Whom to revoke; who is on the list already stays as they are.
        known: The list that the server has; it counts where the operator's home has lost a newer one.

    Returns:
        The list that the operator had when nothing is added to it, so that a command can be repeated.

    Raises:
        ConfigError: The kept list is damaged, there are two lists of one version, or the list is full.
    """
    # Two that sign at once would sign one version twice.
    with locked(operator.path / LOCK):
        newest = _newer(read_kept(operator), known)
        entries = {entry.token: entry for entry in (newest.entries if newest else ())}
        added = [entry for entry in additions if entry.token not in entries]
        if newest is not None and not added:
            return newest
        entries |= {entry.token: entry for entry in added}
        version = newest.version + 1 if newest else 1
        operator.check_current()
        signed, body = revocation.sign_list(entries.values(), version, operator.key, operator.fleet)
        replace(operator.path / FILE, cbor.encode([signed, body]), PRIVATE)
    return SignedList.read(signed, body, operator_key=operator.public_key, fleet=operator.fleet)


def read_kept(operator: OperatorHome) -> SignedList | None:
    """Return the newest list that this operator has signed.

    Raises:
        ConfigError: The file is damaged.
    """
    path = operator.path / FILE
    if not path.exists():
        return None
    try:
        match cbor.decode(path.read_bytes(), max_bytes=LIST_BYTES_MAX + 4096):
            case [bytes(signed), bytes(body)]:
                return SignedList.read(signed, body, operator_key=operator.public_key, fleet=operator.fleet)
        raise MalformedError("not a head and its entries")
    except (OSError, CoveyError) as error:
        raise ConfigError(f"{path}: {error}") from error


def read_stored(
    store: Store, *, operator_key: bytes, fleet: str, succession: SignedSuccession | None = None
) -> SignedList | None:
    """Return the list that the server has.

    Args:
        store: Where it is.
        operator_key: The operator's key.
        fleet: The fleet's name.
        succession: How the key came to be this one. A list of a key before it is void, and the one that came with the
            succession stands in its place.

    Raises:
        ConfigError: It is damaged, or not the operator's.
    """
    row = store.revocations()
    try:
        if row is not None and not _is_void(row[0], fleet, succession):
            return SignedList.read(*row, operator_key=operator_key, fleet=fleet)
        if succession is None or succession.checked.revocations is None:
            return None
        head = succession.checked.words.revocations
        return SignedList.read(head, succession.revoked, operator_key=operator_key, fleet=fleet)
    except PeerError as error:
        raise ConfigError(f"the revocation list in the database: {error}") from error


def settle(store: Store, *, operator_key: bytes, fleet: str, succession: SignedSuccession | None) -> None:
    """Put the list that came with a succession in the place of one that is void; arguments as for ``read_stored``."""
    row = store.revocations()
    if succession is None or (row is not None and not _is_void(row[0], fleet, succession)):
        return
    found = read_stored(store, operator_key=operator_key, fleet=fleet, succession=succession)
    store.drop_revocations()
    if found is not None:
        store.put_revocations(found.version, found.signed, found.body)


def _is_void(head: bytes, fleet: str, succession: SignedSuccession | None) -> bool:
    """Whether a list was signed by a key of before."""
    for key in succession.checked.former if succession else ():
        with contextlib.suppress(PeerError):
            revocation.verify_head(head, operator_key=key, fleet=fleet)
            return True
    return False


def _newer(one: SignedList | None, other: SignedList | None) -> SignedList | None:
    if one is None or other is None:
        return one or other
    if one.version == other.version and one.head.entries != other.head.entries:
        raise ConfigError(
            f"the operator has signed two revocation lists of version {one.version}: "
            f"{short(one.head.entries.digest)} and {short(other.head.entries.digest)}"
        )
    return max(one, other, key=lambda each: each.version)


class RevocationDesk:
    """The service's side: takes lists from the store, and says what is to be published.

    Args:
        trust: The fleet's anchors; its revocations are kept up to date here.
        store: Where the command leaves lists.

    Raises:
        ConfigError: The stored list is damaged.
    """

    def __init__(self, trust: Trust, store: Store) -> None:
        self._trust, self._store = trust, store
        self._list: SignedList | None = None
        self._said = False
        try:
            self._load()
        except PeerError as error:
            raise ConfigError(f"the revocation list in the database: {error}") from error

    def poll(self) -> list[Publish]:
        """Take up a newer list, and return what devices have to hear.

        The head is said at first and after ``again``; entries, which may be large, once when they are new, and
        otherwise to whoever asks for them.

        Raises:
            PeerError: What was left in the store is not the operator's, or is older than what is here.
        """
        if self._store.revocations_version() != self._trust.revocations.held:
            self._load()
        if self._list is None or self._said:
            return []
        self._said = True
        effects = [Publish(topics.REVOCATIONS, "", self._list.signed, retain=True)]
        if self._store.number(_PUBLISHED) < self._list.version:
            self._store.set_number(_PUBLISHED, self._list.version)
            effects.append(Publish(topics.BLOB, self._list.head.entries.digest.hex(), self._list.body))
        return effects

    def again(self) -> None:
        """Say the head again: a broker that was started anew may have lost it."""
        self._said = False

    def serve(self, digest: bytes) -> bytes | None:
        """Return the entries, if it is them that a device asks for."""
        return self._list.body if self._list is not None and self._list.head.entries.digest == digest else None

    def _load(self) -> None:
        row = self._store.revocations()
        if row is None:
            return
        trust = self._trust
        found = SignedList.read(*row, operator_key=trust.operator_key, fleet=trust.fleet)
        if trust.revocations.take_head(found.signed, operator_key=trust.operator_key, fleet=trust.fleet):
            trust.revocations.take_list(found.body)
            self._list, self._said = found, False
