"""covey_protocol.identity: a device's key changes along a chain that each key signs for the next, and no other way."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, OPERATOR, make_chain, signing_key

from covey_protocol import cbor, envelope, identity
from covey_protocol.digest import short
from covey_protocol.errors import ConfigError, MalformedError, PeerError, RefusedError, SignatureError, StaleError
from covey_protocol.identity import RENEWALS_MAX, Chain, DeviceIdentity, PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.payload import read, write

NAME = "pi-1"
KEYS = [signing_key(NAME), *(signing_key(f"key {number}") for number in range(1, 6))]


def chain_of(*keys: SigningKey, name: str = NAME) -> Chain:
    """Return a chain whose keys follow each other; the first is the endorsed one."""
    chain = make_chain(name)
    for old, new in itertools.pairwise(keys):
        chain = identity.renew(chain, old, FLEET, name, bytes(new.verify_key))
    return chain


def read_map(data: bytes) -> set[object]:
    value = cbor.decode(data, max_bytes=9999)
    assert isinstance(value, dict)
    return set(value)


def verify(chain: Chain, name: str = NAME) -> DeviceIdentity:
    return identity.verify_chain(chain, operator_key=bytes(OPERATOR.verify_key), fleet=FLEET, device=name)


def test_a_chain_leads_to_the_newest_key_and_names_the_former() -> None:
    who = verify(chain_of(*KEYS[:4]))
    assert who.keys == tuple(bytes(key.verify_key) for key in KEYS[:4])
    assert (who.key, who.token) == (who.keys[3], verify(chain_of(KEYS[0])).token)


def test_a_chain_without_changes_is_the_bytes_that_it_always_was() -> None:
    chain = make_chain(NAME)
    assert read_map(write(chain)) == {"token", "endorsement"}
    assert read(Chain, write(chain)) == chain
    renewed = chain_of(*KEYS[:3])
    assert read(Chain, write(renewed)) == renewed


def test_every_link_counts() -> None:
    chain = chain_of(*KEYS[:4])
    links = chain.renewals
    for broken in (
        [links[1], links[0], links[2]],
        [links[0], links[2]],
        links[1:],
        [links[0], links[0]],
        [*links[:2], links[2][:-1] + bytes([links[2][-1] ^ 1])],
        [*links, b""],
        [chain.endorsement],
        chain_of(KEYS[1], KEYS[2]).renewals,  # by a key that nobody has endorsed
    ):
        with pytest.raises(PeerError):
            verify(msgspec.structs.replace(chain, renewals=broken))


def test_generations_are_counted() -> None:
    chain = make_chain(NAME)
    for generation in (2, 16):
        body = write(identity.Renewal(device_key=bytes(KEYS[1].verify_key), generation=generation))
        context = identity._renewal_context(FLEET, NAME, chain.token)
        skipped = msgspec.structs.replace(chain, renewals=[envelope.sign(body, context, KEYS[0])])
        with pytest.raises(SignatureError, match="not in order"):
            verify(skipped)


def test_a_change_belongs_to_one_device_one_fleet_and_one_token() -> None:
    mine = chain_of(*KEYS[:2])
    other = make_chain(NAME, not_after=5)  # another token, the same key
    with pytest.raises(SignatureError):
        verify(Chain(token=other.token, endorsement=other.endorsement, renewals=mine.renewals))
    for fleet, name in (("orchard", NAME), (FLEET, "pi-2")):
        moved = identity.renew(make_chain(NAME), KEYS[0], fleet, name, bytes(KEYS[1].verify_key))
        with pytest.raises(SignatureError):
            verify(moved)


def test_a_key_never_comes_again() -> None:
    with pytest.raises(SignatureError, match="not in order"):
        verify(chain_of(KEYS[0], KEYS[1], KEYS[0]))


def test_how_often_a_key_changes_is_bounded() -> None:
    keys = [KEYS[0], *(signing_key(f"many {number}") for number in range(RENEWALS_MAX))]
    chain = chain_of(*keys)
    assert len(verify(chain).former) == RENEWALS_MAX
    with pytest.raises(ConfigError, match="enrol it anew"):
        identity.renew(chain, keys[-1], FLEET, NAME, bytes(32))
    with pytest.raises(MalformedError):
        read(Chain, write(msgspec.structs.replace(chain, renewals=[*chain.renewals, chain.renewals[-1]])))


def test_a_pin_moves_forward_only() -> None:
    pins = PinnedKeys()
    pins.pin(verify(chain_of(*KEYS[:1])))
    pins.pin(verify(chain_of(*KEYS[:3])))
    token = verify(make_chain(NAME)).token
    for again in (pins, PinnedKeys({token: pins.pinned(token)})):
        assert again.pinned(token) == b"".join(bytes(key.verify_key) for key in KEYS[:3])
        assert all(again.tokens_of(bytes(key.verify_key)) == [token] for key in KEYS[:3])
        again.check(verify(chain_of(*KEYS[:4])))
        for count in (1, 2):
            with pytest.raises(StaleError) as stale:
                again.check(verify(chain_of(*KEYS[:count])))
            assert stale.value.cause == "former-key"


@pytest.mark.parametrize("shown", [(0, 3), (0, 3, 2), (0, 1, 4), (0, 1, 4, 5)])
def test_a_second_change_of_one_generation_is_an_alarm_that_names_both_keys(shown: tuple[int, ...]) -> None:
    pins = PinnedKeys()
    pins.pin(verify(chain_of(*KEYS[:3])))
    with pytest.raises(RefusedError) as caught:
        pins.check(verify(chain_of(*(KEYS[at] for at in shown))))
    assert caught.value.cause == "second-key"
    at = next(place for place, key in enumerate(shown) if key != place)
    for key in (KEYS[at], KEYS[shown[at]]):
        assert short(bytes(key.verify_key)) in str(caught.value)


@given(st.lists(st.lists(st.integers(1, 5), unique=True, max_size=4), max_size=8))
def test_whatever_is_shown_in_whatever_order_one_line_of_keys_stands(stories: list[list[int]]) -> None:
    pins, ledger = PinnedKeys(), DeviceLedger()
    token, line = verify(make_chain(NAME)).token, [0]
    pins.pin(verify(make_chain(NAME)))
    for story in stories:
        shown = [0, *story]
        follows = shown[: len(line)] == line
        try:
            pins.pin(verify(chain_of(*(KEYS[at] for at in shown))))
        except PeerError as error:
            assert not follows
            fork = any(known != new for known, new in zip(line, shown, strict=False))
            assert error.cause == ("second-key" if fork else "former-key")
        else:
            assert follows
            line = shown
        ledger.pin(token, pins.pinned(token))
        expected = b"".join(bytes(KEYS[at].verify_key) for at in line)
        assert pins.pinned(token) == expected == ledger.pins()[token]
