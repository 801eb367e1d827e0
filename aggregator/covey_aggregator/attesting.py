"""ATTEST and ACCEPT over all groups of a round: one seed a shard, one decision a shard.

The sketches of a shard can be compared because all of its groups sketch under one seed. So ATTEST begins in all of them
together, when every group of the shard has its part in the seed or has ended; and the set A of each follows from one
decision over all sketches, when every group that attests has its reports. Both come about by themselves from the
round's inputs, but the decision, which is an input: it depends on what the aggregator remembers of the devices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey_aggregator.spool import Spool
from covey_protocol import attest_stage
from covey_protocol.attestation import smallest_cover
from covey_protocol.effects import Effect
from covey_protocol.group_round import GroupRound
from covey_protocol.prg import Ring
from covey_protocol.ring import RingScale
from covey_protocol.round_table import GroupStage

_BEFORE = (GroupStage.JOINING, GroupStage.SHARING, GroupStage.MASKING, GroupStage.SIGNING)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard's attestation has shown, and what was decided on it.

    Attributes:
        shard: Its label.
        sketches: Of every update that was reported on, in the ring, two bytes a number.
        disputed: Members who contradict their peers and have to go.
        refused: Members of U without a report.
        accepted: Who may be summed, by the rule.
    """

    shard: str
    sketches: dict[str, bytes]
    disputed: list[str]
    refused: list[str]
    accepted: list[str] = []

    def in_reals(self, scale: RingScale) -> dict[str, NDArray[np.float64]]:
        """Return the sketches in the units of updates."""
        return {
            name: np.frombuffer(data, "<u2").view(np.int16).astype(np.float64) * scale.step
            for name, data in self.sketches.items()
        }


class Attesting:
    """The shards of one round.

    Args:
        groups: All groups, by name.
        watched: Groups that attest however the lot falls.
    """

    def __init__(self, groups: Mapping[str, GroupRound], watched: Collection[str]) -> None:
        self._watched = frozenset(watched)
        self._shards: dict[str, list[GroupRound]] = {}
        for name in sorted(groups):
            self._shards.setdefault(shard_label(name), []).append(groups[name])
        self.seeds: dict[str, bytes] = {}
        self.findings: dict[str, Finding] = {}
        self._asked: set[str] = set()

    def groups(self, shard: str) -> list[GroupRound]:
        """Return the groups of a shard that attest and wait for its decision."""
        return [group for group in self._shards[shard] if group.stage is GroupStage.ATTESTING]

    def members_of(self, shard: str) -> list[GroupRound]:
        """Return all groups of a shard."""
        return list(self._shards[shard])

    def go_on(self, at: float) -> list[Effect]:
        """Fix the seeds of shards whose groups have all come so far, and begin ATTEST there."""
        effects: list[Effect] = []
        for shard, groups in self._shards.items():
            if shard in self.seeds or any(group.stage in _BEFORE and not group.entry for group in groups):
                continue
            waiting = [group for group in groups if group.stage is GroupStage.SIGNING]
            if not waiting:
                continue
            entries = [(group.grouping.group, group.entry) for group in waiting]
            self.seeds[shard] = attest_stage.shard_seed(entries)
            for group in waiting:
                effects += group.attest(entries, group.grouping.group in self._watched, at)
        return effects

    def to_sketch(self) -> list[str]:
        """Return the shards whose sketches can be made and are not being made yet, and note them as asked for."""
        ready = [shard for shard in self.seeds if shard not in self._asked and self._reported(shard)]
        self._asked.update(ready)
        return ready

    def _reported(self, shard: str) -> bool:
        waiting = self.groups(shard)
        return bool(waiting) and all(group.attested for group in waiting)

    def finding(self, shard: str, sketches: Mapping[str, Ring]) -> Finding:
        """Return what a shard's attestation has shown, before anything is decided."""
        disputed, refused = set[str](), set[str]()
        for group in self.groups(shard):
            assert group.attestation is not None
            disputed |= smallest_cover(group.attestation.disputes())
            refused |= set(group.survivors) - set(group.attestation.reports)
        return Finding(
            shard=shard,
            sketches={name: sketches[name].astype("<u2", copy=False).tobytes() for name in sorted(sketches)},
            disputed=sorted(disputed),
            refused=sorted(refused),
        )

    def decide(self, finding: Finding, at: float) -> list[Effect]:
        """Take a decision: every group that waits for it publishes its set A."""
        self.findings[finding.shard] = finding
        self._asked.add(finding.shard)
        effects: list[Effect] = []
        for group in self.groups(finding.shard):
            effects += group.accept([name for name in group.candidates() if name in finding.accepted], at)
        return effects

    def fail(self, shard: str, reason: str) -> list[Effect]:
        """End the groups of a shard that cannot be decided on; it is nobody's fault."""
        self._asked.add(shard)
        effects: list[Effect] = []
        for group in self.groups(shard):
            effects += group.abort("no-sketches", reason)
            group.causers = frozenset()
        return effects


def shard_label(group: str) -> str:
    """Return the label of the shard that a group belongs to."""
    return group.split("-")[1]


def make_sketches(groups: Sequence[GroupRound], spool: Spool) -> dict[str, Ring]:
    """Return the sketches of all updates of some groups that were reported on. Heavy: call it in a thread."""
    found: dict[str, Ring] = {}
    for group in groups:
        assert group.attestation is not None
        found |= group.attestation.sketches(spool.ring)
    return found
