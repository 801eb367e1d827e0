"""covey_protocol.provisioning: one line of text that fits together, or is refused before anything is done."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import msgspec
import pytest
from tests.protocol.rig import FLEET, OPERATOR, SERVER, make_chain, revoke, signing_key

from covey_protocol import cbor, envelope, identity, provisioning
from covey_protocol.errors import MalformedError, PeerError, SignatureError
from covey_protocol.payload import write
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.provisioning import COMPACT, PREFIX, Broker, Provisioning
from covey_protocol.revocation import sign_list

PASSWORD = "correct horse"
BUNDLE = Provisioning(
    fleet=FLEET,
    device="pi-0",
    profile="pi-4",
    operator_key=bytes(OPERATOR.verify_key),
    token=make_chain("pi-0", not_after=1000).token,
    token_secret=bytes(signing_key("token pi-0")),
    delegation=identity.issue_delegation(OPERATOR, FLEET, bytes(SERVER.verify_key), 1, 2000),
    policy=sign_policy(Policy(), OPERATOR, FLEET),
    broker=Broker(host="broker.example", port=8883, username="pi-0", password=PASSWORD),
)
LINE = provisioning.encode(BUNDLE)


def test_round_trip_through_paper_and_clipboard() -> None:
    assert "\n" not in LINE
    assert provisioning.decode(LINE) == BUNDLE
    assert provisioning.decode(f"  {LINE}\n") == BUNDLE
    BUNDLE.check()
    BUNDLE.check(now=1000)


def test_size_is_bounded() -> None:
    longest = msgspec.structs.replace(BUNDLE, broker=Broker(host="h", port=1, ca="c" * 16_000, key="k" * 16_000))
    assert provisioning.decode(provisioning.encode(longest)) == longest
    pem = "p" * 16 * 1024
    too_long = msgspec.structs.replace(BUNDLE, broker=Broker(host="h", port=1, ca=pem, certificate=pem, key=pem))
    with pytest.raises(MalformedError):
        provisioning.decode(provisioning.encode(too_long))


def test_every_truncation_is_refused() -> None:
    for end in range(0, len(LINE), 5):
        with pytest.raises(MalformedError):
            provisioning.decode(LINE[:end])


def packed(data: bytes) -> str:
    return COMPACT + base64.urlsafe_b64encode(data).decode()


def test_the_compact_form_says_the_same_in_fewer_letters() -> None:
    line = provisioning.encode(BUNDLE, compact=True)
    assert len(line) < len(LINE)
    assert provisioning.decode(f" {line}\n") == BUNDLE
    for end in range(0, len(line), 5):
        with pytest.raises(MalformedError):
            provisioning.decode(line[:end])


def test_a_compact_form_that_would_become_very_large_or_has_something_behind_it_is_refused() -> None:
    good = zlib.compress(write(BUNDLE))
    assert provisioning.decode(packed(good)) == BUNDLE
    with pytest.raises(MalformedError, match="cut off, too large"):  # and not: no valid CBOR, after unpacking it all
        provisioning.decode(packed(zlib.compress(bytes(40 << 20), 9)))
    for data in (good + b"x", good[:-1], b"", b"junk", zlib.compress(b"")):
        with pytest.raises(MalformedError):
            provisioning.decode(packed(data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "covey",
        LINE.removeprefix(PREFIX),
        LINE.replace("-1:", "-2:"),
        LINE + "ä",
        LINE[:60] + " " + LINE[60:],
        LINE[:60] + "!" + LINE[61:],
        PREFIX + base64.urlsafe_b64encode(cbor.encode({"fleet": FLEET})).decode(),
        PREFIX + base64.urlsafe_b64encode(cbor.encode([])).decode(),
        PREFIX + "A" * (64 * 1024),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        provisioning.decode(text)


@dataclass
class Case:
    """One part replaced by one that does not fit."""

    field: str
    value: object


@pytest.mark.parametrize(
    "case",
    [
        Case("fleet", "moor"),
        Case("device", "pi-1"),
        Case("operator_key", bytes(SERVER.verify_key)),
        Case("token", make_chain("pi-1").token),
        Case("token", make_chain("pi-0", operator=SERVER).token),
        Case("token_secret", bytes(signing_key("token pi-1"))),
        Case("delegation", identity.issue_delegation(SERVER, FLEET, bytes(SERVER.verify_key), 1, 0)),
        Case("delegation", BUNDLE.policy),
        Case("policy", sign_policy(Policy(), SERVER, FLEET)),
        Case("policy", sign_policy(Policy(), OPERATOR, "moor")),
        Case("policy", b""),
    ],
    ids=lambda case: case.field,
)
def test_parts_that_do_not_fit_are_refused(case: Case) -> None:
    with pytest.raises(PeerError):
        msgspec.structs.replace(BUNDLE, **{case.field: case.value}).check()


@pytest.mark.parametrize("now", [1001, 2001])
def test_expired_parts_are_refused(now: int) -> None:
    with pytest.raises(SignatureError, match="expired"):
        BUNDLE.check(now=now)
    lasting = msgspec.structs.replace(BUNDLE, token=make_chain("pi-0").token)
    lasting.check(now=2000)
    with pytest.raises(SignatureError, match="delegation"):
        lasting.check(now=2001)


def test_secrets_are_never_shown() -> None:
    shown = repr(BUNDLE)
    assert "pi-0" in shown
    assert PASSWORD not in shown
    assert repr(BUNDLE.token_secret) not in shown


def test_a_bundle_from_before_the_newer_fields_is_read() -> None:
    fields = msgspec.to_builtins(BUNDLE, builtin_types=(bytes,))
    del fields["revocations"]
    policy = {"version": 1, "n_min": 4, "a_min": 0, "list_min": 4, "exposure_max": 0, "clear_updates": False}
    context = envelope.Context(fleet=FLEET, kind="policy", sender=identity.OPERATOR)
    fields["policy"] = envelope.sign(cbor.encode(policy), context, OPERATOR)
    old = provisioning.decode(PREFIX + base64.urlsafe_b64encode(cbor.encode(fields)).decode())
    old.check()
    assert old.revocations == b""
    newer = cbor.encode({**fields, "region": "north"})
    provisioning.decode(PREFIX + base64.urlsafe_b64encode(newer).decode()).check()


def test_a_revocation_list_in_it_has_to_be_the_operators() -> None:
    msgspec.structs.replace(BUNDLE, revocations=revoke("pi-9")[0]).check()
    forged = sign_list([], 1, SERVER, FLEET)[0]
    with pytest.raises(SignatureError):
        msgspec.structs.replace(BUNDLE, revocations=forged).check()
