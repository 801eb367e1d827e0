"""What the aggregator can count itself of devices' exposure: in how many sums, and in how many groupings, each was.

A set counts from the moment that it was published, whether or not the sum came about. A device counts what it has
signed for, in a ledger of its own; that is what the policy's cap holds for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from covey_aggregator.records import RoundRecord


@dataclass(frozen=True)
class Exposure:
    """One device's distinct sets and groupings."""

    sets: int = 0
    groupings: int = 0


def count(records: Iterable[RoundRecord]) -> dict[str, Exposure]:
    """Return the exposure of every device that was in a set of these rounds."""
    sets: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
    for record in records:
        for detail in record.details:
            members = tuple(detail.published or detail.survivors)
            for name in members:
                sets.setdefault(name, set()).add((detail.group, members))
    return {name: Exposure(len(found), len({group for group, _ in found})) for name, found in sorted(sets.items())}


def in_words(found: dict[str, Exposure]) -> str:
    """Say how much the most exposed device is exposed."""
    if not found:
        return "nobody was in a sum yet"
    most = max(found.values(), key=lambda exposure: (exposure.sets, exposure.groupings))
    return f"exposure: up to {most.sets} different sums in {most.groupings} groupings for one device"
