"""covey_protocol.identity: operator → token → device, and every way to break a link."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from nacl.bindings import (
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_scalarmult_ed25519_base_noclamp,
)
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, SERVER, make_chain, signing_key
from tests.protocol.rig import OPERATOR as OPERATOR_KEY

from covey_protocol import cbor, envelope, identity
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, MalformedError, PeerError, RefusedError, SignatureError
from covey_protocol.identity import OPERATOR, Chain, DeviceIdentity, Endorsement, PinnedKeys, Token
from covey_protocol.payload import write

NAME = "pi-0"
ANCHOR = bytes(OPERATOR_KEY.verify_key)
CHAIN = make_chain(NAME)


def verify(chain: Chain = CHAIN, *, device: str = NAME, fleet: str = FLEET, now: int | None = None) -> DeviceIdentity:
    return identity.verify_chain(chain, operator_key=ANCHOR, fleet=fleet, device=device, now=now)


def cause(chain: Chain = CHAIN, *, device: str = NAME, fleet: str = FLEET, now: int | None = None) -> str:
    with pytest.raises(SignatureError) as caught:
        verify(chain, device=device, fleet=fleet, now=now)
    return caught.value.cause


def test_a_good_chain() -> None:
    who = verify()
    assert (who.name, who.key, who.profile) == (NAME, bytes(signing_key(NAME).verify_key), "pi-4")
    assert who.token == identity.token_id(CHAIN.token)


def test_another_operators_token() -> None:
    assert cause(make_chain(NAME, operator=signing_key("impostor"))) == "signature"


def test_the_aggregator_cannot_issue_tokens() -> None:
    assert cause(make_chain(NAME, operator=SERVER)) == "signature"


def test_another_fleet() -> None:
    assert cause(make_chain(NAME, fleet="moor")) == "signature"
    assert cause(fleet="moor") == "signature"


def test_another_device() -> None:
    assert cause(device="pi-1") == "signature"
    # Each certificate is bound to the device by itself.
    other = make_chain("pi-1")
    assert cause(Chain(token=CHAIN.token, endorsement=other.endorsement)) == "signature"
    assert cause(Chain(token=other.token, endorsement=CHAIN.endorsement)) == "signature"


def test_a_token_whose_payload_names_another_device() -> None:
    token = Token(token_key=bytes(signing_key("token pi-0").verify_key), device="pi-1", profile="pi-4", not_after=0)
    context = Context(fleet=FLEET, kind="token", sender=OPERATOR, recipient=NAME)
    forged = envelope.sign(write(token), context, OPERATOR_KEY)
    assert cause(Chain(token=forged, endorsement=CHAIN.endorsement)) == "chain"


def test_an_endorsement_by_another_key() -> None:
    device_key = bytes(signing_key(NAME).verify_key)
    for key in (signing_key("thief"), signing_key(NAME), OPERATOR_KEY):
        endorsement = identity.endorse(key, FLEET, NAME, device_key)
        assert cause(Chain(token=CHAIN.token, endorsement=endorsement)) == "signature"


def test_certificates_of_other_kinds_do_not_pass() -> None:
    assert cause(Chain(token=CHAIN.endorsement, endorsement=CHAIN.endorsement)) == "signature"
    assert cause(Chain(token=CHAIN.token, endorsement=CHAIN.token)) == "signature"
    delegation = identity.issue_delegation(OPERATOR_KEY, FLEET, bytes(32), 1, 0)
    assert cause(Chain(token=delegation, endorsement=CHAIN.endorsement)) == "signature"


def test_changed_certificates() -> None:
    for field in ("token", "endorsement"):
        data = getattr(CHAIN, field)
        for at in range(0, len(data), 7):
            changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            with pytest.raises(PeerError):
                verify(msgspec.structs.replace(CHAIN, **{field: changed}))


def test_certificates_are_small() -> None:
    token = envelope.sign(
        bytes(2100), Context(fleet=FLEET, kind="token", sender=OPERATOR, recipient=NAME), OPERATOR_KEY
    )
    with pytest.raises(MalformedError):
        verify(Chain(token=token, endorsement=CHAIN.endorsement))


def test_expiry() -> None:
    chain = make_chain(NAME, not_after=1000)
    assert verify(chain, now=1000).name == NAME
    assert cause(chain, now=1001) == "expired"
    assert verify(chain, now=None).name == NAME  # a Pi has no clock it could trust
    assert verify(make_chain(NAME, not_after=0), now=2**40).name == NAME


def test_delegation() -> None:
    def check(data: bytes, operator_key: bytes = ANCHOR, fleet: str = FLEET, now: int | None = None) -> bytes:
        return identity.verify_delegation(data, operator_key=operator_key, fleet=fleet, now=now).aggregator_key

    key = bytes(SERVER.verify_key)
    data = identity.issue_delegation(OPERATOR_KEY, FLEET, key, 3, 1000)
    assert check(data, now=1000) == key
    with pytest.raises(SignatureError, match="expired"):
        check(data, now=1001)
    with pytest.raises(SignatureError):
        check(data, fleet="moor")
    with pytest.raises(SignatureError):
        check(data, operator_key=key)
    with pytest.raises(SignatureError):
        check(identity.issue_delegation(SERVER, FLEET, key, 3, 0))  # by itself
    with pytest.raises(SignatureError):
        check(CHAIN.token)


def test_a_second_key_for_one_token() -> None:
    pins = PinnedKeys()
    pins.pin(verify())
    pins.pin(verify())
    token_key, second = signing_key("token pi-0"), bytes(signing_key("second").verify_key)
    other = verify(Chain(token=CHAIN.token, endorsement=identity.endorse(token_key, FLEET, NAME, second)))
    assert other.token == verify().token
    for act in (pins.check, pins.pin):
        with pytest.raises(RefusedError, match=second.hex()[:12]) as caught:
            act(other)
        assert caught.value.cause == "second-key"
        assert verify().key.hex()[:12] in str(caught.value)
    pins.check(verify())  # the first key stays


def test_pins_survive_a_restart() -> None:
    pins = PinnedKeys({verify().token: bytes(32)})
    with pytest.raises(RefusedError):
        pins.check(verify())


def test_one_token_is_one_slot_however_it_is_signed() -> None:
    # The same claims under another valid signature: whoever holds the operator key can make many of them.
    context = Context(fleet=FLEET, kind="token", sender=OPERATOR, recipient=NAME)
    parsed = envelope.parse(CHAIN.token)
    other = resign(parsed.payload, context, OPERATOR_KEY)
    assert other != CHAIN.token
    again = verify(Chain(token=other, endorsement=CHAIN.endorsement))
    assert again.token == verify().token


def resign(payload: bytes, context: Context, key: SigningKey) -> bytes:
    """Sign with another nonce than Ed25519's deterministic one (RFC 8032, section 5.1.6, with r chosen freely)."""
    secret = bytearray(hashlib.sha512(bytes(key)).digest()[:32])
    secret[0] &= 248
    secret[31] = (secret[31] & 127) | 64
    scalar = crypto_core_ed25519_scalar_reduce(bytes(secret) + bytes(32))
    protected = cbor.encode({1: -8})
    message = cbor.encode(["Signature1", protected, context.encoded(), payload])
    nonce = crypto_core_ed25519_scalar_reduce(bytes([7]) * 64)
    point = crypto_scalarmult_ed25519_base_noclamp(nonce)
    challenge = crypto_core_ed25519_scalar_reduce(hashlib.sha512(point + bytes(key.verify_key) + message).digest())
    response = crypto_core_ed25519_scalar_add(nonce, crypto_core_ed25519_scalar_mul(challenge, scalar))
    return b"\xd2" + cbor.encode([protected, {"at": ["", 0, 0]}, payload, point + response])


def test_fleet_names_are_checked_where_they_are_made() -> None:
    with pytest.raises(ConfigError):
        make_chain(NAME, fleet="A Meadow")


def test_an_endorsement_holds_a_key_of_32_bytes() -> None:
    context = Context(fleet=FLEET, kind="endorsement", sender=NAME)
    body = cbor.encode({"device_key": bytes(31)})
    with pytest.raises(MalformedError):
        verify(Chain(token=CHAIN.token, endorsement=envelope.sign(body, context, signing_key("token pi-0"))))
    assert Endorsement(device_key=bytes(32))
