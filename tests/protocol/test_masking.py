"""covey_protocol.masking: masks cancel over everybody, and come off where somebody drops out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import LOW_ORDER, Entropy

from covey_protocol import masking, prg, shamir
from covey_protocol.errors import RefusedError
from covey_protocol.masking import PairParty, RoundSecrets
from covey_protocol.prg import Ring

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "masking.json").read_text())
CONTEXT = b"context"


class Member:
    """A member that masks a random vector."""

    def __init__(self, place: int, length: int) -> None:
        self.entropy = Entropy(f"member {place}")
        self.secrets = RoundSecrets.from_entropy(self.entropy(RoundSecrets.ENTROPY_BYTES))
        self.key = masking.masking_key(self.secrets.masking)
        self.party = PairParty(place, f"pi-{place}", masking.public_key(self.key))
        self.vector = prg.expand(self.entropy(32), length)

    def seed(self, other: Member) -> bytes:
        return masking.pair_seed(self.key, self.party, other.party, CONTEXT)

    def masked(self, dealt: list[Member]) -> Ring:
        vector = self.vector.copy()
        pairs = [(other.party.place, self.seed(other)) for other in dealt if other is not self]
        masking.mask(vector, masking.self_mask_seed(self.secrets.self_mask), pairs, self.party.place)
        return vector


def total_of(vectors: list[Ring], length: int) -> Ring:
    total = np.zeros(length, np.uint16)
    for vector in vectors:
        total += vector
    return total


@settings(deadline=None, max_examples=40)
@given(st.sets(st.integers(0, 31), min_size=1, max_size=9), st.integers(1, 50), st.data())
def test_masks_cancel_and_dropped_members_come_off(places: set[int], length: int, data: st.DataObject) -> None:
    dealt = [Member(place, length) for place in sorted(places)]
    silent = data.draw(st.sets(st.sampled_from(sorted(places))))
    survivors = [member for member in dealt if member.party.place not in silent]
    dropped = [member for member in dealt if member.party.place in silent]
    total = total_of([member.masked(dealt) for member in survivors], length)
    pairs = [  # the seed as whoever restored the dropped member's key derives it
        (member.party.place, gone.party.place, gone.seed(member)) for gone in dropped for member in survivors
    ]
    masking.unmask(total, [masking.self_mask_seed(member.secrets.self_mask) for member in survivors], pairs)
    assert np.array_equal(total, total_of([member.vector for member in survivors], length))


def test_every_mask_counts() -> None:
    members = [Member(place, 200) for place in range(3)]
    masked = members[0].masked(members)
    assert not np.array_equal(masked, members[0].vector)
    without_pairs = members[0].masked(members[:1])
    assert not np.array_equal(masked, without_pairs)
    prg.subtract_mask(without_pairs, masking.self_mask_seed(members[0].secrets.self_mask))
    assert np.array_equal(without_pairs, members[0].vector)


def test_both_ends_derive_the_same_seed_and_nobody_else_does() -> None:
    a, b, c = (Member(place, 1) for place in (3, 1, 2))
    assert a.seed(b) == b.seed(a)
    assert len({a.seed(b), a.seed(c), b.seed(c)}) == 3


def test_a_seed_belongs_to_one_roster_and_two_places_names_and_keys() -> None:
    a, b = Member(1, 1), Member(2, 1)
    seed = a.seed(b)
    assert masking.pair_seed(a.key, a.party, b.party, b"other context") != seed
    assert masking.pair_seed(a.key, a.party, PairParty(2, "pi-9", b.party.key), CONTEXT) != seed
    assert masking.pair_seed(a.key, a.party, PairParty(0, "pi-2", b.party.key), CONTEXT) != seed


@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key[:4].hex())
def test_low_order_keys_are_refused(key: bytes) -> None:
    a = Member(1, 1)
    with pytest.raises(RefusedError, match="pi-2") as caught:
        masking.pair_seed(a.key, a.party, PairParty(2, "pi-2", key), CONTEXT)
    assert caught.value.cause == "low-order-key"
    with pytest.raises(RefusedError, match="key of pi-2"):
        masking.check_public_key(key, "key of pi-2")


def test_ordinary_keys_pass() -> None:
    masking.check_public_key(Member(1, 1).party.key, "key")


@pytest.mark.parametrize("end", VECTORS["ends"], ids=lambda end: end["name"])
def test_key_derivation_vectors(end: dict[str, Any]) -> None:
    scalar = bytes.fromhex(end["scalar"])
    assert masking.masking_key(scalar).hex() == end["masking_key"]
    assert masking.public_key(masking.masking_key(scalar)).hex() == end["public_key"]
    assert masking.self_mask_seed(scalar).hex() == end["self_mask_seed"]
    assert masking.self_mask_commitment(scalar).hex() == end["self_mask_commitment"]


def test_pair_seed_vector() -> None:
    ends = [(bytes.fromhex(end["masking_key"]), _party(end)) for end in VECTORS["ends"]]
    context = bytes.fromhex(VECTORS["context"])
    for (secret, mine), (_, theirs) in (ends, ends[::-1]):
        assert masking.pair_seed(secret, mine, theirs, context).hex() == VECTORS["pair_seed"]


def _party(end: dict[str, Any]) -> PairParty:
    return PairParty(end["place"], end["name"], bytes.fromhex(end["public_key"]))


def test_secrets_are_separate_and_never_shown() -> None:
    entropy = Entropy("secrets")(RoundSecrets.ENTROPY_BYTES)
    secrets = RoundSecrets.from_entropy(entropy)
    assert len({secrets.masking, secrets.self_mask, secrets.sharing}) == 3
    assert shamir.is_scalar(secrets.masking)
    assert shamir.is_scalar(secrets.self_mask)
    for change in range(0, RoundSecrets.ENTROPY_BYTES, 20):  # all of the entropy counts
        other = bytearray(entropy)
        other[change] ^= 1
        assert RoundSecrets.from_entropy(bytes(other)) != secrets
    assert repr(secrets) == "RoundSecrets()"
