"""Operators that change their key: the rig's, its followers, and what each of them signs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, OPERATOR, SERVER, make_chain, signing_key

from covey_protocol import identity
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.revocation import Revocation, sign_list
from covey_protocol.succession import Succession, sign_link, sign_succession, write_tokens

FOLLOWERS = [OPERATOR, *(signing_key(f"operator {number}") for number in range(1, 5))]
THIEF = signing_key("thief")


def public(key: SigningKey) -> bytes:
    return bytes(key.verify_key)


def tokens_of(*names: str, operator: SigningKey = OPERATOR) -> list[bytes]:
    return [identity.token_id(make_chain(name, operator=operator).token) for name in names]


def changed(
    keys: Sequence[SigningKey] = tuple(FOLLOWERS[:2]),
    tokens: Iterable[bytes] = (),
    *,
    aggregator: SigningKey = SERVER,
    version: int = 1,
    revoked: Iterable[Revocation] | None = None,
    n_min: int = 4,
) -> tuple[bytes, bytes, bytes]:
    """Return a succession along some keys: the message, the list of tokens, and the revocation list's entries."""
    body, blob = write_tokens(tokens)
    links = [sign_link(old, FLEET, number, public(new), blob) for number, (old, new) in enumerate(pairwise(keys), 1)]
    newest = keys[-1]
    head, entries = sign_list(revoked, version, newest, FLEET) if revoked is not None else (b"", b"")
    words = Succession(
        links=links,
        delegation=identity.issue_delegation(newest, FLEET, public(aggregator), version, 0),
        policy=sign_policy(Policy(version=version, n_min=n_min), newest, FLEET),
        revocations=head,
    )
    return sign_succession(words, newest, FLEET), body, entries
