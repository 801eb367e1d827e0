"""Who is who: operator, token, device, aggregator.

::

    operator key ──signs──> token (key, device name, fleet, profile, expiry) ──endorses──> device key
                 ──signs──> delegation (the aggregator's key)
                 ──signs──> policy (floors that no aggregator can lower)

Every peer can check the chain from a device key up to the operator key it was provisioned with. The aggregator holds no
operator key, so it cannot mint identities; one token yields one identity, because whoever meets a second key under the
same token refuses it (``PinnedKeys``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.digest import digest, short
from covey_protocol.envelope import Context
from covey_protocol.errors import RefusedError, SignatureError
from covey_protocol.payload import Digest, Key, Name, Payload, prepare, read, write

OPERATOR = "operator"
AGGREGATOR = "aggregator"
_MAX_CERTIFICATE_BYTES = 2048
Time = Annotated[int, msgspec.Meta(ge=0)]


class Token(Payload, frozen=True, kw_only=True):
    """An operator's permission for one device to join; ``not_after`` in Unix seconds, 0 for never."""

    token_key: Key
    device: Name
    profile: Name
    not_after: Time


class Endorsement(Payload, frozen=True, kw_only=True):
    """The token key's word for the key that the device made for itself."""

    device_key: Key


class Chain(Payload, frozen=True, kw_only=True):
    """A device's identity as it travels: the two signed certificates."""

    token: bytes
    endorsement: bytes


class Delegation(Payload, frozen=True, kw_only=True):
    """The operator's word for the aggregator's signing key; ``version`` only ever grows."""

    aggregator_key: Key
    version: Time
    not_after: Time


@dataclass(frozen=True)
class DeviceIdentity:
    """A checked chain."""

    name: str
    key: bytes
    token: bytes  # digest of the token: the slot that one identity fills
    profile: str


def issue_token(
    operator: SigningKey, fleet: str, device: str, *, token_key: bytes, profile: str, not_after: int
) -> bytes:
    """Return a token signed by the operator for a token key whose secret half goes into the provisioning bundle."""
    token = Token(token_key=token_key, device=device, profile=profile, not_after=not_after)
    return envelope.sign(write(token), _context(fleet, "token", OPERATOR, device), operator)


def endorse(token_secret: SigningKey, fleet: str, device: str, device_key: bytes) -> bytes:
    """Return the endorsement of a device key by its token key."""
    body = write(Endorsement(device_key=device_key))
    return envelope.sign(body, _context(fleet, "endorsement", device), token_secret)


def issue_delegation(operator: SigningKey, fleet: str, key: bytes, version: int, not_after: int) -> bytes:
    """Return the operator's delegation to an aggregator key."""
    body = write(Delegation(aggregator_key=key, version=version, not_after=not_after))
    return envelope.sign(body, _context(fleet, topics.DELEGATION, OPERATOR), operator)


def verify_delegation(data: bytes, *, operator_key: bytes, fleet: str, now: int | None = None) -> Delegation:
    """Return the delegation once the operator's signature holds.

    Args:
        now: Unix seconds for the expiry check, or None where no trustworthy time is known.

    Raises:
        SignatureError: The operator did not sign it, or it has expired.
        MalformedError: It is not a delegation.
    """
    context = _context(fleet, topics.DELEGATION, OPERATOR)
    delegation = read(Delegation, envelope.open_signed(data, context, operator_key, max_bytes=_MAX_CERTIFICATE_BYTES))
    _check_expiry("the aggregator's delegation", delegation.not_after, now)
    return delegation


def read_token(data: bytes, *, operator_key: bytes, fleet: str, device: str, now: int | None = None) -> Token:
    """Return the token once the operator's signature holds; errors as ``verify_chain``."""
    context = _context(fleet, "token", OPERATOR, device)
    token = read(Token, envelope.open_signed(data, context, operator_key, max_bytes=_MAX_CERTIFICATE_BYTES))
    if token.device != device:
        raise SignatureError(f"token is for {token.device!r}, not for {device!r}", cause="chain")
    _check_expiry(f"token of {device!r}", token.not_after, now)
    return token


def verify_chain(
    chain: Chain, *, operator_key: bytes, fleet: str, device: str, now: int | None = None
) -> DeviceIdentity:
    """Follow operator → token → device key.

    Args:
        chain: The two certificates.
        operator_key: The trust anchor from the provisioning bundle.
        fleet: The fleet that both certificates must name.
        device: The name that the sender goes by.
        now: Unix seconds for the expiry check, or None where no trustworthy time is known.

    Raises:
        SignatureError: A link does not hold; the message names the link and the device.
        MalformedError: A certificate is not what it should be.
    """
    token = read_token(chain.token, operator_key=operator_key, fleet=fleet, device=device, now=now)
    context = _context(fleet, "endorsement", device)
    body = envelope.open_signed(chain.endorsement, context, token.token_key, max_bytes=_MAX_CERTIFICATE_BYTES)
    key = read(Endorsement, body).device_key
    return DeviceIdentity(device, key, token_id(chain.token), token.profile)


def token_id(token: bytes) -> Digest:
    """Return the digest that names a token's slot.

    Over the signed payload, not the signature: Ed25519 lets a signer write many signatures for one token.
    """
    return digest(envelope.parse(token, max_bytes=_MAX_CERTIFICATE_BYTES).payload, person=b"covey-token")


class PinnedKeys:
    """Which key each token has been seen with; the first one stays."""

    def __init__(self, pins: dict[bytes, bytes] | None = None) -> None:
        self._pins: dict[bytes, bytes] = {}
        self._tokens: dict[bytes, list[bytes]] = {}
        for token, key in (pins or {}).items():
            self._bind(token, key)

    def tokens_of(self, key: bytes) -> list[bytes]:
        """Return the tokens that a key was seen with."""
        return self._tokens.get(key, [])

    def check(self, identity: DeviceIdentity) -> None:
        """Raise RefusedError, naming both keys, if this token is already bound to another key."""
        pinned = self._pins.get(identity.token)
        if pinned is not None and pinned != identity.key:
            raise RefusedError(
                f"token of {identity.name!r} is bound to key {short(pinned)} and was also used "
                f"for key {short(identity.key)}",
                cause="second-key",
            )

    def pin(self, identity: DeviceIdentity) -> None:
        """Bind token to key, after ``check``."""
        self.check(identity)
        self._bind(identity.token, identity.key)

    def _bind(self, token: bytes, key: bytes) -> None:
        if token not in self._pins:
            self._pins[token] = key
            self._tokens.setdefault(key, []).append(token)


def _check_expiry(what: str, not_after: int, now: int | None) -> None:
    if now is not None and not_after and now > not_after:
        raise SignatureError(f"{what} expired at Unix time {not_after}", cause="expired")


def _context(fleet: str, kind: str, sender: str, recipient: str = "") -> Context:
    topics.check_name(fleet, "fleet")
    return Context(fleet=fleet, kind=kind, sender=sender, recipient=recipient)


prepare(globals())
