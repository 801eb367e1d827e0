"""The aggregator's part in a rehearsed fleet: rounds, attempts, epochs, the new model, and the books.

What the service decides is decided by its own code here: who sits out (``Conduct``), when groups are drawn anew
(``Regrouping``), whose updates count (the reputation rule), and how groups' sums become a model (``combine``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from covey_agent.data import Dataset
from covey_aggregator.combine import GroupMean, combine, dithered, group_mean
from covey_aggregator.conduct import Conduct
from covey_aggregator.regrouping import Regrouping
from covey_aggregator.reputations import next_clip
from covey_protocol import accounting, model
from covey_protocol.accounting import Spending
from covey_protocol.bundle import Float32
from covey_protocol.epochs import Grouping
from covey_protocol.policy import Policy
from covey_protocol.sketch import default_k
from covey_simulator.chronicle import Chronicle
from covey_simulator.data import device_names
from covey_simulator.engine.attendance import Attendance
from covey_simulator.engine.judge import Heard, Judge
from covey_simulator.engine.learners import Learners
from covey_simulator.engine.parts import Finding, Order, RoundOutcome, Rounds
from covey_simulator.records import RoundRecord
from covey_simulator.scenario import Scenario

log = logging.getLogger("covey.simulator.engine")

ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class Step:
    """One attempt and all that came of it, for those who look on.

    Attributes:
        record: Its record.
        outcome: What the level made of it.
        accepted: Devices whose sketches were accepted; None where nobody attested.
        weights: The model after it.
        barred: Who was kept off the rosters.
        expelled: Who was quarantined or banned before it.
    """

    record: RoundRecord
    outcome: RoundOutcome
    accepted: frozenset[str] | None
    weights: Float32
    barred: frozenset[str]
    expelled: frozenset[str]


@dataclass(kw_only=True)
class Play(Chronicle):
    """A whole run, with what was thought of the devices.

    Attributes:
        weights: The last model.
        records: One for each round that closed or failed for good.
        attack_success: How far the attack has reached its goal with the last model; None where it has none.
    """

    weights: Float32
    records: list[RoundRecord] = field(default_factory=list)
    attack_success: float | None = None


class Conductor:
    """Runs a scenario at one of the levels in this process.

    Args:
        scenario: What is run.
        rounds: The level.
        learners: Who trains.
        judge: Who is accepted.
        held_out: What models are measured on.
        policy: The operator's floors.
        on_step: Told of each attempt.
    """

    def __init__(
        self,
        scenario: Scenario,
        rounds: Rounds,
        learners: Learners,
        judge: Judge,
        held_out: Dataset,
        *,
        policy: Policy | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.scenario, self._rounds, self._learners, self._judge = scenario, rounds, learners, judge
        self._held_out, self._policy, self._on_step = held_out, policy or Policy(), on_step
        self.names = device_names(scenario.devices)
        self._index = {name: index for index, name in enumerate(self.names)}
        self._attendance = Attendance(scenario, learners.malicious)
        self._conduct, self._regrouping = Conduct(), Regrouping()
        self._groupings: Sequence[Grouping] = ()
        self._epoch = self._rounds_in_epoch = 0
        self._accepted: frozenset[str] | None = None
        self._last_clip = scenario.clip
        attesting = scenario.attesting
        dimension = learners.trainer.bundle.dimension
        self._sketch = (attesting.sketch or default_k(dimension)) if attesting else 0
        self._lot = attesting.lot if attesting else 1
        noise = scenario.privacy.noise(
            rounds=scenario.rounds, group_size=scenario.group_size, dimension=dimension, sketch=self._sketch
        )
        self._noise = noise.multiplier if noise is not None else 0.0
        self._spent: dict[str, Spending] = {}

    def run(self, on_round: Callable[[RoundRecord], None] | None = None) -> Play:
        """Run all rounds."""
        play = Play(weights=self._learners.trainer.bundle.weights.copy())
        for number in range(1, self.scenario.rounds + 1):
            for attempt in range(1, ATTEMPTS + 1):
                record = self._attempt(play, number, attempt)
                if not record.failed:
                    break
            play.records.append(record)
            play.note(number, self._judge.opinions(), self.names)
            if on_round is not None:
                on_round(record)
        play.attack_success = self._learners.success(play.weights, self._held_out)
        return play

    def _attempt(self, play: Play, number: int, attempt: int) -> RoundRecord:
        started = time.perf_counter()
        enrolled = {self.names[index] for index in self._attendance.enrolled(number)}
        self._judge.admit(sorted(enrolled))
        out = self._judge.out()
        if not self._groupings or self._regrouping.reason:
            self._regroup(enrolled, out)
        barred = self._judge.barred(self._groupings)
        clip = self._clip()
        grouped = {name for grouping in self._groupings for name, _ in grouping.members}
        present = [i for i in self._attendance.present(number) if self.names[i] in grouped - barred]
        works = self._learners.works(
            number,
            play.weights,
            present=present,
            clip=clip,
            expelled=frozenset(self._index[name] for name in out),
        )
        trained = time.perf_counter()
        silent = self._attendance.silent_from(number, attempt)
        order = Order(
            round=number,
            attempt=attempt,
            weights=play.weights,
            clip=clip,
            works={self.names[index]: work for index, work in works.items()},
            silent_from={self.names[index]: kind for index, kind in silent.items()},
            sketch=self._sketch,
            lot=self._lot,
            watched=lambda members: not self._judge.trusts(members),
            noise=self._noise,
            a_min=self.scenario.privacy.a_min,
        )
        self._accepted = None
        outcome = self._rounds.run(order, self._groupings, barred, self._accept)
        carried = time.perf_counter()
        means = self._means(outcome)
        if means:
            combined = combine(
                play.weights,
                means,
                rule=self.scenario.across_groups,
                contamination=self._contamination(),
                evaluator=None,
                influence=self._judge.influence({name: outcome.groups[name].summed for name in means}),
            )
            play.weights = combined.weights
        elif outcome.masked:
            entropy = self.scenario.seed_for("dither", number, attempt)
            play.weights = model.apply_delta(play.weights, dithered(play.weights, entropy))
        self._judge.look(order.weights, outcome)
        self._judge.settle(self._heard(outcome))
        loss, accuracy = self._learners.trainer.evaluate(play.weights, self._held_out) if means else (None, None)
        self._book(outcome, enrolled - self._judge.out(), set(means))
        ended = time.perf_counter()
        joined = sum(len(group.joined) for group in outcome.groups.values())
        delivered = sum(len(group.survivors) for group in outcome.groups.values())
        rejected = set(outcome.sketches) - self._accepted - out if self._accepted is not None else set[str]()
        record = RoundRecord(
            round=number,
            attempt=attempt,
            accuracy=accuracy,
            loss=loss,
            federated_accuracy=combined.federated_accuracy if means else None,
            participants=joined,
            accepted=sum(mean.count for mean in means.values()),
            rejected=len(rejected),
            honest_rejected=sum(self._index[name] not in self._learners.malicious for name in rejected),
            attested=len(set(outcome.sketches) - out),
            groups=len(means),
            groups_aborted=len(outcome.groups) - len(means),
            dropped=joined - delivered,
            seconds=ended - started,
            stage_seconds={
                "training": trained - started,
                "round": carried - trained,
                "combining": ended - carried,
            },
            epsilon=self._epsilon(outcome),
        )
        if self._on_step is not None:
            self._on_step(Step(record, outcome, self._accepted, play.weights, barred, out))
        return record

    def _epsilon(self, outcome: RoundOutcome) -> float | None:
        """Book what an attempt has cost those who masked an update in it, and return what the dearest has spent."""
        noise = outcome.scale.noise
        if noise is None:
            return None
        for group in outcome.groups.values():
            for name in group.survivors:
                cost = accounting.round_cost(noise, sketched=name in group.attested or name in group.owing)
                self._spent[name] = self._spent.get(name, accounting.nothing()) + cost
        delta = self.scenario.privacy.delta
        return max((accounting.epsilon(spent, delta) for spent in self._spent.values()), default=0.0)

    def _accept(self, finding: Finding) -> frozenset[str]:
        self._accepted = self._judge.accept(finding)
        return self._accepted

    def _contamination(self) -> float:
        return max(self.scenario.contamination, self._judge.contamination() or 0.0)

    def _heard(self, outcome: RoundOutcome) -> Heard:
        groups = outcome.groups.values()
        joined = {name for group in groups for name in group.joined}
        answered = {name for group in groups for name in group.survivors}
        late = ("too-few-signed", "too-few-revealed")
        refused = {name for group in groups if group.aborted in late for name in group.causers & {*group.attested}}
        spoilt = {name for group in groups if group.aborted == "bad-sum" for name in group.attested}
        return Heard(
            answered=frozenset(answered),
            silent=frozenset(joined - answered),
            refused=frozenset(refused),
            spoilt=frozenset(spoilt) | outcome.liars.keys(),
            liars=outcome.liars,
        )

    def _means(self, outcome: RoundOutcome) -> dict[str, GroupMean]:
        means = {}
        for name, group in outcome.groups.items():
            if group.total is None:
                continue
            mean = group_mean(group.total, len(group.summed), outcome.scale)
            if mean is None:
                group.aborted, group.reason = "bad-sum", "the sum is none that honest members can make"
            else:
                means[name] = mean
        return means

    def _clip(self) -> float:
        usual = self._judge.usual_norm() if self.scenario.adapts_clip else None
        if usual is not None:
            self._last_clip = next_clip(self.scenario.clip, norm=usual, last=self._last_clip)
        return self._last_clip

    def _regroup(self, enrolled: set[str], out: frozenset[str]) -> None:
        self._conduct.sentence(enrolled)
        listed = enrolled - out - self._conduct.sitting_out()
        if len(listed) < self._policy.list_min:  # those who sit out are let in again, but nobody who poisons
            listed = enrolled - out
        newcomers = self._judge.newcomers()
        self._epoch += 1
        self._groupings = self._rounds.open_epoch(self._epoch, {name: name in newcomers for name in sorted(listed)})
        self._conduct.regrouped()
        self._regrouping.grouped()
        self._rounds_in_epoch = 0
        log.info("epoch %d: %d devices in %d groups", self._epoch, len(listed), len(self._groupings))

    def _book(self, outcome: RoundOutcome, online: set[str], closed: set[str]) -> None:
        """Note who made groups abort and who finished, and whether groups are to be drawn anew."""
        aborted = {
            name: group
            for name, group in outcome.groups.items()
            if name not in closed and group.aborted != "too-few-accepted"  # what was refused is no offence of conduct
        }
        known = {name: group.causers for name, group in aborted.items()}
        self._conduct.round_ended(
            known,
            {name for key in closed for name in outcome.groups[key].finishers},
            {name: group.dealt for name, group in aborted.items() if not group.causers},
        )
        members = {grouping.group: [name for name, _ in grouping.members] for grouping in self._groupings}
        grouped = {name for names in members.values() for name in names}
        self._rounds_in_epoch += bool(closed)
        floor = self._policy.roster_min
        self._regrouping.round_ended(
            epoch_over=self._rounds_in_epoch >= self.scenario.epoch_rounds,
            rounds_in_epoch=self._rounds_in_epoch,
            under=[group for group, names in members.items() if len(online.intersection(names)) < floor],
            fallen=self._conduct.fallen(members),
            waiting=len(online - grouped - self._conduct.sitting_out()),
            grouped=len(grouped),
            roster_min=floor,
            any_closed=bool(closed),
        )
