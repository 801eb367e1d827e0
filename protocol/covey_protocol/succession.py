"""The operator changes its key: the old one signs for the new, and names every token that it has ever signed.

::

    old key ──signs──> link (version, old key, new key, digest of all token ids so far)
    new key ──signs──> succession (all links, and its own delegation, policy and revocation list)

Whoever takes a succession goes by the new key from then on. Of the old one nothing counts any more but the tokens on
the list, so a thief who gets hold of it later can invite nobody and command nobody. All links travel in one message, so
a device that was away follows several of them at once. The newest key signs over all of them: a device that was
enrolled under it, and knows no earlier one, has its word for the list, and none but its word.

The list is a blob, like that of revocations. Two links of one old key are an alarm that names it; the first stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.digest import DIGEST_BYTES, content_digest, short
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, MalformedError, RefusedError, SignatureError, StaleError
from covey_protocol.identity import OPERATOR, Delegation, Former, verify_delegation
from covey_protocol.messages import Blob, RevocationHead
from covey_protocol.payload import Key, Payload, prepare, read, write
from covey_protocol.policy import Policy, verify_policy
from covey_protocol.revocation import verify_head

LINKS_MAX = 12
TOKENS_MAX = 128 * 1024
LIST_BYTES_MAX = TOKENS_MAX * DIGEST_BYTES + 64
_MESSAGE_MAX = 16 * 1024
_LINK = "succession-link"
Word = Annotated[bytes, msgspec.Meta(max_length=4096)]


class Link(Payload, frozen=True, kw_only=True):
    """An operator key's last word: which key follows it, and by name the tokens that go on counting.

    ``version`` counts from 1; the tokens are all that were signed so far, by this key and by those before it.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=LINKS_MAX)]
    old_key: Key
    new_key: Key
    tokens: Blob


class Succession(Payload, frozen=True, kw_only=True):
    """SUCCESSION, retained and signed by the operator's newest key: how it came to follow, and its own first words.

    ``revocations`` is the head of its revocation list, or empty if there is none. Words of the keys before are void.
    """

    links: Annotated[list[Annotated[bytes, msgspec.Meta(max_length=1024)]], msgspec.Meta(min_length=1, max_length=12)]
    delegation: Word
    policy: Word
    revocations: Word = b""


class TokenList(Payload, frozen=True, kw_only=True):
    """Digests of tokens, each once, in their order, in one string."""

    tokens: Annotated[bytes, msgspec.Meta(max_length=TOKENS_MAX * DIGEST_BYTES)]


@dataclass(frozen=True)
class CheckedSuccession:
    """A message whose links and words hold; ``signed_links`` and the words' bytes are as they travel."""

    links: tuple[Link, ...]
    signed_links: tuple[bytes, ...] = field(repr=False)
    payloads: tuple[bytes, ...] = field(repr=False)
    delegation: Delegation
    policy: Policy
    revocations: RevocationHead | None
    words: Succession = field(repr=False)

    @property
    def version(self) -> int:
        """How often the key has changed."""
        return len(self.links)

    @property
    def key(self) -> bytes:
        """The newest key."""
        return self.links[-1].new_key

    @property
    def former(self) -> tuple[bytes, ...]:
        """The keys before it, oldest first."""
        return tuple(link.old_key for link in self.links)


def sign_link(old: SigningKey, fleet: str, version: int, new_key: bytes, tokens: Blob) -> bytes:
    """Return the old key's word for the new.

    Raises:
        ConfigError: It has changed too often.
    """
    if version > LINKS_MAX:
        raise ConfigError(f"the operator's key has changed {LINKS_MAX} times: enrol the fleet anew under another one")
    link = Link(version=version, old_key=bytes(old.verify_key), new_key=new_key, tokens=tokens)
    return envelope.sign(write(link), _context(fleet, _LINK), old)


def sign_succession(words: Succession, new: SigningKey, fleet: str) -> bytes:
    """Return the message, signed by the newest key."""
    return envelope.sign(write(words), _context(fleet, topics.SUCCESSION), new)


def write_tokens(tokens: Iterable[bytes]) -> tuple[bytes, Blob]:
    """Return the list of some tokens by their digests, and its name.

    Raises:
        ConfigError: There are more than a list can hold.
    """
    ordered = sorted(set(tokens))
    if len(ordered) > TOKENS_MAX:
        raise ConfigError(f"{len(ordered)} tokens: a succession names {TOKENS_MAX}")
    body = write(TokenList(tokens=b"".join(ordered)))
    return body, Blob(digest=content_digest(body), bytes=len(body))


def read_tokens(body: bytes, blob: Blob) -> bytes:
    """Return the digests that a link names, in one string.

    Raises:
        MalformedError: They are not those, or not in their order.
    """
    if content_digest(body) != blob.digest:
        raise MalformedError("not the list of tokens that the succession names", cause="digest")
    packed = read(TokenList, body, max_bytes=LIST_BYTES_MAX).tokens
    tokens = [packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)]
    if len(packed) % DIGEST_BYTES or any(one >= next_ for one, next_ in itertools.pairwise(tokens)):
        raise MalformedError("the list of tokens is not in order, or repeats one")
    return packed


