"""The server's side of requests: writes them, and takes in what the operator has signed.

A reply is checked whole before anything of it is used. What is in place already is left alone, so a reply may be taken
in as often as one likes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nacl.signing import SigningKey

from covey_aggregator.files import replace
from covey_aggregator.home import (
    NEXT_KEY_FILE,
    POLICY_FILE,
    REQUESTS,
    ServerHome,
    day,
    next_key,
    open_server,
    take_delegation,
    take_succession,
)
from covey_aggregator.requests import (
    Reply,
    Request,
    Wanted,
    WantsDelegation,
    WantsRevocation,
    WantsTokens,
    leave_request,
    read_reply,
    read_request,
    request_digest,
)
from covey_aggregator.revocations import SignedList, read_stored, settle
from covey_aggregator.store import Store
from covey_aggregator.tls_home import TlsHome, has_tls
from covey_protocol import envelope, identity
from covey_protocol.digest import short
from covey_protocol.errors import ConfigError, CoveyError
from covey_protocol.identity import Delegation, Token
from covey_protocol.payload import read
from covey_protocol.policy import Policy, verify_policy
from covey_protocol.revocation import Revocation


def ask_delegation(server: ServerHome, key: SigningKey | None = None) -> Path:
    """Write a request for a delegation and the newest policy; return its file.

    Args:
        server: Who asks.
        key: The key to be signed for, if not the present one.
    """
    own = key or server.key
    held = server.policy.version if server.signed_policy else 0
    wants = WantsDelegation(delegation=server.word.version if server.word else 0, policy=held)
    return leave_request(server.path / REQUESTS, "delegation", _request(server, own, wants), own)


def ask_tokens(server: ServerHome, devices: list[Wanted], profile: str, seconds: int) -> Path:
    """Write a request for tokens; return its file."""
    request = _request(server, server.key, WantsTokens(profile=profile, seconds=seconds, devices=devices))
    name = f"tokens-{devices[0].device}-{short(request_digest(request))}"
    return leave_request(server.path / REQUESTS, name, request, server.key)


def ask_revocation(server: ServerHome, entries: list[Revocation], known: SignedList | None) -> Path:
    """Write a request for a revocation; return its file."""
    head, body = (known.signed, known.body) if known else (b"", b"")
    request = _request(server, server.key, WantsRevocation(entries=entries, head=head, body=body))
    return leave_request(server.path / REQUESTS, f"revoke-{entries[0].device}", request, server.key)


def accept(server: ServerHome, store: Store, path: Path) -> list[str]:
    """Take in a reply.

    Returns:
        What has changed, in words; nothing where all was in place.

    Raises:
        ConfigError: It is for another fleet, operator or server, something in it is not the operator's, or the operator
            has signed two different things under one version.
    """
    reply = read_reply(path)
    said = []
    if reply.succession and reply.fleet == server.fleet:
        said = take_succession(server, reply.succession, str(path))
        server = open_server(server.path, waiting=True)
        settle(store, operator_key=server.operator_key, fleet=server.fleet, succession=server.succession)
    checked = _checked(server, reply, path)
    known = read_stored(store, operator_key=server.operator_key, fleet=server.fleet, succession=server.succession)
    if checked.policy is not None and _newer(server, checked.policy, path):
        replace(server.path / POLICY_FILE, reply.policy)
        said.append(f"policy {checked.policy.version} is in place")
    if checked.delegation is not None and _follows(server, checked.delegation, path):
        take_delegation(server.path, reply.delegation)
        said.append(f"the delegation is in place, until {day(checked.delegation.not_after)}")
    issued = store.tokens()
    for data, token in zip(reply.tokens, checked.tokens, strict=True):
        if identity.token_id(data) not in issued:
            store.invite(token.device, token.profile, token.not_after, identity.token_id(data))
            said.append(f"{token.device} is invited; its bundle is with the operator")
    if checked.listed is not None:
        said += take_list(server, store, checked.listed, known, str(path))
    _clear(server, reply.request)
    return said


def take_list(
    server: ServerHome, store: Store, found: SignedList, known: SignedList | None, where: str = ""
) -> list[str]:
    """Put a newer revocation list in place, and the certificates of those on it on the broker's.

    Raises:
        ConfigError: The operator has signed two lists of one version.
    """
    if known is not None and known.version >= found.version:
        if known.version == found.version and known.head.entries != found.head.entries:
            raise ConfigError(f"{where}: the operator has signed two revocation lists of version {found.version}")
        return []
    before = {entry.token for entry in known.entries} if known else set()
    added = [entry for entry in found.entries if entry.token not in before]
    shut_out(server, store, {entry.device for entry in added})
    store.put_revocations(found.version, found.signed, found.body)
    return [f"{entry.device} is revoked: list {found.version} with {len(found.entries)} entries" for entry in added]


def shut_out(server: ServerHome, store: Store, names: Iterable[str]) -> int:
    """Put devices' certificates on the list that the broker reads; return how many are on it."""
    if not has_tls(server.path):
        return 0
    tls, now = TlsHome(server.path, store), int(time.time())
    return sum(tls.revoke(name, now) for name in sorted(names))


