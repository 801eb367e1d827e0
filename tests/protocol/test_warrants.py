"""covey_protocol.warrants: the operator's newer words are taken, older ones are not, and two of one version ring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, OPERATOR, SERVER, make_trust, signing_key

from covey_protocol import identity
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError, PeerError, RefusedError, SignatureError, StaleError
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.warrants import Warrants

KEYS = [signing_key(f"aggregator {number}") for number in range(4)]


def delegation(key: SigningKey, version: int, not_after: int = 0, operator: SigningKey = OPERATOR) -> bytes:
    return identity.issue_delegation(operator, FLEET, bytes(key.verify_key), version, not_after)


def policy(version: int, n_min: int = 4, operator: SigningKey = OPERATOR) -> bytes:
    return sign_policy(Policy(version=version, n_min=n_min), operator, FLEET)


def fresh(rows: dict[str, bytes] | None = None, first: bytes | None = None) -> Warrants:
    return Warrants(make_trust(), first or delegation(SERVER, 1), policy(1), rows)


def rows_of(*marks: Remember) -> dict[str, bytes]:
    return {mark.key: mark.value for mark in marks}


def test_a_newer_delegation_is_another_key_from_then_on_and_after_a_restart() -> None:
    warrants = fresh()
    marks = warrants.take_delegation(delegation(KEYS[0], 5, 900))
    again = fresh(rows_of(*marks))
    for each in (warrants, again):
        assert each._trust.aggregator_key == bytes(KEYS[0].verify_key)
        assert (each.delegation.version, each.delegation.not_after) == (5, 900)
    with pytest.raises(StaleError):
        again.take_delegation(delegation(SERVER, 1))
    assert again.take_delegation(delegation(KEYS[0], 5, 900)) == []


def test_a_newer_policy_counts_at_once_and_after_a_restart() -> None:
    warrants = fresh()
    again = fresh(rows_of(*warrants.take_policy(policy(2, 7))))
    assert warrants._trust.policy.n_min == again._trust.policy.n_min == 7
    with pytest.raises(StaleError):
        again.take_policy(policy(1, 4))


def test_a_bundle_that_is_newer_than_what_is_stored_wins() -> None:
    rows = rows_of(*fresh().take_delegation(delegation(KEYS[0], 5)))
    assert fresh(rows, delegation(KEYS[1], 6))._trust.aggregator_key == bytes(KEYS[1].verify_key)


def test_two_words_of_one_version_are_an_alarm_that_names_the_operators_key() -> None:
    warrants = fresh()
    for take, word, cause in (
        (warrants.take_delegation, delegation(KEYS[0], 1), "second-delegation"),
        (warrants.take_delegation, delegation(SERVER, 1, 900), "second-delegation"),
        (warrants.take_policy, policy(1, 5), "second-policy"),
    ):
        with pytest.raises(RefusedError, match=r"operator key [0-9a-f]+ has signed two words of version 1") as caught:
            take(word)
        assert caught.value.cause == cause
    assert warrants._trust.aggregator_key == bytes(SERVER.verify_key)
    assert (warrants._trust.policy.n_min, warrants.delegation.not_after) == (4, 0)


@pytest.mark.parametrize("key", [SERVER, signing_key("stranger")])
def test_nobody_else_signs_them(key: SigningKey) -> None:
    warrants = fresh()
    for take, word in (
        (warrants.take_delegation, delegation(KEYS[0], 9, operator=key)),
        (warrants.take_policy, policy(9, operator=key)),
    ):
        with pytest.raises(SignatureError):
            take(word)
    assert (warrants.delegation.version, warrants._trust.policy.version) == (1, 1)


def test_words_of_the_wrong_kind_are_no_words() -> None:
    warrants = fresh()
    for take, word in ((warrants.take_delegation, policy(9)), (warrants.take_policy, delegation(KEYS[0], 9))):
        with pytest.raises(PeerError):
            take(word)


def test_a_damaged_mark_is_named() -> None:
    for key in ("delegation", "policy"):
        with pytest.raises(LocalError, match=f"the stored {key} is damaged"):
            fresh({key: b"\xd2"})


def test_an_expired_delegation_is_not_followed() -> None:
    warrants = fresh()
    warrants.check(1 << 40)  # no expiry
    warrants.take_delegation(delegation(SERVER, 2, 900))
    warrants.check(900)
    with pytest.raises(RefusedError, match="expired at Unix time 900") as caught:
        warrants.check(901)
    assert caught.value.cause == "expired"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans()), max_size=12))
def test_versions_only_grow_whatever_comes_and_a_restart_loses_nothing(
    words: list[tuple[int, int, bool]],
) -> None:
    """The last one taken is the first that was heard of the highest version heard so far; the disk agrees."""
    warrants, rows = fresh(), dict[str, bytes]()
    best = (1, -1)
    for version, key, restart in words:
        try:
            marks = warrants.take_delegation(delegation(KEYS[key], version))
        except PeerError:
            marks = []
        rows |= rows_of(*marks)
        if version > best[0]:
            best = (version, key)
        if restart:
            warrants = fresh(rows)
        expected = SERVER if best[1] < 0 else KEYS[best[1]]
        assert warrants.delegation.version == best[0]
        assert warrants._trust.aggregator_key == bytes(expected.verify_key)
