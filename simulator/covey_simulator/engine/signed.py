"""The level with signatures: the protocol's own state machines, back to back in one process.

Every device runs its ``EpochMember`` and ``DeviceRound``, every group its ``GroupRound``, on bytes that are signed,
sealed, certified and checked as over a broker. Only the carrying is left out: messages arrive at once and in order, and
a stage whose missing answers will never come runs out without anybody waiting.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from covey_protocol import envelope, epochs, prg, topics
from covey_protocol.attestation import smallest_cover
from covey_protocol.digest import content_digest
from covey_protocol.effects import Deliver, Effect, Publish, Send
from covey_protocol.envelope import Context
from covey_protocol.epoch_opening import ShardOpening
from covey_protocol.epochs import Grouping
from covey_protocol.errors import LocalError, RefusedError, StaleError
from covey_protocol.group_round import GroupRound
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Blob, Manifest, Windows
from covey_protocol.model import to_bytes
from covey_protocol.payload import write
from covey_protocol.policy import Policy
from covey_protocol.prg import Ring
from covey_protocol.ring import RingScale
from covey_protocol.roster import OpenRound, read_open
from covey_protocol.round_table import DeviceStage, GroupStage
from covey_protocol.thresholds import ROSTER_MIN
from covey_simulator.engine.draws import JOINING, OPENING, ROUNDING, Draws
from covey_simulator.engine.members import FLEET, TASK, House, Member
from covey_simulator.engine.parts import Accept, Finding, GroupOutcome, Order, RoundOutcome, in_units, shard_of_group
from covey_simulator.scenario import Scenario

_WINDOW = 1.0
_WINDOWS = Windows(
    join=_WINDOW,
    shares=_WINDOW,
    masked=_WINDOW,
    survivors=_WINDOW,
    unmask=_WINDOW,
    attest=_WINDOW,
    accept=_WINDOW,
)


class SignedRounds:
    """Rounds with signatures and certificates.

    Args:
        scenario: Gives the seed, the group size, and whether masks are real.
        policy: The operator's floors.
    """

    def __init__(self, scenario: Scenario, policy: Policy | None = None) -> None:
        self._scenario, self._draws = scenario, Draws(scenario)
        self._house = House(scenario, policy)
        self._members: dict[str, Member] = {}
        self._sequences: dict[str, int] = {}

    def member(self, name: str) -> Member:
        """Return a device, enrolled when it is first asked for."""
        if name not in self._members:
            self._members[name] = Member(name, self._house, self._scenario, self._draws)
        return self._members[name]

    def open_epoch(self, epoch: int, listed: Mapping[str, bool]) -> list[Grouping]:
        """Draw the groups of an epoch; see ``Rounds``.

        Raises:
            LocalError: A shard's opening failed, which nothing here should make it do.
        """
        bits, cut = epochs.shards(listed)
        groupings = []
        for shard, names in sorted(cut.items()):
            opening = ShardOpening(
                fleet=FLEET,
                key=self._house.aggregator,
                epoch=epoch,
                shard=shard,
                shard_bits=bits,
                group_size=self._scenario.group_size,
                members={name: bytes(self.member(name).key.verify_key) for name in names},
                probation=[name for name in names if listed[name]],
                list_min=self._house.policy.list_min,
                window=_WINDOW,
            )
            effects = deque(opening.start(0.0))
            while effects:
                effect = effects.popleft()
                if isinstance(effect, Publish):
                    effects += self._answer_opening(opening, effect, names)
            if not opening.groups:
                raise LocalError(f"epoch {epoch}: the opening ended in stage {opening.stage}", cause="epoch")
            groupings += opening.groups
        return groupings

    def _answer_opening(self, opening: ShardOpening, effect: Publish, names: Sequence[str]) -> list[Effect]:
        answers: list[Effect] = []
        for name in names:
            member = self.member(name)
            if effect.kind == topics.EPOCH:
                member.source.at(OPENING, opening.epoch, opening.attempt)
            for sent in member.epochs.receive(effect.kind, effect.data):
                if isinstance(sent, Send):
                    answers += opening.receive(sent.kind, name, sent.data, 0.0)
        return answers

    def run(self, order: Order, groupings: Sequence[Grouping], barred: frozenset[str], accept: Accept) -> RoundOutcome:
        """Run one attempt at a round; see ``Rounds``."""
        with masks_left_out() if self._scenario.masking == "simulated" else contextlib.nullcontext():
            return _Attempt(self, self._house, self._sequences, order, groupings, barred).run(accept)

    def manifest(self, order: Order, groupings: Sequence[Grouping]) -> Manifest:
        """Return what the aggregator proposes."""
        weights = to_bytes(order.weights)
        return Manifest(
            epoch=groupings[0].epoch,
            bundle=Blob(digest=content_digest(b""), bytes=1),
            model=Blob(digest=content_digest(weights), bytes=len(weights)),
            plan=self._scenario.plan,
            clip=order.clip,
            n_min=max(self._house.policy.roster_min, order.a_min),
            n_max=max(ROSTER_MIN, *(len(grouping.members) for grouping in groupings)),
            windows=_WINDOWS,
            sealing_key=self._house.sealing[1],
            sketch=order.sketch,
            lot=order.lot,
            noise=order.noise,
            a_min=order.a_min,
        )


class _Attempt:
    """One attempt at a round, over all groups."""

    def __init__(
        self,
        fleet: SignedRounds,
        house: House,
        sequences: dict[str, int],
        order: Order,
        groupings: Sequence[Grouping],
        barred: frozenset[str],
    ) -> None:
        self._fleet, self._house, self._order, self._barred = fleet, house, order, barred
        manifest = fleet.manifest(order, groupings)
        context = Context(
            fleet=FLEET, kind=topics.OPEN, sender=AGGREGATOR, task=TASK, round=order.round, attempt=order.attempt
        )
        self._open = envelope.sign(write(manifest), context, house.aggregator)
        self._scale = RingScale.of(manifest)
        opened = read_open(self._open, TASK, house.trust)
        self._groups = {
            grouping.group: GroupRound(
                trust=house.trust,
                key=house.aggregator,
                sealing=house.sealing,
                grouping=grouping,
                opened=opened,
                sequences=sequences,
                now=0.0,
                excluded=barred,
            )
            for grouping in groupings
        }
        self._vectors: dict[str, Ring] = {}
        self._queue: deque[Callable[[], None]] = deque()
        self._now = 0.0

    def run(self, accept: Accept) -> RoundOutcome:
        outcome = RoundOutcome(self._scale)
        for group in self._groups.values():
            self._join(group)
            self._carry_on(group)
        outcome.masked = any(group.dealt for group in self._groups.values())
        if self._order.sketch:
            self._attest(outcome, accept)
        for name, group in self._groups.items():
            outcome.groups[name] = self._finish(group)
            outcome.liars |= group.liars
        return outcome

    def _join(self, group: GroupRound) -> None:
        for name, _ in group.grouping.members:
            if name in self._barred or not self._order.sends(name, topics.JOIN):
                continue
            member = self._fleet.member(name)
            opened: OpenRound = read_open(self._open, TASK, member.trust)
            device = member.begin(opened)
            if device is not None:
                member.source.at(JOINING, self._order.round, self._order.attempt)
                self._from_device(group, name, device.join())
        self._pump()

    def _carry_on(self, group: GroupRound) -> None:
        """Let stages run out until the group is done or waits for the aggregator's word."""
        while not (group.finished or self._waits_for_word(group)):
            self._now = max(self._now, group.deadline)
            self._from_group(group, group.tick(self._now))
            self._pump()

    @staticmethod
    def _waits_for_word(group: GroupRound) -> bool:
        if group.stage is GroupStage.SIGNING:
            return bool(group.entry)
        return group.stage is GroupStage.ATTESTING and group.attested

    def _attest(self, outcome: RoundOutcome, accept: Accept) -> None:
        fixed = {name: group for name, group in sorted(self._groups.items()) if group.entry and not group.finished}
        entries: dict[str, list[tuple[str, bytes]]] = {}
        for name, group in fixed.items():
            entries.setdefault(shard_of_group(name), []).append((name, group.entry))
        for name, group in fixed.items():
            watched = self._order.watched([member for member, _ in group.grouping.members])
            self._from_group(group, group.attest(entries[shard_of_group(name)], watched, self._now))
            self._pump()
            self._carry_on(group)
            assert group.attestation is not None
            outcome.seeds[shard_of_group(name)] = group.attestation.seed
        attesting = [group for group in fixed.values() if group.stage is GroupStage.ATTESTING]
        if not attesting:
            return
        owing, disputed = set[str](), set[str]()
        for group in attesting:
            assert group.attestation is not None
            owing |= group.attestation.silent()
            disputed |= smallest_cover(group.attestation.disputes())
            found = group.attestation.sketches(self._vectors.__getitem__)
            outcome.sketches |= {name: found[name] for name in group.survivors if name in found}
        finding = Finding(in_units(outcome.sketches, outcome.scale), frozenset(owing), frozenset(disputed))
        accepted = accept(finding)
        for group in attesting:
            self._from_group(group, group.accept([name for name in group.candidates() if name in accepted], self._now))
            self._pump()
            self._carry_on(group)

    def _finish(self, group: GroupRound) -> GroupOutcome:
        total: Ring | None = None
        aborted, reason, causers = "", "", group.causers
        if group.stage is GroupStage.SUMMING:
            try:
                total, _ = group.unmask(self._vectors.__getitem__)
                group.close()
            except RefusedError as error:
                aborted, reason, causers = error.cause, str(error), frozenset(error.culprits)
        elif group.aborted is not None:
            aborted, reason = group.aborted.cause, group.aborted.reason
        attestation = group.attestation
        reports = attestation.reports if attestation is not None else {}
        owing = attestation.silent() if attestation is not None else set[str]()
        return GroupOutcome(
            joined=tuple(member.name for member in group.roster.members) if group.roster else (),
            dealt=group.dealt,
            survivors=group.survivors,
            attested=tuple(name for name in group.survivors if name in reports),
            summed=group.summed if total is not None else (),
            aborted=aborted,
            reason=reason,
            causers=causers - self._barred,
            finishers=group.revealers,
            owing=frozenset(owing),
            total=total,
        )

    # Carrying

    def _pump(self) -> None:
        while self._queue:
            self._queue.popleft()()

    def _from_device(self, group: GroupRound, name: str, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and self._order.sends(name, _place(effect.kind)):
                self._queue.append(partial(self._to_group, group, name, effect))

    def _to_group(self, group: GroupRound, name: str, effect: Send) -> None:
        if effect.transfer:
            self._vectors[name] = np.frombuffer(effect.data, "<u2")
            self._from_group(group, group.vector(name, effect.data, self._now))
            return
        with contextlib.suppress(StaleError):  # a quorum has answered, and the group has gone on
            self._from_group(group, group.receive(effect.kind, name, effect.data, self._now))

    def _from_group(self, group: GroupRound, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                for name, _ in group.grouping.members:
                    self._queue.append(partial(self._to_device, group, name, effect.kind, effect.data))
            elif isinstance(effect, Deliver):
                self._queue.append(partial(self._to_device, group, effect.device, effect.kind, effect.data))

    def _to_device(self, group: GroupRound, name: str, kind: str, data: bytes) -> None:
        """Let a device answer, unless it has fallen silent: then it does not hear either."""
        device = self._fleet.member(name).round if name in self._order.works and name not in self._barred else None
        if device is None or device.finished or not self._hears(name, kind):
            return
        effects = device.receive(kind, data)
        if device.stage is DeviceStage.DEALT:
            work, source = self._order.works[name], self._fleet.member(name).source
            source.at(ROUNDING, self._order.round, self._order.attempt)
            effects = [*effects, *device.trained(work.result.update, work.metrics)]
        self._from_device(group, name, effects)

    def _hears(self, name: str, kind: str) -> bool:
        """Whether a device is still there when a message comes that asks for its next answer."""
        return self._order.sends(name, _ANSWERED_BY.get(kind, topics.JOIN))


_ANSWERED_BY = {
    topics.ROSTER: topics.SHARES,
    topics.DEALT: topics.MASKED,
    topics.SURVIVORS: topics.SURVIVORS,
    topics.ATTEST: topics.ATTEST,
    topics.ACCEPT: topics.ACCEPT,
    topics.UNMASK: topics.UNMASK,
}


def _place(kind: str) -> str:
    """Return the stage that a device's message belongs to; complaints and what they bring come with the vector."""
    return kind if kind in _ANSWERED_BY.values() or kind == topics.JOIN else topics.MASKED


@contextlib.contextmanager
def masks_left_out() -> Iterator[None]:
    """Have masks expand to zeros, in this process and for a while.

    Masks cancel exactly, in sums and in sketches, so all that is computed from a round stays the same; but for the
    digests of masked vectors, and what follows from these. The protocol itself has no switch for this.
    """
    expand = prg.side_by_side
    prg.side_by_side = lambda seeds, length: iter(())
    try:
        yield
    finally:
        prg.side_by_side = expand