class _Checked(NamedTuple):
    delegation: Delegation | None
    policy: Policy | None
    tokens: list[Token]
    listed: SignedList | None


def _checked(server: ServerHome, reply: Reply, path: Path) -> _Checked:
    if reply.fleet != server.fleet:
        raise ConfigError(f"{path}: is for fleet {reply.fleet!r}, and {server.path} is of fleet {server.fleet!r}")
    if reply.operator_key != server.operator_key:
        raise ConfigError(
            f"{path}: is of operator {short(reply.operator_key)}, and {server.path} is operator "
            f"{short(server.operator_key)}'s"
        )
    own = [bytes(server.key.verify_key)]
    if (server.path / NEXT_KEY_FILE).exists():
        own.append(bytes(next_key(server.path).verify_key))
    if reply.aggregator_key and reply.aggregator_key not in own:
        raise ConfigError(
            f"{path}: is for aggregator key {short(reply.aggregator_key)}, and {server.path} has {short(own[0])}"
        )
    key, fleet = server.operator_key, server.fleet
    try:
        delegation = (
            identity.verify_delegation(reply.delegation, operator_key=key, fleet=fleet) if reply.delegation else None
        )
        policy = verify_policy(reply.policy, operator_key=key, fleet=fleet) if reply.policy else None
        tokens = [_token(data, server) for data in reply.tokens]
        listed = SignedList.read(reply.head, reply.body, operator_key=key, fleet=fleet) if reply.head else None
    except CoveyError as error:
        raise ConfigError(f"{path}: {error}") from error
    if delegation is not None and delegation.aggregator_key not in own:
        raise ConfigError(f"{path}: its delegation is for another key than {server.path} has")
    return _Checked(delegation, policy, tokens, listed)


def _token(data: bytes, server: ServerHome) -> Token:
    name = read(Token, envelope.parse(data).payload).device
    return identity.read_token(
        data, operator_key=server.operator_key, fleet=server.fleet, device=name, former=server.former
    )


def _newer(server: ServerHome, policy: Policy, path: Path) -> bool:
    if not server.signed_policy:
        return True
    if policy.version == server.policy.version and policy != server.policy:
        raise ConfigError(f"{path}: the operator has signed two policies of version {policy.version}")
    return policy.version > server.policy.version


def _follows(server: ServerHome, delegation: Delegation, path: Path) -> bool:
    if server.word is None:
        return True
    if delegation.version == server.word.version and delegation != server.word:
        raise ConfigError(f"{path}: the operator has signed two delegations of version {delegation.version}")
    return delegation.version > server.word.version


def _request(server: ServerHome, key: SigningKey, wants: WantsDelegation | WantsTokens | WantsRevocation) -> Request:
    return Request(
        fleet=server.fleet,
        operator_key=server.operator_key,
        aggregator_key=bytes(key.verify_key),
        made=int(time.time()),
        wants=wants,
    )


def _clear(server: ServerHome, digest: bytes) -> None:
    """Remove the request that was answered: one for tokens holds TLS keys."""
    for path in sorted((server.path / REQUESTS).glob("*.request")) if digest else []:
        try:
            found = read_request(path)[1]
        except ConfigError:  # somebody else's file, or half a one
            continue
        if found == digest:
            path.unlink()
