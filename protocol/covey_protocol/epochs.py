"""Groups that nobody chooses.

Groups stay together for an epoch of many rounds, because regrouping every round would let the aggregator solve for
single devices' average updates. They follow from a list of members and from randomness to which every member
contributes by commitment and opening:

    seed  = H(list, all opened e_i)
    order = members by H(seed, name)
    groups = equal cuts of the order

so every member computes the same groups by itself and checks what it is told. Newcomers on probation make groups of
their own; fewer than four of them join ordinary groups, at most one each. The last to open its e_i knows the outcome
before it opens and so has one bit of choice (open or not); a restart above 5% unopened commitments bounds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from covey_protocol import cbor
from covey_protocol.digest import digest
from covey_protocol.errors import LocalError, MalformedError
from covey_protocol.messages import SHARD_BITS_MAX, SHARD_MAX, EpochList, ListedMember
from covey_protocol.payload import write
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN

UNOPENED_MAX = 0.05


@dataclass(frozen=True)
class Grouping:
    """A device's place in an epoch.

    Attributes:
        epoch: Number of the epoch.
        group: Identifier of the group, unique in the fleet's life: epoch, shard and index.
        members: Names and device keys, in the order that rosters keep.
    """

    epoch: int
    group: str
    members: tuple[tuple[str, bytes], ...]

    def encode(self) -> bytes:
        """Return the bytes a device stores."""
        return cbor.encode([self.epoch, self.group, [list(member) for member in self.members]])

    @staticmethod
    def decode(data: bytes) -> Grouping:
        """Read what ``encode`` wrote; LocalError when it is damaged."""
        try:
            epoch, group, members = msgspec.convert(
                cbor.decode(data, max_bytes=1 << 20), tuple[int, str, list[tuple[str, bytes]]], builtin_types=(bytes,)
            )
        except (MalformedError, msgspec.ValidationError) as error:
            raise LocalError(f"the stored grouping is damaged: {error}", cause="store") from error
        return Grouping(epoch, group, tuple(members))

    def digest(self) -> bytes:
        """Return the digest that JOIN is signed over."""
        return digest(self.encode(), person=b"covey-grouping")


def shard_of(device: str, bits: int) -> int:
    """Return the shard of a device: the first ``bits`` of a digest of its name."""
    if not bits:
        return 0
    prefix = int.from_bytes(digest(device.encode(), person=b"covey-shard")[:4], "big")
    return prefix >> (32 - bits)


def shards(devices: Iterable[str], largest: int = SHARD_MAX) -> tuple[int, dict[int, list[str]]]:
    """Cut a fleet into shards of at most ``largest`` devices, by as few digest bits as do."""
    names = sorted(devices)
    for bits in range(SHARD_BITS_MAX + 1):
        cut: dict[int, list[str]] = {}
        for name in names:
            cut.setdefault(shard_of(name, bits), []).append(name)
        if all(len(members) <= largest for members in cut.values()):
            return bits, cut
    raise ValueError(f"{len(names)} devices do not fit {1 << SHARD_BITS_MAX} shards of {largest}")


def commitment(value: bytes, device: str) -> bytes:
    """Return the commitment to a device's e_i."""
    return digest(cbor.encode([device, value]), person=b"covey-epoch-e")


def commitments_digest(list_digest: bytes, commitments: Mapping[str, bytes]) -> bytes:
    """Return what an opening is signed over."""
    return digest(cbor.encode([list_digest, _sorted(commitments)]), person=b"covey-epoch-comm")


def list_digest(members: EpochList) -> bytes:
    """Return the digest of an epoch's list."""
    return digest(write(members), person=b"covey-epoch-list")


def too_many_unopened(committed: int, opened: int) -> bool:
    """Say whether an opening has to start again."""
    return committed - opened > UNOPENED_MAX * committed


def order(members: Iterable[str], seed: bytes) -> list[str]:
    """Return the members in the order that the seed gives them."""
    return sorted(members, key=lambda name: digest(cbor.encode([seed, name]), person=b"covey-epoch-ord"))


def seed(list_digest: bytes, openings: Mapping[str, bytes]) -> bytes:
    """Return H(list, all opened e_i)."""
    return digest(cbor.encode([list_digest, _sorted(openings)]), person=b"covey-epoch-seed")


def groups(
    members: Sequence[ListedMember], openings: Mapping[str, bytes], list_digest: bytes, size: int
) -> list[list[str]]:
    """Return the groups that follow from a list and its openings.

    Args:
        members: The list.
        openings: e_i of those who opened; the others are in no group.
        list_digest: Digest of the list.
        size: Members a group should have, 4 to 32.

    Returns:
        Groups of names. Newcomers for whom there is no place yet (more of them than ordinary groups, but fewer than
        four) are in none and wait for the next epoch.
    """
    ordered = order(openings, seed(list_digest, openings))
    newcomers = {member.device for member in members if member.probation}
    ordinary = [name for name in ordered if name not in newcomers]
    fresh = [name for name in ordered if name in newcomers]
    if len(ordinary) < ROSTER_MIN:
        return cut(ordered, size)
    if len(fresh) >= ROSTER_MIN:
        return cut(ordinary, size) + cut(fresh, size)
    result = cut(ordinary, size)
    for group, name in zip(result, fresh, strict=False):
        group.append(name)
    return result


def cut(ordered: Sequence[str], size: int) -> list[list[str]]:
    """Cut an order into groups whose sizes differ by at most one, as close to ``size`` as 4 to 31 members allow.

    Fewer than four members make no group. One place of the largest roster stays free for a newcomer.
    """
    total = len(ordered)
    if total < ROSTER_MIN:
        return []
    fewest = -(-total // (ROSTER_MAX - 1))
    count = min(max(1, round(total / size), fewest), total // ROSTER_MIN)
    base, longer = divmod(total, count)
    result, at = [], 0
    for index in range(count):
        end = at + base + (index < longer)
        result.append(list(ordered[at:end]))
        at = end
    return result


def shard_label(shard: int, bits: int) -> str:
    """Return a shard's name in topics: ``s`` and its bits.

    A device does not know how many bits the fleet needs; it listens to the labels of all its prefixes.
    """
    return "s" + (format(shard, f"0{bits}b") if bits else "")


def own_labels(device: str) -> list[str]:
    """Return the labels of all shards that a device can be in."""
    return [shard_label(shard_of(device, bits), bits) for bits in range(SHARD_BITS_MAX + 1)]


def group_id(epoch: int, label: str, index: int) -> str:
    """Return the identifier of a group: epoch, shard label, index."""
    return f"{epoch}-{label}-{index}"


def _sorted(values: Mapping[str, bytes]) -> list[list[object]]:
    return [[name, values[name]] for name in sorted(values)]
