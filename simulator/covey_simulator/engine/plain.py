"""The fast level: a round's sets, sums and sketches without signatures, masks and messages.

What each set is follows from the protocol's thresholds and from who still answers; the ledger of a device is a set of
marks in memory. Masks and what they need (keys, shares, reports) cancel exactly and are left out, so a masked vector is
the encoded update itself. What the protocol draws from entropy of devices comes from ``Draws``; a shard's seed ρ too,
which in the protocol follows from signed digests that do not exist here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from covey_protocol import attest_stage, epochs, roster, topics
from covey_protocol.epochs import Grouping
from covey_protocol.messages import EpochList, ListedMember
from covey_protocol.policy import Policy
from covey_protocol.prg import Ring
from covey_protocol.ring import METRICS, RingScale
from covey_protocol.sketch import SketchMatrix
from covey_protocol.thresholds import ROSTER_MIN
from covey_simulator.engine.draws import Draws
from covey_simulator.engine.parts import Accept, Finding, GroupOutcome, Order, RoundOutcome, in_units, shard_of_group


class PlainRounds:
    """Rounds without signatures.

    Args:
        draws: All that is random.
        group_size: Members a group should have.
        policy: The operator's floors.
    """

    def __init__(self, draws: Draws, *, group_size: int, policy: Policy | None = None) -> None:
        self._draws, self._group_size, self._policy = draws, group_size, policy or Policy()

    def open_epoch(self, epoch: int, listed: Mapping[str, bool]) -> list[Grouping]:
        """Draw the groups of an epoch; see ``Rounds``."""
        bits, cut = epochs.shards(listed)
        groupings: list[Grouping] = []
        for shard, names in sorted(cut.items()):
            groupings += self._groups(epoch, shard, bits, names, listed)
        return groupings

    def _groups(
        self, epoch: int, shard: int, bits: int, names: Sequence[str], listed: Mapping[str, bool]
    ) -> Iterable[Grouping]:
        keys = {name: self._draws.public_key(name) for name in names}
        members = [ListedMember(device=name, key=keys[name], probation=listed[name]) for name in sorted(names)]
        digest = epochs.list_digest(
            EpochList(shard=shard, shard_bits=bits, group_size=self._group_size, members=members)
        )
        openings = {name: self._draws.opening(name, epoch, 1) for name in names}
        label = epochs.shard_label(shard, bits)
        for index, group in enumerate(epochs.groups(members, openings, digest, self._group_size)):
            yield Grouping(epoch, epochs.group_id(epoch, label, index), tuple((name, keys[name]) for name in group))

    def run(self, order: Order, groupings: Sequence[Grouping], barred: frozenset[str], accept: Accept) -> RoundOutcome:
        """Run one attempt at a round; see ``Rounds``."""
        scale = order.scale(max(ROSTER_MIN, *(len(grouping.members) for grouping in groupings)))
        outcome = RoundOutcome(scale)
        rounds = {
            grouping.group: _Group(grouping, order, barred, self._policy, self._vector(order, scale))
            for grouping in groupings
        }
        for group in rounds.values():
            group.to_survivors()
        outcome.masked = any(group.masked for group in rounds.values())
        if order.sketch:
            self._attest(order, rounds, outcome, accept)
        for name, group in rounds.items():
            group.finish()
            outcome.groups[name] = group.outcome
        return outcome

    def _attest(self, order: Order, rounds: Mapping[str, _Group], outcome: RoundOutcome, accept: Accept) -> None:
        attesting: list[_Group] = []
        for name, group in sorted(rounds.items()):
            if group.over:
                continue
            shard = shard_of_group(name)
            if shard not in outcome.seeds:
                outcome.seeds[shard] = self._draws.shard_seed(shard, order.round, order.attempt)
            seed = outcome.seeds[shard]
            if order.watched([member for member, _ in group.grouping.members]) or attest_stage.drawn(seed, order.lot):
                attesting.append(group)
                outcome.sketches |= group.attest(seed)
        if attesting:
            owing = frozenset[str]().union(*(group.outcome.owing for group in attesting))
            accepted = accept(Finding(in_units(outcome.sketches, outcome.scale), owing))
            for group in attesting:
                group.accept(accepted)

    def _vector(self, order: Order, scale: RingScale) -> Callable[[str], Ring]:
        def vector(name: str) -> Ring:
            return order.works[name].encoded(scale, self._draws.rounding(name, order.round, order.attempt))

        return vector


class _Group:
    """One group in one attempt; each step goes on only while the group has not aborted."""

    def __init__(
        self,
        grouping: Grouping,
        order: Order,
        barred: frozenset[str],
        policy: Policy,
        vector: Callable[[str], Ring],
    ) -> None:
        self.grouping, self._order, self._barred, self._policy = grouping, order, barred, policy
        self.outcome = GroupOutcome()
        self._vectors: dict[str, Ring] = {}
        self._vector = vector
        self._t = self._a_min = 0
        self.masked = False

    @property
    def over(self) -> bool:
        """Whether it has aborted."""
        return bool(self.outcome.aborted)

    def to_survivors(self) -> None:
        """Fix R, D and U, and have U signed."""
        names = [name for name, _ in self.grouping.members]
        joined = [name for name in names if name not in self._barred and self._order.sends(name, topics.JOIN)]
        if len(joined) < max(self._policy.roster_min, self._order.a_min):
            reason = f"{len(joined)} of {len(names)} members joined"
            return self._abort("too-few-joined", reason, set(names) - set(joined) - self._barred)
        self.outcome.joined = tuple(joined)
        self._t, self._a_min = roster.required(len(joined), self._policy, self._order.a_min)
        dealt = self._senders(topics.SHARES, joined)
        needed = max(self._t, self._a_min)
        if len(dealt) < needed:
            reason = f"{len(dealt)} of {len(joined)} members dealt, {needed} are needed"
            return self._abort("too-few-dealt", reason, set(joined) - set(dealt))
        self.outcome.dealt = tuple(dealt)
        self.masked = True
        survivors = self._senders(topics.MASKED, dealt)
        if len(survivors) < self._a_min:
            reason = f"{len(survivors)} masked vectors arrived, a_min is {self._a_min}"
            return self._abort("too-few-survivors", reason, set(joined) - set(survivors))
        self.outcome.survivors = self.outcome.summed = tuple(survivors)
        self._vectors = {name: self._vector(name) for name in survivors}
        return self._need_signers(topics.SURVIVORS, "survivors")

    def attest(self, seed: bytes) -> dict[str, Ring]:
        """Return the sketches of the updates whose senders attest."""
        names = self._senders(topics.ATTEST, self.outcome.survivors)
        self.outcome.attested = tuple(names)
        self.outcome.owing = frozenset(self.outcome.survivors) - set(names)
        if not names:
            return {}
        dimension = len(self._vectors[names[0]]) - len(METRICS)
        matrix = SketchMatrix(seed, dimension, self._order.sketch)
        sketches = matrix.of([self._vectors[name][:dimension] for name in names])
        return dict(zip(names, sketches, strict=True))

    def accept(self, accepted: frozenset[str]) -> None:
        """Fix A."""
        names = [name for name in self.outcome.attested if name in accepted]
        if len(names) < self._a_min:
            reason = f"{len(names)} members are accepted, a_min is {self._a_min}"
            self._abort("too-few-accepted", reason, set(self.outcome.survivors) - set(names))
            return
        self.outcome.summed = tuple(names)

    def finish(self) -> None:
        """Have A signed, the shares revealed, and the sum made."""
        if self._order.sketch and not self.over:
            self._need_signers(topics.ACCEPT, "accepted")
        if not self.over:
            self._need_signers(topics.UNMASK, "shares")
        if self.over:
            self.outcome.summed = ()
            return
        # As soon as t members have revealed their shares, nobody waits for the others.
        self.outcome.finishers = frozenset(self._senders(topics.UNMASK, self.outcome.dealt)[: self._t])
        total = np.zeros(len(self._vectors[self.outcome.summed[0]]), np.uint16)
        for name in self.outcome.summed:
            total += self._vectors[name]
        self.outcome.total = total

    def _need_signers(self, kind: str, what: str) -> None:
        """Abort where fewer than t members of D answer."""
        signers = self._senders(kind, self.outcome.dealt)
        if len(signers) < self._t:
            reason = f"{len(signers)} members signed the {what}, t is {self._t}"
            cause = "too-few-signed"
            if kind == topics.UNMASK:
                reason, cause = f"{len(signers)} members revealed shares, t is {self._t}", "too-few-revealed"
            self._abort(cause, reason, set(self.outcome.joined) - set(signers))

    def _senders(self, kind: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._order.sends(name, kind)]

    def _abort(self, cause: str, reason: str, causers: set[str]) -> None:
        self.outcome.aborted, self.outcome.reason, self.outcome.causers = cause, reason, frozenset(causers)
