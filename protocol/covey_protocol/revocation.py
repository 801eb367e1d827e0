"""The operator's revocation list: whose identity no longer counts, whatever chain it shows.

A list has two parts, because thousands of entries fit no message: a small *head* that the operator signs, with version,
digest and length, and the entries, which travel like any blob under that digest. An entry names a token, so that a
revoked device cannot come back with another key under the same token, and the key that was used with it, where one is
known.

Versions decide and not clocks, for a device may have none. Whoever has seen a version takes no older one; two lists of
one version are an alarm about the operator's key. The aggregator delivers lists and can only withhold them, and who
withholds is found out: manifests and joins name the version that their senders hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.digest import content_digest, short
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, MalformedError, RefusedError, StaleError
from covey_protocol.identity import OPERATOR
from covey_protocol.messages import Blob, RevocationHead
from covey_protocol.payload import Digest, Name, Payload, prepare, read, write

LIST_MAX = 16_384
LIST_BYTES_MAX = 4 << 20
_MAX_HEAD_BYTES = 1024


class Revocation(Payload, frozen=True, kw_only=True, array_like=True):
    """One entry, written as an array: every device keeps all of them.

    Attributes:
        token: Digest of the token, see ``identity.token_id``.
        key: The device key that was seen with it, or empty.
        device: The name, for people; names decide nothing.
        reason: A category in one word, for people.
    """

    token: Digest
    key: Annotated[bytes, msgspec.Meta(max_length=32)]
    device: Name
    reason: Name


class RevocationList(Payload, frozen=True, kw_only=True):
    """All entries of one version, in the order of their tokens."""

    entries: Annotated[list[Revocation], msgspec.Meta(max_length=LIST_MAX)]


def sign_list(entries: Iterable[Revocation], version: int, operator: SigningKey, fleet: str) -> tuple[bytes, bytes]:
    """Return the signed head and the entries of a new version.

    Raises:
        ConfigError: There are more entries than a list can hold.
    """
    ordered = sorted(entries, key=lambda entry: entry.token)
    if len(ordered) > LIST_MAX:
        raise ConfigError(f"{len(ordered)} revocations: a list holds {LIST_MAX}")
    body = write(RevocationList(entries=ordered))
    head = RevocationHead(version=version, entries=Blob(digest=content_digest(body), bytes=len(body)))
    return envelope.sign(write(head), _context(fleet), operator), body


def verify_head(data: bytes, *, operator_key: bytes, fleet: str) -> RevocationHead:
    """Return the head of a list once the operator's signature holds.

    Raises:
        SignatureError: It does not.
        MalformedError: It is no such head.
    """
    head = read(RevocationHead, envelope.open_signed(data, _context(fleet), operator_key, max_bytes=_MAX_HEAD_BYTES))
    if head.entries.bytes > LIST_BYTES_MAX:
        raise MalformedError(f"a revocation list of {head.entries.bytes} bytes, at most {LIST_BYTES_MAX} are allowed")
    return head


def read_list(body: bytes, head: RevocationHead) -> list[Revocation]:
    """Return the entries that a head names.

    Raises:
        MalformedError: They are not those, or are not in the order of their tokens.
    """
    if content_digest(body) != head.entries.digest:
        raise MalformedError(f"not the entries of revocation list {head.version}", cause="digest")
    entries = read(RevocationList, body, max_bytes=LIST_BYTES_MAX).entries
    tokens = [entry.token for entry in entries]
    if tokens != sorted(set(tokens)):
        raise MalformedError(f"revocation list {head.version} is not in order, or repeats a token")
    return entries


class Revocations:
    """What one side knows of the operator's list; all of its checks share one object.

    Attributes:
        held: Version of the list that is here, 0 for none.
    """

    def __init__(self) -> None:
        self._head: RevocationHead | None = None
        self.held = 0
        self._by_token: dict[bytes, Revocation] = {}
        self._keys: dict[bytes, Revocation] = {}

    @property
    def seen(self) -> int:
        """Newest version that the operator's signature was seen on, whether or not its entries are here."""
        return self._head.version if self._head else 0

    @property
    def wanted(self) -> Blob | None:
        """The entries that the newest head names, while they are not here."""
        return self._head.entries if self._head is not None and self._head.version > self.held else None

    def entries(self) -> list[Revocation]:
        """Return the entries of the list that is here."""
        return list(self._by_token.values())

    def take_head(self, data: bytes, *, operator_key: bytes, fleet: str) -> bool:
        """Take the operator's word for a version; return whether it is a newer one.

        Raises:
            StaleError: A newer one was seen before.
            RefusedError: The operator's key has signed two lists of one version.
            PeerError: The operator did not sign it.
        """
        head = verify_head(data, operator_key=operator_key, fleet=fleet)
        if head.version < self.seen:
            raise StaleError(f"revocation list {head.version} is older than {self.seen}", cause="replayed")
        if self._head is not None and head.version == self._head.version:
            if head.entries != self._head.entries:
                raise RefusedError(
                    f"operator key {short(operator_key)} has signed two revocation lists of version {head.version}: "
                    f"{short(self._head.entries.digest)} and {short(head.entries.digest)}",
                    cause="second-list",
                )
            return False
        self._head = head
        return True

    def take_list(self, body: bytes) -> None:
        """Take the entries that the newest head names.

        Raises:
            StaleError: None are waited for.
            MalformedError: They are not those.
        """
        if self._head is None or self.wanted is None:
            raise StaleError("no revocation list is waited for", cause="stage")
        self._use(self._head.version, read_list(body, self._head))

    def restore(self, head: bytes, version: int, body: bytes) -> None:
        """Take what was checked before and kept: the newest head, and the version and entries that were here.

        Raises:
            MalformedError: It is damaged.
        """
        self._head = read(RevocationHead, envelope.parse(head).payload)
        if version:
            self._use(version, read(RevocationList, body, max_bytes=LIST_BYTES_MAX).entries)

    def succeed(self, head: bytes, *, operator_key: bytes, fleet: str) -> bool:
        """Begin anew under the operator's next key, whatever versions the one before has signed.

        Args:
            head: The head of the next key's list, or empty if it has none: then nobody is revoked.
            operator_key, fleet: The next key and the fleet.

        Returns:
            Whether the entries that are here are the new list's.

        Raises:
            PeerError: That key did not sign it.
        """
        new = verify_head(head, operator_key=operator_key, fleet=fleet) if head else None
        same = new is not None and self._head is not None and self.wanted is None and self._head.entries == new.entries
        self._head = new
        if same and new is not None:
            self.held = new.version
        else:
            self.held, self._by_token, self._keys = 0, {}, {}
        return same

    def check_manifest(self, version: int) -> None:
        """Refuse a round whose manifest names an older list than was seen here.

        Raises:
            RefusedError: The server withholds the newer one from others, or has lost it.
        """
        if version < self.seen:
            raise RefusedError(
                f"the manifest names revocation list {version}, the operator has signed {self.seen}: "
                "the server withholds a list",
                cause="revocations",
            )

    def check_named(self, version: int, who: str) -> None:
        """Refuse to go on beside somebody who names a newer list than is here.

        Raises:
            RefusedError: The newer one was withheld from us.
        """
        if version > self.held:
            raise RefusedError(
                f"{who} names revocation list {version}, and only {self.held} is here: it was withheld",
                cause="revocations",
            )

    def find(self, key: bytes, tokens: Iterable[bytes]) -> Revocation | None:
        """Return the entry that a device falls under, by its key or one of its tokens."""
        hits = (self._by_token[token] for token in tokens if token in self._by_token)
        return self._keys.get(key) or next(hits, None)

    def _use(self, version: int, entries: list[Revocation]) -> None:
        self.held = version
        self._by_token = {entry.token: entry for entry in entries}
        self._keys = {entry.key: entry for entry in entries if entry.key}


def _context(fleet: str) -> Context:
    topics.check_name(fleet, "fleet")
    return Context(fleet=fleet, kind=topics.REVOCATIONS, sender=OPERATOR)


prepare(globals())
