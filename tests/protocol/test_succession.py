"""covey_protocol.succession: the operator's key changes, and of the keys before nothing counts but listed tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, OPERATOR, SERVER, make_chain, make_trust, revocation_of, signing_key
from tests.protocol.succeeding import FOLLOWERS, THIEF, changed, public, tokens_of

from covey_protocol import envelope, identity, succession, topics
from covey_protocol.digest import content_digest
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, MalformedError, PeerError, RefusedError, SignatureError, StaleError
from covey_protocol.identity import OPERATOR as ROLE
from covey_protocol.identity import Former
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Blob
from covey_protocol.payload import read, write
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.revocation import Revocations, sign_list
from covey_protocol.roster import Trust
from covey_protocol.succession import LINKS_MAX, Succession, Successions, read_tokens, write_tokens
from covey_protocol.warrants import Warrants

SECOND = "second-succession"


def take(known: Successions, data: bytes, key: SigningKey = OPERATOR) -> bool:
    return known.take(data, operator_key=public(key), fleet=FLEET) is not None


def following(*names: str, keys: int = 2) -> Trust:
    """Return the trust of somebody who has moved on, with some of the rig's devices on the list."""
    message, tokens, _ = changed(FOLLOWERS[:keys], tokens_of(*names))
    trust = make_trust()
    assert take(trust.successions, message)
    trust.successions.take_list(tokens)
    trust.operator_key = public(FOLLOWERS[keys - 1])
    return trust


def cause(refused: pytest.ExceptionInfo[PeerError]) -> str:
    return refused.value.cause


def test_of_the_key_before_only_listed_tokens_count_and_of_the_new_key_all() -> None:
    trust = following("pi-0")
    assert trust.identify(make_chain("pi-0"), "pi-0").name == "pi-0"
    assert trust.identify(make_chain("pi-9", operator=FOLLOWERS[1]), "pi-9").name == "pi-9"
    with pytest.raises(
        SignatureError, match=r"by the operator's former key [0-9a-f]{12}, and not on the list"
    ) as caught:
        trust.identify(make_chain("pi-1"), "pi-1")
    assert cause(caught) == "former-operator"
    with pytest.raises(SignatureError) as caught:
        trust.identify(make_chain("pi-0", operator=THIEF), "pi-0")
    assert cause(caught) == "signature"


def test_no_token_of_a_key_before_counts_until_the_list_is_here() -> None:
    message, tokens, _ = changed(tokens=tokens_of("pi-0"))
    trust = make_trust()
    take(trust.successions, message)
    trust.operator_key = public(FOLLOWERS[1])
    assert trust.successions.wanted is not None
    assert trust.successions.lacks(1)
    with pytest.raises(SignatureError):
        trust.identify(make_chain("pi-0"), "pi-0")
    with pytest.raises(MalformedError, match="not the list of tokens"):
        trust.successions.take_list(write_tokens(tokens_of("pi-0", "pi-1"))[0])
    trust.successions.take_list(tokens)
    assert not trust.successions.lacks(1)
    assert trust.identify(make_chain("pi-0"), "pi-0")
    with pytest.raises(StaleError):
        trust.successions.take_list(tokens)


def test_one_that_slept_through_several_follows_all_at_once() -> None:
    listed = tokens_of("pi-0") + tokens_of("pi-1", operator=FOLLOWERS[1])
    message, tokens, _ = changed(FOLLOWERS[:4], listed)
    known = Successions()
    assert take(known, message)
    known.take_list(tokens)
    assert (known.version, known.former.keys) == (3, tuple(public(key) for key in FOLLOWERS[:3]))
    trust = make_trust()
    trust.successions, trust.operator_key = known, public(FOLLOWERS[3])
    trust.identify(make_chain("pi-1", operator=FOLLOWERS[1]), "pi-1")
    for name, key in (("pi-3", OPERATOR), ("pi-2", FOLLOWERS[1]), ("pi-2", FOLLOWERS[2])):
        with pytest.raises(SignatureError):
            trust.identify(make_chain(name, operator=key), name)


