"""Who is accepted: the aggregator's reputation rule, or nobody judges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey_aggregator.probes import Probes
from covey_aggregator.reputation import NEWCOMERS, OUT, Reputation, Ruling, Settings, State
from covey_aggregator.reputations import without_place
from covey_protocol.bundle import Float32
from covey_protocol.epochs import Grouping
from covey_simulator.chronicle import Opinion
from covey_simulator.engine.parts import Finding, RoundOutcome, in_units, shard_of_group
from covey_simulator.scenario import Scenario


@dataclass(frozen=True)
class Heard:
    """Who did what in a round, beside the sketches.

    Attributes:
        answered: Who sent a masked vector.
        silent: Who joined and did not.
        refused: Who attested and then would not sign or unmask.
        spoilt: Who was in a group whose sum turned out to be false.
        liars: Who is proven to have lied, and about what.
    """

    answered: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    spoilt: frozenset[str] = frozenset()
    liars: Mapping[str, str] = field(default_factory=dict)


class Judge(Protocol):
    """Judges devices by their sketches."""

    def admit(self, names: Collection[str]) -> None:
        """Take devices into the fleet; known ones stay as they are."""

    def accept(self, finding: Finding) -> frozenset[str]:
        """Judge an attested round, and return who is accepted; nothing is settled yet."""

    def look(self, weights: Float32, outcome: RoundOutcome) -> None:
        """Look at a round's sketches again once it is over, with probes that count in the next one."""

    def settle(self, heard: Heard) -> None:
        """Take a round into the books once it is over, attested or not."""

    def out(self) -> frozenset[str]:
        """Return the devices that are quarantined or banned, and that no new list names."""

    def barred(self, groupings: Sequence[Grouping]) -> frozenset[str]:
        """Return the members of groups who have no place on a roster."""

    def newcomers(self) -> frozenset[str]:
        """Return the devices that are to be grouped by themselves."""

    def trusts(self, names: Collection[str]) -> bool:
        """Say whether all of some devices are trusted."""

    def usual_norm(self) -> float | None:
        """Return the norm that was usual among the accepted of the last attested round."""

    def contamination(self) -> float | None:
        """Return the share of hostile devices to be expected among those who are accepted now."""

    def influence(self, groups: Mapping[str, Collection[str]]) -> Mapping[str, float] | None:
        """Return what each group counts for, given its members that were summed; None is the same for all."""

    def opinions(self) -> Mapping[str, Opinion]:
        """Return what is thought of every device."""


class NoJudge:
    """Accepts everybody: there are no sketches to judge by."""

    def admit(self, names: Collection[str]) -> None:
        """Nothing is kept."""

    def accept(self, finding: Finding) -> frozenset[str]:
        """Accept all but those who contradict others."""
        return frozenset(finding.sketches) - finding.disputed

    def look(self, weights: Float32, outcome: RoundOutcome) -> None:
        """There is nothing to look at."""

    def settle(self, heard: Heard) -> None:
        """Nothing is kept."""

    def out(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def barred(self, groupings: Sequence[Grouping]) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def newcomers(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def trusts(self, names: Collection[str]) -> bool:
        """Everybody."""
        return True

    def usual_norm(self) -> float | None:
        """Unknown."""
        return None

    def contamination(self) -> float | None:
        """Unknown."""
        return None

    def influence(self, groups: Mapping[str, Collection[str]]) -> Mapping[str, float] | None:
        """The same for all."""
        return None

    def opinions(self) -> Mapping[str, Opinion]:
        """None."""
        return {}


class RuleJudge:
    """The aggregator's reputation rule and its book.

    Args:
        settings: The rule's parameters.
        enforce: Whether it acts; otherwise it only scores.
        probes: What devices teach is looked at with these.
    """

    def __init__(self, settings: Settings | None = None, *, enforce: bool = True, probes: Probes | None = None) -> None:
        self.book, self._enforce, self.probes = Reputation(settings), enforce, probes
        self._ruling: Ruling | None = None
        self._norm: float | None = None
        self._contamination: float | None = None

    def admit(self, names: Collection[str]) -> None:
        """Put newcomers on probation."""
        for name in names:
            if name not in self.book:
                self.book.admit(name)

    def accept(self, finding: Finding) -> frozenset[str]:
        """Judge an attested round."""
        self._ruling = self.book.ruling(
            finding.sketches,
            enforce=self._enforce,
            disputed=finding.disputed,
            refused=finding.owing,
            probed=self.probes.evidence() if self.probes is not None else None,
            excused=self.probes.excused() if self.probes is not None else None,
        )
        self._contamination = self._ruling.contamination
        return self._ruling.accepted

    def look(self, weights: Float32, outcome: RoundOutcome) -> None:
        """Hold the sketches of groups whose sums came out against the held-out samples."""
        if self.probes is None:
            return
        sketches = in_units(outcome.sketches, outcome.scale)
        shards: dict[bytes, dict[str, NDArray[np.float64]]] = {}
        for name, group in outcome.groups.items():
            seed = outcome.seeds.get(shard_of_group(name))
            if seed is not None and not group.aborted:
                shards.setdefault(seed, {}).update({n: sketches[n] for n in group.attested if n in sketches})
        self.probes.look(weights, shards)

    def settle(self, heard: Heard) -> None:
        """Settle the ruling, and note who answered."""
        if self._ruling is not None:
            settled = self.book.settle(self._ruling, without=heard.spoilt, refused=heard.refused)
            self._norm = settled.reference_norm or self._norm
            self._ruling = None
        for name, reason in heard.liars.items():
            self.book.ban(name, reason)
        self.book.heard(heard.answered, heard.silent)

    def out(self) -> frozenset[str]:
        """Return the quarantined and banned; only the latter if the rule does not act."""
        return frozenset(self.book.names(*OUT) if self._enforce else self.book.names(State.BANNED))

    def barred(self, groupings: Sequence[Grouping]) -> frozenset[str]:
        """Return those whom the aggregator would leave out."""
        return frozenset(without_place(groupings, self.out(), self.book.names(State.BANNED)))

    def newcomers(self) -> frozenset[str]:
        """Return those on probation, once there is a fleet that is not."""
        known = self._enforce and self.book.established
        return frozenset(self.book.names(*NEWCOMERS)) if known else frozenset()

    def trusts(self, names: Collection[str]) -> bool:
        """Say whether all of some devices are trusted."""
        return all(self.book.standing(name).state is State.TRUSTED for name in names)

    def usual_norm(self) -> float | None:
        """Return the last ruling's reference norm."""
        return self._norm

    def contamination(self) -> float | None:
        """Return the last ruling's estimate."""
        return self._contamination

    def influence(self, groups: Mapping[str, Collection[str]]) -> Mapping[str, float] | None:
        """Return what the book says, where the rule acts."""
        return self.book.influence(groups) if self._enforce else None

    def opinions(self) -> Mapping[str, Opinion]:
        """Return the book's standings."""
        standings = {name: self.book.standing(name) for name in self.book.names()}
        return {name: Opinion(it.state.value, it.state in OUT, it.score, it.words) for name, it in standings.items()}


def make_judge(scenario: Scenario, probes: Probes | None = None) -> Judge:
    """Return who judges a scenario's devices, with probes where it asks for them."""
    if not scenario.attesting:
        return NoJudge()
    return RuleJudge(enforce=scenario.reputation == "enforce", probes=probes)
