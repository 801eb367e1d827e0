"""covey_protocol.sharing: a share reaches one receiver, in one roster, or nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nacl.bindings import crypto_box_easy, crypto_box_open_easy, crypto_scalarmult_base
from tests.protocol.rig import LOW_ORDER, Entropy

from covey_protocol import cbor, shamir, sharing
from covey_protocol.errors import RefusedError
from covey_protocol.sharing import Entry, Shares

entropy = Entropy("sharing")
ROSTER = b"r" * 32
SHARES = Shares(shamir.scalar(entropy(64)), shamir.scalar(entropy(64)))
SECRETS = {name: entropy(32) for name in ("a", "b", "c")}
KEYS = {name: crypto_scalarmult_base(secret) for name, secret in SECRETS.items()}
NONCE = entropy(24)


def seal(shares: Shares = SHARES, roster: bytes = ROSTER, dealer: str = "a", receiver: str = "b") -> Entry:
    return sharing.seal(
        shares,
        roster=roster,
        dealer=dealer,
        receiver=receiver,
        secret=SECRETS[dealer],
        public=KEYS[receiver],
        nonce=NONCE,
    )


def unseal(entry: Entry, roster: bytes = ROSTER, dealer: str = "a", receiver: str = "b") -> Shares:
    return sharing.unseal(
        entry, roster=roster, dealer=dealer, receiver=receiver, secret=SECRETS[receiver], public=KEYS[dealer]
    )


def refused(entry: Entry, words: str, *, roster: bytes = ROSTER, dealer: str = "a", receiver: str = "b") -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        unseal(entry, roster, dealer, receiver)
    assert caught.value.cause == "share"
    assert repr(dealer) in str(caught.value)


def with_plaintext(*parts: object) -> Entry:
    ciphertext = NONCE + crypto_box_easy(cbor.encode(list(parts)), NONCE, KEYS["b"], SECRETS["a"])
    return replace(seal(), ciphertext=ciphertext)


def test_round_trip() -> None:
    assert unseal(seal()) == SHARES


def test_an_entry_travels_as_an_array() -> None:
    assert Entry(*seal().array()) == seal()


def test_nobody_else_can_open_it() -> None:
    refused(seal(), "decrypt", receiver="c")
    refused(seal(), "decrypt", dealer="c")


def test_a_reflected_entry_is_refused() -> None:
    # Box is symmetric: what a sealed for b also opens as sealed by b for a.
    entry = seal()
    assert crypto_box_open_easy(entry.ciphertext[24:], NONCE, KEYS["b"], SECRETS["a"])
    refused(entry, "another roster, dealer or receiver", dealer="b", receiver="a")


def test_an_entry_of_another_roster_is_refused() -> None:
    refused(seal(roster=b"s" * 32), "another roster")


def test_changed_bytes_are_refused() -> None:
    entry = seal()
    for at in range(len(entry.ciphertext)):
        changed = entry.ciphertext[:at] + bytes([entry.ciphertext[at] ^ 1]) + entry.ciphertext[at + 1 :]
        refused(replace(entry, ciphertext=changed), "decrypt")


@pytest.mark.parametrize("size", [0, 1, 23, 24, 25, 39, 40, 41])
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
    refused(with_plaintext(ROSTER, "a", "b", SHARES.masking, SHARES.self_mask, bytes(600)), "decrypt")


@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key[:4].hex())
def test_low_order_keys_are_refused(key: bytes) -> None:
    with pytest.raises(RefusedError, match="'b'") as caught:
        sharing.seal(SHARES, roster=ROSTER, dealer="a", receiver="b", secret=SECRETS["a"], public=key, nonce=NONCE)
    assert caught.value.cause == "low-order-key"
    with pytest.raises(RefusedError, match="'a'"):
        sharing.unseal(seal(), roster=ROSTER, dealer="a", receiver="b", secret=SECRETS["b"], public=key)


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
