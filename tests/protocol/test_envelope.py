"""covey_protocol.envelope: COSE_Sign1 that other libraries read and write, bound to one place by its context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycose.algorithms import EdDSA, Es256
from pycose.headers import KID, Algorithm
from pycose.keys.curves import Ed25519
from pycose.keys.okp import OKPKey
from pycose.messages.sign1message import Sign1Message
from tests.protocol.rig import signing_key

from covey_protocol import cbor, envelope
from covey_protocol.envelope import Context
from covey_protocol.errors import MalformedError, PeerError, SignatureError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "envelope.json").read_text())

KEY = signing_key("sender")
PUBLIC = bytes(KEY.verify_key)
CONTEXT = Context(
    fleet="meadow", kind="join", sender="pi-1", recipient="pi-2", task="digits", round=3, attempt=2, roster=b"r" * 32
)
PAYLOAD = cbor.encode({"x": 1})
SIGNED = envelope.sign(PAYLOAD, CONTEXT, KEY)


def parts(data: bytes = SIGNED) -> list[Any]:
    decoded = cbor.decode(data[1:], max_bytes=1000)
    assert isinstance(decoded, list)
    return decoded


def rebuilt(**changes: object) -> bytes:
    values = dict(zip(("protected", "unprotected", "payload", "signature"), parts(), strict=True))
    return b"\xd2" + cbor.encode(list({**values, **changes}.values()))


def cose_key() -> OKPKey:
    return OKPKey(crv=Ed25519, x=PUBLIC, d=bytes(KEY))


def test_round_trip() -> None:
    assert envelope.open_signed(SIGNED, CONTEXT, PUBLIC) == PAYLOAD
    parsed = envelope.parse(SIGNED)
    assert (parsed.payload, parsed.task, parsed.round, parsed.attempt) == (PAYLOAD, "digits", 3, 2)


@pytest.mark.parametrize("context", [CONTEXT, Context(fleet="meadow", kind="token", sender="operator")])
def test_pycose_verifies_what_we_sign(context: Context) -> None:
    # CoseMessage.decode of pycose 1.1 expects a list where cbor2 6 returns a tuple; it goes on here.
    message: Any = Sign1Message.from_cose_obj(
        parts(envelope.sign(PAYLOAD, context, KEY)), allow_unknown_attributes=True
    )
    message.key = cose_key()
    message.external_aad = context.encoded()
    assert message.payload == PAYLOAD
    assert message.get_attr(Algorithm) is EdDSA
    assert message.verify_signature()
    message.external_aad = context.with_(kind="other").encoded()
    assert not message.verify_signature()


def test_we_verify_what_pycose_signs() -> None:
    message = Sign1Message(phdr={Algorithm: EdDSA}, payload=PAYLOAD, external_aad=CONTEXT.encoded(), key=cose_key())
    # pycose has no way to name a private header; its encoding is cbor2's, so the header goes in behind it.
    protected, _, payload, signature = cbor2.loads(message.encode()).value
    data = cbor2.dumps(cbor2.CBORTag(18, [protected, {"at": ["digits", 3, 2]}, payload, signature]))
    assert envelope.open_signed(data, CONTEXT, PUBLIC) == PAYLOAD
    assert data == SIGNED  # Ed25519 is deterministic, and so is the encoding


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["context"]["kind"])
def test_vectors(vector: dict[str, Any]) -> None:
    context = Context(**{**vector["context"], "roster": bytes.fromhex(vector["context"]["roster"])})
    data, payload = bytes.fromhex(vector["message"]), bytes.fromhex(vector["payload"])
    assert context.encoded().hex() == vector["external_aad"]
    assert envelope.open_signed(data, context, bytes.fromhex(vector["public_key"])) == payload


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("fleet", "moor"),
        ("kind", "shares"),
        ("sender", "pi-3"),
        ("recipient", ""),
        ("recipient", "pi-3"),
        ("task", "letters"),
        ("round", 4),
        ("round", -1),
        ("attempt", 1),
        ("roster", b"s" * 32),
        ("roster", b""),
    ],
)
def test_nothing_can_be_replayed_in_another_place(field: str, other: object) -> None:
    elsewhere = CONTEXT.with_(**{field: other})
    with pytest.raises(SignatureError):
        envelope.open_signed(SIGNED, elsewhere, PUBLIC)
    # Nor after its header was made to fit.
    relabelled = rebuilt(unprotected={"at": [elsewhere.task, elsewhere.round, elsewhere.attempt]})
    with pytest.raises(SignatureError):
        envelope.open_signed(relabelled, elsewhere, PUBLIC)


def test_the_protocol_version_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "PROTOCOL", "covey/2")
    with pytest.raises(SignatureError):
        envelope.open_signed(SIGNED, CONTEXT, PUBLIC)


def test_neighbouring_fields_cannot_be_shifted() -> None:
    a, b = CONTEXT.with_(fleet="ab", task="c"), CONTEXT.with_(fleet="a", task="bc")
    assert a.encoded() != b.encoded()


@pytest.mark.parametrize("field", ["task", "round", "attempt"])
def test_the_header_has_to_agree_with_the_context(field: str) -> None:
    at = {"task": "digits", "round": 3, "attempt": 2, field: {"task": "other"}.get(field, 9)}
    with pytest.raises(SignatureError):
        envelope.open_signed(rebuilt(unprotected={"at": list(at.values())}), CONTEXT, PUBLIC)


def test_another_key_does_not_verify() -> None:
    with pytest.raises(SignatureError):
        envelope.open_signed(SIGNED, CONTEXT, bytes(signing_key("other").verify_key))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytes(32), bytes([1]) + bytes(31)])
def test_impossible_keys_do_not_verify(key: bytes) -> None:
    with pytest.raises(SignatureError):
        envelope.open_signed(SIGNED, CONTEXT, key)


def test_every_truncation_is_refused() -> None:
    for end in range(len(SIGNED)):
        with pytest.raises(MalformedError):
            envelope.open_signed(SIGNED[:end], CONTEXT, PUBLIC)
    with pytest.raises(MalformedError):
        envelope.open_signed(SIGNED + b"\0", CONTEXT, PUBLIC)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_every_changed_byte_is_refused(at: int, flip: int) -> None:
    changed = SIGNED[:at] + bytes([SIGNED[at] ^ flip]) + SIGNED[at + 1 :]
    with pytest.raises(PeerError) as caught:
        envelope.open_signed(changed, CONTEXT, PUBLIC)
    assert isinstance(caught.value, MalformedError | SignatureError)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PAYLOAD,
        SIGNED[1:],  # without its tag
        b"\xd8\x12" + SIGNED[1:],  # the tag in two bytes
        b"\xd1" + SIGNED[1:],  # COSE_Mac0
        b"\xd2\xd2" + SIGNED[1:],
    ],
)
def test_unsigned_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        envelope.parse(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"protected": b""},
        {"protected": cbor.encode({1: -7})},  # ES256
        {"protected": cbor.encode({1: -8, 4: b"kid"})},
        {"protected": cbor.encode({})},
        {"unprotected": {}},
        {"unprotected": {"at": ["digits", 3]}},
        {"unprotected": {"at": ["digits", 3, 2, 0]}},
        {"unprotected": {"at": ["digits", "3", 2]}},
        {"unprotected": {"at": [b"digits", 3, 2]}},
        {"unprotected": ["at"]},
        {"payload": None},
        {"payload": "text"},
        {"signature": bytes(63)},
        {"signature": bytes(65)},
        {"signature": b""},
        {"more": 1},
    ],
)
def test_other_forms_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        envelope.parse(rebuilt(**changes))


def test_an_algorithm_of_the_senders_choice_is_refused() -> None:
    message = Sign1Message(phdr={Algorithm: Es256, KID: b"k"}, payload=PAYLOAD)
    message.signature = parts()[3]
    with pytest.raises(MalformedError):
        envelope.parse(message.encode(sign=False))


def test_size_is_bounded() -> None:
    with pytest.raises(MalformedError) as caught:
        envelope.parse(SIGNED, max_bytes=len(SIGNED) - 2)
    assert caught.value.cause == "oversized"
    large = envelope.sign(bytes(envelope.MAX_ENVELOPE_BYTES), CONTEXT, KEY)
    with pytest.raises(MalformedError):
        envelope.open_signed(large, CONTEXT, PUBLIC)
