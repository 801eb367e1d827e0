"""Who is who: operator, token, device, aggregator.

::

    operator key ──signs──> token (key, device name, fleet, profile, expiry) ──endorses──> device key ──renews──> …
                 ──signs──> delegation (the aggregator's key)
                 ──signs──> policy (floors that no aggregator can lower)

Every peer can check the chain from a device key up to the operator key it was provisioned with. The aggregator holds no
operator key, so it cannot mint identities; one token yields one identity, because whoever meets a second key under the
same token refuses it (``PinnedKeys``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from nacl.signing import SigningKey

from covey_protocol import envelope, topics
from covey_protocol.digest import DIGEST_BYTES, digest, short
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, RefusedError, SignatureError, StaleError
from covey_protocol.payload import Digest, Key, Name, Payload, prepare, read, write

OPERATOR = "operator"
AGGREGATOR = "aggregator"
_MAX_CERTIFICATE_BYTES = 2048
RENEWALS_MAX = 16
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


class Renewal(Payload, frozen=True, kw_only=True):
    """A device key's word for the key that follows it; ``generation`` counts from 1."""

    device_key: Key
    generation: Annotated[int, msgspec.Meta(ge=1, le=RENEWALS_MAX)]


class Chain(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """A device's identity as it travels: the two signed certificates, and one for every change of its key since."""

    token: bytes
    endorsement: bytes
    renewals: Annotated[list[bytes], msgspec.Meta(max_length=RENEWALS_MAX)] = msgspec.field(default_factory=list)


class Delegation(Payload, frozen=True, kw_only=True):
    """The operator's word for the aggregator's signing key; ``version`` only ever grows."""

    aggregator_key: Key
    version: Time
    not_after: Time


@dataclass(frozen=True)
class Former:
    """Operator keys of before, and which of their tokens still count; see ``succession``.

    Attributes:
        keys: The public keys.
        listed: The tokens' digests, in their order, in one string; None where all count, as an auditor may choose.
    """

    keys: tuple[bytes, ...] = ()
    listed: bytes | None = field(default=b"", repr=False)

    def counts(self, token: bytes) -> bool:
        """Whether the token of this digest counts though a former key has signed it."""
        if self.listed is None:
            return True
        low, high = 0, len(self.listed) // DIGEST_BYTES
        while low < high:
            middle = (low + high) // 2
            if self.listed[middle * DIGEST_BYTES : (middle + 1) * DIGEST_BYTES] < token:
                low = middle + 1
            else:
                high = middle
        return self.listed[low * DIGEST_BYTES : (low + 1) * DIGEST_BYTES] == token


NO_FORMER = Former()


@dataclass(frozen=True)
class DeviceIdentity:
    """A checked chain.

    Attributes:
        name: The device.
        key: Its present key.
        token: Digest of the token: the slot that one identity fills.
        profile: Its firmware profile.
        former: The keys that it had before, oldest first.
    """

    name: str
    key: bytes
    token: bytes
    profile: str
    former: tuple[bytes, ...] = ()

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys that it has had, the present one last."""
        return (*self.former, self.key)


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


def renew(chain: Chain, old: SigningKey, fleet: str, device: str, new_key: bytes) -> Chain:
    """Return the chain of a device that changes its key: the old one signs for the new.

    Raises:
        ConfigError: It has done so too often; the operator has to enrol it anew.
    """
    if len(chain.renewals) >= RENEWALS_MAX:
        raise ConfigError(f"{device!r} has changed its key {RENEWALS_MAX} times: enrol it anew, under another name")
    body = write(Renewal(device_key=new_key, generation=len(chain.renewals) + 1))
    context = _renewal_context(fleet, device, chain.token)
    renewals = [*chain.renewals, envelope.sign(body, context, old)]
    return Chain(token=chain.token, endorsement=chain.endorsement, renewals=renewals)


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


def read_token(
    data: bytes, *, operator_key: bytes, fleet: str, device: str, now: int | None = None, former: Former = NO_FORMER
) -> Token:
    """Return the token once the operator's signature holds; arguments and errors as ``verify_chain``."""
    context = _context(fleet, "token", OPERATOR, device)
    token = read(Token, _signed_by_operator(data, context, operator_key, former))
    if token.device != device:
        raise SignatureError(f"token is for {token.device!r}, not for {device!r}", cause="chain")
    _check_expiry(f"token of {device!r}", token.not_after, now)
    return token


def verify_chain(
    chain: Chain,
    *,
    operator_key: bytes,
    fleet: str,
    device: str,
    now: int | None = None,
    former: Former = NO_FORMER,
) -> DeviceIdentity:
    """Follow operator → token → device key → the keys that followed it.

    Args:
        chain: The certificates.
        operator_key: The trust anchor from the provisioning bundle.
        fleet: The fleet that both certificates must name.
        device: The name that the sender goes by.
        now: Unix seconds for the expiry check, or None where no trustworthy time is known.
        former: What counts of the operator's keys of before.

    Raises:
        SignatureError: A link does not hold; the message names the link and the device. With the cause
            ``former-operator`` if a key of before has signed the token and it is not one of those that count.
        MalformedError: A certificate is not what it should be.
    """
    token = read_token(chain.token, operator_key=operator_key, fleet=fleet, device=device, now=now, former=former)
    context = _context(fleet, "endorsement", device)
    body = envelope.open_signed(chain.endorsement, context, token.token_key, max_bytes=_MAX_CERTIFICATE_BYTES)
    keys = [read(Endorsement, body).device_key]
    for generation, data in enumerate(chain.renewals, 1):
        context = _renewal_context(fleet, device, chain.token)
        renewal = read(Renewal, envelope.open_signed(data, context, keys[-1], max_bytes=_MAX_CERTIFICATE_BYTES))
        if renewal.generation != generation or renewal.device_key in keys:
            raise SignatureError(f"the changes of {device!r}'s key are not in order", cause="chain")
        keys.append(renewal.device_key)
    return DeviceIdentity(device, keys[-1], token_id(chain.token), token.profile, tuple(keys[:-1]))


def token_id(token: bytes) -> Digest:
    """Return the digest that names a token's slot.

    Over the signed payload, not the signature: Ed25519 lets a signer write many signatures for one token.
    """
    return digest(envelope.parse(token, max_bytes=_MAX_CERTIFICATE_BYTES).payload, person=b"covey-token")


class PinnedKeys:
    """Which keys each token has been seen with, in the order in which each signed for the next; the first ones stay.

    Args:
        pins: What ``pinned`` has returned, by token.
    """

    def __init__(self, pins: dict[bytes, bytes] | None = None) -> None:
        self._pins: dict[bytes, tuple[bytes, ...]] = {}
        self._tokens: dict[bytes, list[bytes]] = {}
        for token, keys in (pins or {}).items():
            self._bind(token, tuple(keys[at : at + 32] for at in range(0, len(keys), 32)))

    def tokens_of(self, key: bytes) -> list[bytes]:
        """Return the tokens that a key was seen with."""
        return self._tokens.get(key, [])

    def pinned(self, token: bytes) -> bytes:
        """Return a token's keys in one string, as they are kept."""
        return b"".join(self._pins.get(token, ()))

    def check(self, identity: DeviceIdentity) -> None:
        """Refuse an identity whose keys are not those that this token was seen with, or follow them.

        Raises:
            RefusedError: The token was used for two keys, or one key has signed for two; both are named.
            StaleError: It shows a key that another one has followed.
        """
        pinned = self._pins.get(identity.token, ())
        for known, shown in zip(pinned, identity.keys, strict=False):
            if known != shown:
                raise RefusedError(
                    f"token of {identity.name!r} is bound to key {short(known)} and was also used "
                    f"for key {short(shown)}",
                    cause="second-key",
                )
        if len(pinned) > len(identity.keys):
            raise StaleError(
                f"{identity.name!r} shows key {short(identity.key)}, which {short(pinned[-1])} has followed",
                cause="former-key",
            )

    def pin(self, identity: DeviceIdentity) -> None:
        """Bind token to keys, after ``check``."""
        self.check(identity)
        self._bind(identity.token, identity.keys)

    def _bind(self, token: bytes, keys: tuple[bytes, ...]) -> None:
        for key in keys[len(self._pins.get(token, ())) :]:
            self._tokens.setdefault(key, []).append(token)
        self._pins[token] = keys


def _signed_by_operator(data: bytes, context: Context, operator_key: bytes, former: Former) -> bytes:
    """Return a token's payload, signed by the operator's key, or by one of before if it is one of those that count."""
    message = envelope.parse(data, max_bytes=_MAX_CERTIFICATE_BYTES)
    try:
        return envelope.verify(message, context, operator_key)
    except SignatureError:
        signer = next((key for key in former.keys if _is_by(message, context, key)), None)
        if signer is None:
            raise
    if not former.counts(token_id(data)):
        raise SignatureError(
            f"token of {context.recipient!r} is by the operator's former key {short(signer)}, and not on the list of "
            "those that it had signed when it was changed",
            cause="former-operator",
        )
    return message.payload


def _is_by(message: envelope.Envelope, context: Context, key: bytes) -> bool:
    try:
        envelope.verify(message, context, key)
    except SignatureError:
        return False
    return True


def _check_expiry(what: str, not_after: int, now: int | None) -> None:
    if now is not None and not_after and now > not_after:
        raise SignatureError(f"{what} expired at Unix time {not_after}", cause="expired")


def _renewal_context(fleet: str, device: str, token: bytes) -> Context:
    return _context(fleet, "renewal", device).with_(roster=token_id(token))


def _context(fleet: str, kind: str, sender: str, recipient: str = "") -> Context:
    topics.check_name(fleet, "fleet")
    return Context(fleet=fleet, kind=kind, sender=sender, recipient=recipient)


prepare(globals())