@pytest.mark.parametrize("enrolled", [1, 2])
def test_a_device_that_was_enrolled_under_a_later_key_takes_the_newest_keys_word(enrolled: int) -> None:
    message, _, _ = changed(FOLLOWERS[:3])
    assert take(Successions(), message, FOLLOWERS[enrolled])
    with pytest.raises(SignatureError, match="does not lead on"):
        take(Successions(), message, THIEF)


def test_a_thief_of_a_key_before_cannot_give_a_later_device_a_list_of_his_own() -> None:
    """He can sign another link to the true next key; the next key itself has to vouch for it, and does not."""
    message, _, _ = changed(tokens=tokens_of("pi-0"))
    words = read(Succession, envelope.parse(message).payload)
    own = succession.sign_link(OPERATOR, FLEET, 1, public(FOLLOWERS[1]), write_tokens(tokens_of("evil"))[1])
    forged = Succession(links=[own], delegation=words.delegation, policy=words.policy)
    with pytest.raises(SignatureError):
        take(Successions(), succession.sign_succession(forged, OPERATOR, FLEET), FOLLOWERS[1])


@pytest.mark.parametrize("later", [FOLLOWERS[1], FOLLOWERS[2]])
def test_two_successions_of_one_key_are_an_alarm_that_names_it(later: SigningKey) -> None:
    known = Successions()
    take(known, changed()[0])
    if later is FOLLOWERS[2]:
        take(known, changed(FOLLOWERS[:3])[0], FOLLOWERS[1])
    before = known.version
    names = public(OPERATOR).hex()[:12]
    for rival in (
        changed([OPERATOR, THIEF])[0],
        changed(tokens=tokens_of("evil"))[0],
        changed([OPERATOR, THIEF, *FOLLOWERS[3:]])[0],
    ):
        with pytest.raises(RefusedError, match=f"operator key {names} has signed two successions") as caught:
            take(known, rival, later)
        assert cause(caught) == SECOND
    assert (known.version, public(THIEF) in known.former.keys) == (before, False)


def test_an_older_one_is_stale_and_the_same_one_nothing() -> None:
    known = Successions()
    message = changed(FOLLOWERS[:3])[0]
    assert take(known, message)
    assert not take(known, message, FOLLOWERS[2])
    with pytest.raises(StaleError):
        take(known, changed()[0], FOLLOWERS[2])


def _signed(words: Succession, key: SigningKey) -> bytes:
    return envelope.sign(write(words), Context(fleet=FLEET, kind=topics.SUCCESSION, sender=ROLE), key)


