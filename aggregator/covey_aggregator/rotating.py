"""The operator changes its key.

The next key is written first, beside the old. Everything that it has to say again is signed and put into one file, the
succession: from the step in which that is there the home has rotated. Whatever opens the home next brings the rest
after it, without any key: the newest words, the old secret destroyed, the next key in its place.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from nacl.signing import SigningKey

from covey_aggregator import revocations
from covey_aggregator.files import locked, replace
from covey_aggregator.operator import (
    DELEGATION_SECONDS,
    LOCK,
    NEXT_KEY_FILE,
    OperatorHome,
    is_unfinished,
    open_operator,
)
from covey_aggregator.passphrase import Ask, write_key
from covey_aggregator.succession_file import FILE, decode
from covey_protocol import cbor, identity, succession
from covey_protocol.errors import ConfigError
from covey_protocol.policy import sign_policy
from covey_protocol.revocation import sign_list
from covey_protocol.succession import Succession


class Rotated(NamedTuple):
    """What has come about; ``finished`` says that an earlier change was only brought to its end."""

    operator: OperatorHome
    finished: bool


def rotate(path: Path, *, ask: Ask | None = None, new: Ask | None = None) -> Rotated:
    """Change the operator's key; one that was cut off is gone on with, and no second one begun.

    Args:
        path: The operator's home.
        ask: Returns the passphrase of the key that is there.
        new: Returns the passphrase of the next one, empty for none.

    Raises:
        ConfigError: The home is damaged, the passphrase is wrong, or the key has changed too often.
    """
    finished = is_unfinished(path)
    operator = open_operator(path, ask)
    if not finished:
        old = operator.key  # its passphrase is asked for first
        passphrase = new() if new else b""
        with locked(path / revocations.LOCK), locked(path / LOCK):
            operator.check_current()
            _write(operator, old, passphrase)
        operator = open_operator(path, new)
    return Rotated(operator, finished)


def _write(operator: OperatorHome, old: SigningKey, passphrase: bytes) -> None:
    """Make the next key, and the succession to it."""
    last = operator.delegated()
    if last is None:
        raise ConfigError(f"{operator.path}: has signed for no server yet: there is nothing to hand over")
    key = SigningKey.generate()
    write_key(operator.path / NEXT_KEY_FILE, key, passphrase)  # over one of a change that never came to count
    public, fleet = bytes(key.verify_key), operator.fleet
    tokens, blob = succession.write_tokens(bytes.fromhex(line.split()[0]) for line in operator.issued())
    before = operator.succession.checked.signed_links if operator.succession else ()
    now = int(time.time())
    delegation = identity.issue_delegation(
        *(key, fleet, last.aggregator_key, max(now, last.version + 1), now + DELEGATION_SECONDS)
    )
    policy = msgspec.structs.replace(operator.policy, version=operator.policy_version() + 1)
    head, revoked = b"", b""
    listed = revocations.read_kept(operator)
    if listed is not None:
        head, revoked = sign_list(listed.entries, listed.version + 1, key, fleet)
    words = Succession(
        links=[*before, succession.sign_link(old, fleet, len(before) + 1, public, blob)],
        delegation=delegation,
        policy=sign_policy(policy, key, fleet),
        revocations=head,
    )
    data = cbor.encode([succession.sign_succession(words, key, fleet), tokens, revoked])
    decode(data, operator_key=operator.public_key, fleet=fleet)  # nothing is changed that somebody would refuse
    replace(operator.path / FILE, data)
