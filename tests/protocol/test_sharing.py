"""covey_protocol.sharing: a share reaches one receiver, in one roster, or nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nacl.bindings import crypto_scalarmult_base
from tests.protocol.rig import LOW_ORDER, Entropy

from covey_protocol import cbor, shamir, sharing
from covey_protocol.errors import RefusedError
from covey_protocol.sealing import seal_anonymously
from covey_protocol.sharing import Entry, Shares

entropy = Entropy("sharing")
ROSTER = b"r" * 32
SHARES = Shares(shamir.scalar(entropy(64)), shamir.scalar(entropy(64)))
SECRETS = {name: entropy(32) for name in ("a", "b", "c")}
KEYS = {name: crypto_scalarmult_base(secret) for name, secret in SECRETS.items()}
EPHEMERAL = entropy(32)


def seal(shares: Shares = SHARES, roster: bytes = ROSTER, dealer: str = "a", receiver: str = "b") -> Entry:
    return sharing.seal(
        shares,
        roster=roster,
        dealer=dealer,
        receiver=receiver,
        public=KEYS[receiver],
        ephemeral=EPHEMERAL,
    )


def unseal(entry: Entry, roster: bytes = ROSTER, dealer: str = "a", receiver: str = "b") -> Shares:
    return sharing.unseal(
        entry, roster=roster, dealer=dealer, receiver=receiver, secret=SECRETS[receiver], public=KEYS[receiver]
    )


def refused(entry: Entry, words: str, *, roster: bytes = ROSTER, dealer: str = "a", receiver: str = "b") -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        unseal(entry, roster, dealer, receiver)
    assert caught.value.cause == "share"
    assert repr(dealer) in str(caught.value)


def with_plaintext(*parts: object) -> Entry:
    return replace(seal(), ciphertext=seal_anonymously(cbor.encode(list(parts)), KEYS["b"], EPHEMERAL))


def test_round_trip() -> None:
    assert unseal(seal()) == SHARES


def test_an_entry_travels_as_an_array() -> None:
    assert Entry(*seal().array()) == seal()


def test_nobody_else_can_open_it() -> None:
    refused(seal(), "decrypt", receiver="c")


def test_a_reflected_or_copied_entry_is_refused() -> None:
    refused(seal(), "decrypt", dealer="b", receiver="a")
    # A dealer that passes on what another dealt, for the same receiver, is refused by name.
    refused(seal(), "another roster, dealer or receiver", dealer="c")


def test_an_entry_of_another_roster_is_refused() -> None:
    refused(seal(roster=b"s" * 32), "another roster")


def test_changed_bytes_are_refused() -> None:
    entry = seal()
    for at in range(len(entry.ciphertext)):
        changed = entry.ciphertext[:at] + bytes([entry.ciphertext[at] ^ 1]) + entry.ciphertext[at + 1 :]
        refused(replace(entry, ciphertext=changed), "decrypt")


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 47, 48, 49])
def test_a_truncated_entry_is_refused(size: int) -> None:
    refused(replace(seal(), ciphertext=seal().ciphertext[:size]), "decrypt")


def test_commitments_have_to_match() -> None:
    refused(replace(seal(), masking_commitment=bytes(32)), "commitment")
    refused(replace(seal(), self_mask_commitment=bytes(32)), "commitment")
    swapped = Entry(seal().ciphertext, seal().self_mask_commitment, seal().masking_commitment)
    refused(swapped, "commitment")


@pytest.mark.parametrize("bad", [shamir.ZERO, shamir.ORDER.to_bytes(32, "little"), b"\xff" * 32, b"short"])
def test_shares_have_to_be_scalars(bad: bytes) -> None:
    refused(seal(Shares(bad, SHARES.self_mask)), "scalar")
    refused(seal(Shares(SHARES.masking, bad)), "scalar")


def test_other_plaintexts_are_refused() -> None:
    refused(with_plaintext(ROSTER, "a", "b", SHARES.masking), "form")
    refused(with_plaintext(ROSTER, "a", "b", SHARES.masking, "text"), "form")
    refused(with_plaintext("a", "b", ROSTER, SHARES.masking, SHARES.self_mask), "form")
    refused(with_plaintext(ROSTER, "a", "b", SHARES.masking, SHARES.self_mask, bytes(600)), "form")


@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key[:4].hex())
def test_low_order_keys_are_refused(key: bytes) -> None:
    with pytest.raises(RefusedError, match="'b'") as caught:
        sharing.seal(SHARES, roster=ROSTER, dealer="a", receiver="b", public=key, ephemeral=EPHEMERAL)
    assert caught.value.cause == "low-order-key"
    entry = replace(seal(), ciphertext=key + seal().ciphertext[32:])  # an ephemeral key of low order
    refused(entry, "decrypt")
    with pytest.raises(RefusedError, match="'a'"):
        reopen(entry)


def reopen(entry: Entry, ephemeral: bytes = EPHEMERAL, public: bytes = KEYS["b"]) -> Shares:
    return sharing.reopen(entry, roster=ROSTER, dealer="a", receiver="b", public=public, ephemeral=ephemeral)


def test_a_dealer_can_open_its_entry_for_others_to_see() -> None:
    assert reopen(seal()) == SHARES


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (replace(seal(), ciphertext=bytes(100)), "another key"),
        (replace(seal(), ciphertext=seal().ciphertext[:-1]), "does not open"),
        (replace(seal(), ciphertext=b""), "another key"),
        (replace(seal(), masking_commitment=bytes(32)), "commitment"),
        (seal(roster=b"s" * 32), "another roster"),
        (seal(Shares(shamir.ZERO, SHARES.self_mask)), "scalar"),
        (with_plaintext(ROSTER, "a", "b"), "form"),
    ],
    ids=["garbage", "truncated", "empty", "commitment", "roster", "zero", "form"],
)
def test_a_bad_entry_is_seen_to_be_bad_whoever_opens_it(entry: Entry, words: str) -> None:
    with pytest.raises(RefusedError):
        unseal(entry)
    with pytest.raises(RefusedError, match=words) as caught:
        reopen(entry)
    assert caught.value.cause == "share"
    assert "'a'" in str(caught.value)


def test_an_entry_opens_with_no_other_key() -> None:
    with pytest.raises(RefusedError, match="another key"):
        reopen(seal(), ephemeral=entropy(32))
    with pytest.raises(RefusedError, match="does not open"):
        reopen(seal(), public=KEYS["c"])


def test_a_leaf_covers_the_whole_entry() -> None:
    entry = seal()
    leaves = {
        entry.leaf(),
        replace(entry, ciphertext=entry.ciphertext[:-1]).leaf(),
        replace(entry, masking_commitment=bytes(32)).leaf(),
        replace(entry, self_mask_commitment=bytes(32)).leaf(),
    }
    assert len(leaves) == 4


def test_a_commitment_covers_share_kind_roster_dealer_and_receiver() -> None:
    share = SHARES.masking
    commitments = {
        sharing.masking_commitment(share, ROSTER, "a", "b"),
        sharing.self_mask_commitment(share, ROSTER, "a", "b"),
        sharing.masking_commitment(SHARES.self_mask, ROSTER, "a", "b"),
        sharing.masking_commitment(share, bytes(32), "a", "b"),
        sharing.masking_commitment(share, ROSTER, "c", "b"),
        sharing.masking_commitment(share, ROSTER, "a", "c"),
        sharing.masking_commitment(share, ROSTER, "b", "a"),
    }
    assert len(commitments) == 7


def test_shares_are_never_shown() -> None:
    assert repr(SHARES) == "Shares()"