def test_what_does_not_hold_together_is_refused() -> None:
    one, two = FOLLOWERS[1], FOLLOWERS[2]
    good = read(Succession, envelope.parse(changed()[0]).payload)
    later = read(Succession, envelope.parse(changed(FOLLOWERS[:3])[0]).payload)
    blob = write_tokens([])[1]
    back = succession.sign_link(one, FLEET, 2, public(OPERATOR), blob)
    huge = succession.sign_link(OPERATOR, FLEET, 1, public(one), Blob(digest=bytes(32), bytes=1 << 30))
    other = succession.sign_link(OPERATOR, "forest", 1, public(one), blob)
    stolen = [succession.sign_link(THIEF, FLEET, 1, public(one), blob)]
    apart = succession.sign_link(two, FLEET, 2, public(FOLLOWERS[3]), blob)  # leads on from a key that nobody named
    twice = succession.sign_link(one, FLEET, 1, public(two), blob)
    last = read(Succession, envelope.parse(changed(FOLLOWERS[:4])[0]).payload)
    first = identity.issue_delegation(OPERATOR, FLEET, public(SERVER), 1, 0)
    mine = sign_policy(Policy(version=9), OPERATOR, FLEET)
    cases = [
        (Succession(links=good.links, delegation=good.delegation, policy=good.policy), OPERATOR),
        (Succession(links=good.links, delegation=good.delegation, policy=mine), one),
        (Succession(links=good.links, delegation=later.delegation, policy=good.policy), one),
        (Succession(links=good.links, delegation=good.delegation, policy=good.policy, revocations=mine), one),
        (Succession(links=later.links[::-1], delegation=later.delegation, policy=later.policy), two),
        (Succession(links=later.links[1:], delegation=later.delegation, policy=later.policy), two),
        (Succession(links=[*good.links, back], delegation=first, policy=mine), OPERATOR),
        (Succession(links=[*good.links, apart], delegation=last.delegation, policy=last.policy), FOLLOWERS[3]),
        (Succession(links=[*good.links, twice], delegation=later.delegation, policy=later.policy), two),
        (Succession(links=[huge], delegation=good.delegation, policy=good.policy), one),
        (Succession(links=[other], delegation=good.delegation, policy=good.policy), one),
    ]
    for words, key in cases:
        known = Successions()
        for enrolled in (OPERATOR, one):
            with pytest.raises(PeerError):
                take(known, _signed(words, key), enrolled)
        assert known.version == 0
    with pytest.raises(SignatureError):
        take(Successions(), _signed(Succession(links=stolen, delegation=good.delegation, policy=good.policy), one))
    for data in (b"", b"\xd2", good.delegation):
        with pytest.raises(PeerError):
            take(Successions(), data)


def test_a_link_that_its_old_key_did_not_sign_leads_nowhere() -> None:
    """The newest key alone cannot say whom it follows."""
    blob = write_tokens([])[1]
    good = read(Succession, envelope.parse(changed()[0]).payload)
    link = read(succession.Link, envelope.parse(good.links[0]).payload)
    forged = envelope.sign(
        write(link), Context(fleet=FLEET, kind="succession-link", sender=ROLE), signing_key("somebody")
    )
    assert link.tokens == blob
    words = Succession(links=[forged], delegation=good.delegation, policy=good.policy)
    with pytest.raises(SignatureError):
        take(Successions(), _signed(words, FOLLOWERS[1]))


def test_a_key_can_change_only_so_often() -> None:
    with pytest.raises(ConfigError, match=f"has changed {LINKS_MAX} times"):
        succession.sign_link(OPERATOR, FLEET, LINKS_MAX + 1, public(THIEF), write_tokens([])[1])
    keys = [signing_key(f"line {number}") for number in range(LINKS_MAX + 1)]
    message = changed(keys)[0]
    assert take(Successions(), message, keys[0])
    assert len(message) < 8192


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=40), st.binary(min_size=32, max_size=32))
def test_a_list_holds_what_is_in_it(tokens: set[bytes], other: bytes) -> None:
    body, blob = write_tokens(tokens)
    former = Former((), read_tokens(body, blob))
    assert all(former.counts(token) for token in tokens)
    assert former.counts(other) == (other in tokens)


@pytest.mark.parametrize("packed", [b"\1" * 31, b"\2" * 32 + b"\1" * 32, b"\1" * 64])
def test_a_list_out_of_order_is_none(packed: bytes) -> None:
    body = write(succession.TokenList(tokens=packed))
    name = Blob(digest=content_digest(body), bytes=len(body))
    with pytest.raises(MalformedError, match="not in order"):
        read_tokens(body, name)


def test_no_one_moved_on_joins_under_an_earlier_key_nor_one_behind_under_a_later() -> None:
    known = Successions()
    known.check_manifest(0)
    assert known.lacks(1)
    take(known, changed()[0])
    with pytest.raises(RefusedError, match="the server withholds a succession") as caught:
        known.check_manifest(0)
    assert cause(caught) == "succession"
    known.check_manifest(1)


