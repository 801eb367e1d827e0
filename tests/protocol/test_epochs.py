"""covey_protocol.epochs: groups that follow from everybody's randomness, evenly cut."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol import cbor, epochs
from covey_protocol.epochs import Grouping
from covey_protocol.errors import LocalError
from covey_protocol.messages import SHARD_BITS_MAX, EpochList, ListedMember
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN

VECTOR: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "groups.json").read_text())
DIGEST = b"d" * 32


def listed(ordinary: int, fresh: int = 0) -> list[ListedMember]:
    return [
        ListedMember(device=f"pi-{index}", key=bytes(32), probation=index >= ordinary)
        for index in range(ordinary + fresh)
    ]


def openings_of(members: list[ListedMember]) -> dict[str, bytes]:
    return {member.device: member.device.encode().ljust(32, b".") for member in members}


def grouped(ordinary: int, fresh: int = 0, size: int = 8) -> list[list[str]]:
    members = listed(ordinary, fresh)
    return epochs.groups(members, openings_of(members), DIGEST, size)


def fresh_in(group: list[str], ordinary: int) -> int:
    return sum(int(name.removeprefix("pi-")) >= ordinary for name in group)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 1000), st.integers(ROSTER_MIN, ROSTER_MAX))
def test_cuts_are_balanced(total: int, size: int) -> None:
    names = [str(index) for index in range(total)]
    groups = epochs.cut(names, size)
    if total < ROSTER_MIN:
        assert groups == []
        return
    sizes = [len(group) for group in groups]
    assert [name for group in groups for name in group] == names
    assert ROSTER_MIN <= min(sizes) <= max(sizes) <= min(ROSTER_MAX - 1, min(sizes) + 1)
    if total % size == 0 and size < ROSTER_MAX:
        assert set(sizes) == {size}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 20), st.integers(ROSTER_MIN, ROSTER_MAX))
def test_newcomers_have_groups_of_their_own_or_join_one_each(ordinary: int, fresh: int, size: int) -> None:
    groups = grouped(ordinary, fresh, size)
    names = [name for group in groups for name in group]
    assert len(set(names)) == len(names)
    assert all(ROSTER_MIN <= len(group) <= ROSTER_MAX for group in groups)
    mixed = [fresh_in(group, ordinary) for group in groups]
    if ordinary < ROSTER_MIN:  # too small a fleet to keep them apart
        assert len(names) == (ordinary + fresh if ordinary + fresh >= ROSTER_MIN else 0)
    elif fresh >= ROSTER_MIN:
        assert all(count in (0, len(group)) for count, group in zip(mixed, groups, strict=True))
        assert len(names) == ordinary + fresh
    else:
        assert max(mixed) <= 1
        assert sum(mixed) == min(fresh, len(groups))
        assert len(names) - sum(mixed) == ordinary


def test_only_who_opened_is_in_a_group() -> None:
    members = listed(20)
    openings = openings_of(members[1:])
    names = [name for group in epochs.groups(members, openings, DIGEST, 8) for name in group]
    assert sorted(names) == sorted(openings)


def test_groups_depend_on_every_opening_and_on_the_list() -> None:
    members = listed(24)
    openings = openings_of(members)
    results = {str(epochs.groups(members, openings, DIGEST, 8)), str(epochs.groups(members, openings, bytes(32), 8))}
    for name in openings:
        results.add(str(epochs.groups(members, {**openings, name: bytes(32)}, DIGEST, 8)))
    assert len(results) == 26


def test_groups_do_not_depend_on_the_order_of_openings() -> None:
    members = listed(24)
    openings = openings_of(members)
    backwards = dict(reversed(openings.items()))
    assert epochs.groups(members, backwards, DIGEST, 8) == epochs.groups(members, openings, DIGEST, 8)


def test_vector() -> None:
    digest = bytes.fromhex(VECTOR["list_digest"])
    openings = {name: bytes.fromhex(value) for name, value in VECTOR["openings"].items()}
    members = [ListedMember(device=name, key=bytes(32)) for name in sorted(openings)]
    for name, value in openings.items():
        assert epochs.commitment(value, name).hex() == VECTOR["commitments"][name]
        assert epochs.shard_of(name, 3) == VECTOR["shards_of_3_bits"][name]
    seed = epochs.seed(digest, openings)
    assert seed.hex() == VECTOR["seed"]
    assert epochs.order(openings, seed) == VECTOR["order"]
    assert epochs.groups(members, openings, digest, VECTOR["group_size"]) == VECTOR["groups"]


@pytest.mark.parametrize(
    ("committed", "opened", "again"),
    [(20, 20, False), (20, 19, False), (20, 18, True), (19, 18, True), (4, 3, True), (100, 95, False), (100, 94, True)],
)
def test_more_than_five_in_a_hundred_unopened_start_again(committed: int, opened: int, again: bool) -> None:
    assert epochs.too_many_unopened(committed, opened) is again


def test_digests_cover_what_they_name() -> None:
    members = EpochList(shard=0, shard_bits=0, group_size=8, members=listed(4))
    longer = EpochList(shard=0, shard_bits=0, group_size=8, members=listed(5))
    smaller = EpochList(shard=0, shard_bits=0, group_size=7, members=listed(4))
    assert len({epochs.list_digest(value) for value in (members, longer, smaller)}) == 3
    value = b"e" * 32
    assert epochs.commitment(value, "a") != epochs.commitment(value, "b") != epochs.commitment(bytes(32), "b")
    one, two = {"a": bytes(32)}, {"a": bytes(32), "b": bytes(32)}
    digests = {epochs.commitments_digest(*parts) for parts in ((DIGEST, one), (DIGEST, two), (bytes(32), one))}
    assert len(digests) == 3


def test_shards_are_few_and_small_and_hold_everybody_once() -> None:
    names = [f"pi-{index}" for index in range(2500)]
    bits, cut = epochs.shards(names)
    assert sorted(name for members in cut.values() for name in members) == sorted(names)
    assert all(len(members) <= 1000 for members in cut.values())
    assert 2 <= bits <= 4
    assert all(epochs.shard_of(name, bits) == shard for shard, members in cut.items() for name in members)
    coarser: dict[int, int] = {}
    for name in names:
        shard = epochs.shard_of(name, bits - 1)
        coarser[shard] = coarser.get(shard, 0) + 1
    assert max(coarser.values()) > 1000  # one bit fewer would not have done
    assert epochs.shards(names[:10]) == (0, {0: sorted(names[:10])})
    assert epochs.shards(names[:1000])[0] == 0  # exactly full


def test_too_many_devices_for_all_shards() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        epochs.shards(["a", "b"], largest=0)


def test_labels() -> None:
    assert [epochs.shard_label(*parts) for parts in ((0, 0), (0, 1), (1, 1), (5, 4))] == ["s", "s0", "s1", "s0101"]
    labels = epochs.own_labels("pi-7")
    assert len(labels) == SHARD_BITS_MAX + 1
    assert all(label[:-1] == shorter for shorter, label in itertools.pairwise(labels))
    assert epochs.group_id(3, "s01", 2) == "3-s01-2"


GROUPING = Grouping(7, "7-s-0", (("a", bytes(32)), ("b", b"k" * 32)))


def test_groupings_are_stored_and_told_apart() -> None:
    assert Grouping.decode(GROUPING.encode()) == GROUPING
    others = [
        Grouping(8, "7-s-0", GROUPING.members),
        Grouping(7, "7-s-1", GROUPING.members),
        Grouping(7, "7-s-0", GROUPING.members[::-1]),
        Grouping(7, "7-s-0", (("a", b"k" * 32), ("b", b"k" * 32))),
    ]
    assert len({grouping.digest() for grouping in [GROUPING, *others]}) == 5


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", GROUPING.encode()[:-1], cbor.encode([]), cbor.encode([1, "a", "b"]), cbor.encode([1, "a", [["b"]]])],
)
def test_a_damaged_grouping_is_our_own_fault(data: bytes) -> None:
    with pytest.raises(LocalError):
        Grouping.decode(data)