def read_succession(data: bytes, fleet: str) -> CheckedSuccession:
    """Return a message once every link leads to the next and the newest key has signed all of it.

    Whose links they are is for the caller to say: a thief can make a line of keys of his own.

    Raises:
        PeerError: Something in it does not hold.
    """
    message = envelope.parse(data, max_bytes=_MESSAGE_MAX)
    words = read(Succession, message.payload, max_bytes=_MESSAGE_MAX)
    parsed = [envelope.parse(each, max_bytes=1024) for each in words.links]
    links = [read(Link, each.payload) for each in parsed]
    keys = [links[0].old_key, *(link.new_key for link in links)]
    for place, link in enumerate(links):
        if (link.version, link.old_key) != (place + 1, keys[place]):
            raise MalformedError("the links of the succession do not lead from one to the next")
        if link.tokens.bytes > LIST_BYTES_MAX:
            raise MalformedError(f"a list of tokens of {link.tokens.bytes} bytes; {LIST_BYTES_MAX} are allowed")
    if len(set(keys)) < len(keys):
        raise MalformedError("the succession comes back to a key")
    envelope.verify(message, _context(fleet, topics.SUCCESSION), keys[-1])
    for each, link in zip(parsed, links, strict=True):
        envelope.verify(each, _context(fleet, _LINK), link.old_key)
    return CheckedSuccession(
        links=tuple(links),
        signed_links=tuple(words.links),
        payloads=tuple(each.payload for each in parsed),
        delegation=verify_delegation(words.delegation, operator_key=keys[-1], fleet=fleet),
        policy=verify_policy(words.policy, operator_key=keys[-1], fleet=fleet),
        revocations=verify_head(words.revocations, operator_key=keys[-1], fleet=fleet) if words.revocations else None,
        words=words,
    )


class Successions:
    """What one side knows of the changes of the operator's key; all of its checks share one object.

    Attributes:
        former: The keys that were, and what of theirs counts: nothing, until the list is here.
    """

    def __init__(self) -> None:
        self._known: CheckedSuccession | None = None
        self._listed = False
        self.former = Former()

    @property
    def version(self) -> int:
        """How many changes were seen."""
        return self._known.version if self._known else 0

    @property
    def wanted(self) -> Blob | None:
        """The newest list of tokens, while it is not here."""
        return None if self._known is None or self._listed else self._known.links[-1].tokens

    def take(self, data: bytes, *, operator_key: bytes, fleet: str) -> CheckedSuccession | None:
        """Take a SUCCESSION message that leads on from the key that is gone by.

        Returns:
            It, if it is newer than what is known.

        Raises:
            StaleError: A newer one was seen before.
            RefusedError: One key has signed two links (cause ``second-succession``).
            PeerError: It does not hold, or does not lead on from this key.
        """
        found = read_succession(data, fleet)
        known: Sequence[bytes] = self._known.payloads if self._known else ()
        for mine, theirs, link in zip(known, found.payloads, found.links, strict=False):
            if mine != theirs:
                self._second(link, mine, theirs)
        if found.version < self.version:
            raise StaleError(f"succession {found.version} is older than {self.version}", cause="replayed")
        if found.version == self.version:
            return None
        if operator_key not in (*found.former, found.key):
            raise SignatureError(f"the succession does not lead on from operator key {short(operator_key)}")
        self._known, self._listed = found, False
        self.former = Former(found.former)
        return found

    def _second(self, link: Link, mine: bytes, theirs: bytes) -> None:
        """Ring: two links stand at one place; the one that was seen first stays.

        Raises:
            RefusedError: The old key has signed both.
            SignatureError: They begin at different keys, so one of them is none of this fleet's.
        """
        first = read(Link, mine)
        if first.old_key != link.old_key:
            raise SignatureError(f"the succession does not lead on from operator key {short(first.old_key)}")
        raise RefusedError(
            f"operator key {short(link.old_key)} has signed two successions of version {link.version}: to "
            f"{short(first.new_key)} with list {short(first.tokens.digest)}, and to {short(link.new_key)} with list "
            f"{short(link.tokens.digest)} ({short(content_digest(mine))} and {short(content_digest(theirs))})",
            cause="second-succession",
        )

    def take_list(self, body: bytes) -> None:
        """Take the list of tokens that the newest link names.

        Raises:
            StaleError: None is waited for.
            MalformedError: It is not that.
        """
        wanted = self.wanted
        if wanted is None:
            raise StaleError("no list of tokens is waited for", cause="stage")
        self.former = Former(self.former.keys, read_tokens(body, wanted))
        self._listed = True

    def check_manifest(self, version: int) -> None:
        """Refuse a round under an earlier key than is gone by here.

        Raises:
            RefusedError: The server withholds the change from others, or has lost it.
        """
        if version < self.version:
            raise RefusedError(
                f"the manifest names succession {version} of the operator's key, and {self.version} is here: "
                "the server withholds a succession",
                cause="succession",
            )

    def lacks(self, version: int) -> bool:
        """Whether something is missing here for a round whose manifest names a version."""
        return version > self.version or (version > 0 and self.wanted is not None)


def _context(fleet: str, kind: str) -> Context:
    topics.check_name(fleet, "fleet")
    return Context(fleet=fleet, kind=kind, sender=OPERATOR)


prepare(globals())