def test_the_new_keys_words_take_the_place_of_the_old_ones_whatever_versions_those_had() -> None:
    trust = make_trust()
    stolen = identity.issue_delegation(OPERATOR, FLEET, public(THIEF), 1 << 50, 0)
    low = sign_policy(Policy(version=1 << 50, n_min=4), OPERATOR, FLEET)
    warrants = Warrants(trust, identity.issue_delegation(OPERATOR, FLEET, public(SERVER), 1, 0), low)
    warrants.take_delegation(stolen)
    found = trust.successions.take(changed(n_min=7)[0], operator_key=trust.operator_key, fleet=FLEET)
    assert found is not None
    marks = {mark.key: mark.value for mark in warrants.succeed(found)}
    assert (trust.operator_key, trust.aggregator_key) == (public(FOLLOWERS[1]), public(SERVER))
    assert (trust.policy.n_min, warrants.delegation.version) == (7, 1)
    assert marks == {"delegation": found.words.delegation, "policy": found.words.policy}
    for take_, word in ((warrants.take_delegation, stolen), (warrants.take_policy, low)):
        with pytest.raises(SignatureError):
            take_(word)


def test_the_new_keys_revocation_list_begins_anew() -> None:
    old = sign_list([revocation_of("pi-1"), revocation_of("pi-2")], 1 << 50, OPERATOR, FLEET)
    for entries, held in (([revocation_of("pi-1"), revocation_of("pi-2")], 2), ([revocation_of("pi-1")], 0)):
        ledger = DeviceLedger()
        rows = ledger.take_revocations(old[0], operator_key=public(OPERATOR), fleet=FLEET)
        rows += ledger.take_revoked(old[1])
        head, body = sign_list(entries, 2, FOLLOWERS[1], FLEET)
        rows += ledger.succeed_revocations(head, operator_key=public(FOLLOWERS[1]), fleet=FLEET)
        stored = {mark.key: mark.value for mark in rows}
        again = DeviceLedger({key: value for key, value in stored.items() if value})
        for each in (ledger, again):
            assert (each.revocations.seen, each.revocations.held) == (2, held)
            if not held:
                each.take_revoked(body)
            assert len(each.revocations.entries()) == len(entries)


def test_without_a_list_of_the_new_key_nobody_is_revoked() -> None:
    known = Revocations()
    head, body = sign_list([revocation_of("pi-1")], 3, OPERATOR, FLEET)
    known.take_head(head, operator_key=public(OPERATOR), fleet=FLEET)
    known.take_list(body)
    known.succeed(b"", operator_key=public(FOLLOWERS[1]), fleet=FLEET)
    assert (known.seen, known.held, known.entries()) == (0, 0, [])


TRUE = [changed(FOLLOWERS[:length], tokens_of("pi-0"))[0] for length in range(2, 6)]
FALSE = [
    *(changed([*FOLLOWERS[:length], THIEF], tokens_of("pi-0"))[0] for length in range(1, 4)),
    changed(FOLLOWERS[:3], tokens_of("evil"))[0],
    changed([THIEF, *FOLLOWERS[1:3]])[0],
    TRUE[1][:-1] + bytes([TRUE[1][-1] ^ 1]),
]


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.booleans()), max_size=14))
def test_versions_only_grow_and_nobody_leaves_a_line_once_taken(words: list[tuple[bool, int, bool]]) -> None:
    """Any order, twice, lies among them: the line taken first is only ever continued, and a restart loses nothing."""
    known, key, taken, stored = Successions(), public(OPERATOR), list[bytes](), b""
    for honest, number, restart in words:
        data = TRUE[number % len(TRUE)] if honest else FALSE[number]
        before = known.version
        try:
            found = known.take(data, operator_key=key, fleet=FLEET)
        except PeerError:
            assert known.version == before
            found = None
        if found is not None:
            assert list(found.payloads[: len(taken)]) == taken
            assert found.version > before
            key, taken, stored = found.key, list(found.payloads), data
        if restart and stored:
            known = Successions()
            known.take(stored, operator_key=public(OPERATOR), fleet=FLEET)
        assert known.version == len(taken)
        assert known.former.keys[:1] in ((), (public(OPERATOR),))
