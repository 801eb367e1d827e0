"""The operator's side of requests: says in words what is asked, and signs it.

Who asks for tokens or a revocation must be the aggregator that this operator has signed for last. A request that was
answered gets the same answer again, so that nothing is signed twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from covey_aggregator.files import PRIVATE, make_private_folder, replace
from covey_aggregator.home import day
from covey_aggregator.operator import DELEGATION_SECONDS, SIGNED_DELEGATION, OperatorHome
from covey_aggregator.requests import (
    Reply,
    Request,
    WantsDelegation,
    WantsRevocation,
    WantsTokens,
    read_reply,
    read_request,
    reply_text,
)
from covey_aggregator.revocations import SignedList, read_kept, revoke
from covey_protocol import provisioning, topics
from covey_protocol.digest import short
from covey_protocol.errors import ConfigError, PeerError

ANSWERS, BUNDLES = "answers", "bundles"
_SHOWN = 20


@dataclass(frozen=True)
class Asked:
    """A request that may be signed.

    Attributes:
        path: Where it came from.
        request: What is asked.
        digest: By what it goes.
        answered: Whether it was signed before.
        words: What is asked, one line each.
    """

    path: Path
    request: Request
    digest: bytes
    answered: bool
    words: tuple[str, ...]


def look(operator: OperatorHome, path: Path) -> Asked:
    """Read a request and say in words what it asks; nothing is signed yet.

    Raises:
        ConfigError: It is none, asks another operator, or comes from an aggregator that may not ask this.
    """
    request, digest = read_request(path)
    if request.fleet != operator.fleet:
        raise ConfigError(f"{path}: is of fleet {request.fleet!r}, and {operator.path} is of fleet {operator.fleet!r}")
    if request.operator_key not in (*operator.former, operator.public_key):
        raise ConfigError(f"{path}: asks operator {short(request.operator_key)}, and not {short(operator.public_key)}")
    delegated = operator.delegated()
    wants = request.wants
    if not isinstance(wants, WantsDelegation) and (
        delegated is None or delegated.aggregator_key != request.aggregator_key
    ):
        raise ConfigError(
            f"{path}: comes from aggregator key {short(request.aggregator_key)}, which is not the one that "
            f"{operator.path} has signed for last"
        )
    if isinstance(wants, WantsTokens):
        for wanted in wants.devices:
            topics.check_device(wanted.device)
    if isinstance(wants, WantsRevocation):
        names = dict(line.split() for line in operator.issued())
        for entry in wants.entries:
            if names.get(entry.token.hex(), entry.device) != entry.device:
                raise ConfigError(f"{path}: calls the token of {names[entry.token.hex()]!r} that of {entry.device!r}")
    answered = _answer(operator, digest).exists()
    return Asked(path, request, digest, answered, tuple(_words(operator, request, answered)))


def sign(operator: OperatorHome, asked: Asked, folder: Path) -> list[Path]:
    """Sign a request; return the reply for the server and the bundles, which stay in the operator's home.

    Args:
        operator: Whose key signs.
        asked: What ``look`` has returned.
        folder: Where the reply goes.

    Raises:
        ConfigError: What was signed before is damaged, or the passphrase is wrong.
    """
    kept = _answer(operator, asked.digest)
    bundles: list[Path] = []
    if kept.exists():
        reply = read_reply(kept)
        if reply.operator_key != operator.public_key:
            raise ConfigError(f"{asked.path}: was answered before the operator's key was changed; ask anew")
    else:
        reply, bundles = _signed(operator, asked)
        make_private_folder(kept.parent)
        replace(kept, reply_text(reply).encode(), PRIVATE)
    path = folder / f"{asked.path.stem}.reply"
    folder.mkdir(parents=True, exist_ok=True)
    replace(path, reply_text(reply).encode())
    return [path, *bundles]


def sign_policy(operator: OperatorHome, folder: Path) -> Path:
    """Sign ``policy.yaml`` as it is, for all servers of the fleet; return the reply."""
    policy = operator.signed_policy()
    reply = Reply(fleet=operator.fleet, operator_key=operator.public_key, policy=policy)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "policy.reply", reply_text(reply).encode())
    return folder / "policy.reply"


def _signed(operator: OperatorHome, asked: Asked) -> tuple[Reply, list[Path]]:
    request, key = asked.request, asked.request.aggregator_key
    delegation, tokens, bundles, listed = b"", [], [], read_kept(operator)
    match request.wants:
        case WantsDelegation() as wants:
            delegation = operator.delegate(key, wants.delegation)
        case WantsRevocation() as wants:
            listed = revoke(operator, wants.entries, _known(operator, asked, wants))
        case WantsTokens() as wants:
            make_private_folder(operator.path / BUNDLES)
            for wanted in wants.devices:
                bundle = operator.provision(
                    wanted.device,
                    profile=wants.profile,
                    seconds=wants.seconds,
                    delegation=operator.kept(SIGNED_DELEGATION),
                    broker=wanted.broker,
                    revocations=listed.signed if listed else b"",
                )
                path = operator.path / BUNDLES / f"{wanted.device}.bundle"
                replace(path, provisioning.encode(bundle).encode() + b"\n", PRIVATE)
                tokens.append(bundle.token)
                bundles.append(path)
    known_policy = request.wants.policy if isinstance(request.wants, WantsDelegation) else 0
    reply = Reply(
        fleet=operator.fleet,
        operator_key=operator.public_key,
        aggregator_key=key,
        request=asked.digest,
        delegation=delegation,
        policy=operator.signed_policy(known_policy),
        tokens=tokens,
        head=listed.signed if listed else b"",
        body=listed.body if listed else b"",
        # For a server that has not heard of it yet.
        succession=operator.succession.encoded()
        if operator.succession and request.operator_key != operator.public_key
        else b"",
    )
    return reply, bundles


def _known(operator: OperatorHome, asked: Asked, wants: WantsRevocation) -> SignedList | None:
    if not wants.head or asked.request.operator_key != operator.public_key:  # a list of a key before is void
        return None
    try:
        return SignedList.read(wants.head, wants.body, operator_key=operator.public_key, fleet=operator.fleet)
    except PeerError as error:
        raise ConfigError(f"{asked.path}: the revocation list in it: {error}") from error


def _words(operator: OperatorHome, request: Request, answered: bool) -> list[str]:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(request.made))
    lines = [f"of fleet {request.fleet}, by aggregator key {short(request.aggregator_key)}, made {made}:"]
    delegated = operator.delegated()
    match request.wants:
        case WantsDelegation():
            end = day(int(time.time()) + DELEGATION_SECONDS)
            lines.append(f"make {request.aggregator_key.hex()} the key of the fleet's aggregator, until {end}")
            if delegated is not None and delegated.aggregator_key != request.aggregator_key and not answered:
                lines.append(f"IN PLACE OF KEY {delegated.aggregator_key.hex()}, which then counts no longer")
        case WantsRevocation() as wants:
            had = {line.split()[0] for line in operator.issued()}
            lines += _some(
                [
                    f"shut out {entry.device} for good ({entry.reason})"
                    + ("" if entry.token.hex() in had else " (A TOKEN THAT WAS NOT ISSUED BEFORE HERE)")
                    for entry in wants.entries
                ]
            )
        case WantsTokens() as wants:
            named = {line.split()[-1] for line in operator.issued()}
            span = f"good until {day(int(time.time()) + wants.seconds)}" if wants.seconds else "good for ever"
            lines.append(f"invite {len(wants.devices)} with profile {wants.profile}; bundles {span}:")
            lines += _some(
                [
                    each.device + (" (WAS INVITED BEFORE)" if each.device in named and not answered else "")
                    for each in wants.devices
                ]
            )
    return [*lines, "answered before: it gets the same reply again"] if answered else lines


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    # What is out of the ordinary is always shown.
    ordered = sorted(lines, key=lambda line: "BEFORE" not in line)
    return [f"  {line}" for line in ordered[:_SHOWN]] + ([f"  and {more} more"] if more > 0 else [])


def _answer(operator: OperatorHome, digest: bytes) -> Path:
    return operator.path / ANSWERS / f"{digest.hex()}.reply"
