"""What a rehearsed round consists of: the work that devices hand in, who falls silent when, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey_agent.trainer import TrainResult
from covey_protocol import ring, topics
from covey_protocol.epochs import Grouping
from covey_protocol.model import Weights
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics, RingScale

Sketches = Mapping[str, NDArray[np.float64]]

STAGES = (topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.ATTEST, topics.ACCEPT, topics.UNMASK)
"""The messages of a device in a round, in their order."""


@dataclass(frozen=True, eq=False)
class Work:
    """What one device's training gave.

    Attributes:
        result: The update and what is reported with it. A poisoner's is what it wants to send.
        clips: Whether the device clips, which is its own act; a poisoner is bounded by the ring alone.
    """

    result: TrainResult
    clips: bool = True

    @property
    def metrics(self) -> Metrics:
        """What is reported about the incoming model; the norm is filled in where it is clipped."""
        return Metrics(loss=self.result.loss, accuracy=self.result.accuracy, samples=self.result.samples, norm=0.0)

    def bounded(self, clip: float) -> tuple[Weights, float, float]:
        """Return the update, the factor that brings it within the clip, and its norm before."""
        update = self.result.update
        if self.clips:
            return update, *ring.clip_factor(update, clip)
        return np.clip(update, -clip, clip), 1.0, ring.norm(update)

    def encoded(self, scale: RingScale, seed: bytes) -> Ring:
        """Return the update and its metrics in the ring, rounded as a device rounds them."""
        update, factor, norm = self.bounded(scale.clip)
        told = self.metrics
        metrics = Metrics(loss=told.loss, accuracy=told.accuracy, samples=told.samples, norm=norm)
        return ring.encode(update, metrics, scale, seed, factor, clips=self.clips)


@dataclass(frozen=True, eq=False)
class Order:
    """One attempt at a round.

    Attributes:
        round, attempt: From 1.
        weights: The round's model.
        clip: Bound on the norm of an update.
        works: What the devices that join will hand in.
        silent_from: For devices that fall silent, the first message that they no longer send.
        sketch: Numbers in a sketch; 0 for a round without attestation.
        lot: Groups that are not watched attest in one round of so many.
        noise, a_min: As in a manifest.
        watched: Says whether a group attests however the lot falls.
    """

    round: int
    attempt: int
    weights: Weights = field(repr=False)
    clip: float
    works: Mapping[str, Work] = field(repr=False)
    silent_from: Mapping[str, str]
    sketch: int
    lot: int
    watched: Callable[[Sequence[str]], bool]
    noise: float = 0.0
    a_min: int = 0

    def scale(self, n_max: int) -> RingScale:
        """Return the round's ring."""
        return RingScale.noisy(
            self.clip,
            n_max,
            multiplier=self.noise,
            dimension=len(self.weights),
            a_min=self.a_min,
            sketch=self.sketch,
        )

    def sends(self, name: str, kind: str) -> bool:
        """Whether a device joins and still sends its message of a kind."""
        if name not in self.works:
            return False
        silent = self.silent_from.get(name)
        return silent is None or STAGES.index(kind) < STAGES.index(silent)


@dataclass
class GroupOutcome:
    """What became of a group.

    Attributes:
        joined, dealt, survivors, summed: R ⊇ D ⊇ U ⊇ A, as far as it got.
        attested: Members whose sketches are known.
        aborted: Why there is no sum, in a word.
        reason: The same in words.
        causers: Who made it abort.
        finishers: Who did its part to the end.
        owing: Members of U who were asked for a sketch and sent none.
        total: The sum over A in the ring.
    """

    joined: tuple[str, ...] = ()
    dealt: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    attested: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    aborted: str = ""
    reason: str = ""
    causers: frozenset[str] = frozenset()
    finishers: frozenset[str] = frozenset()
    owing: frozenset[str] = frozenset()
    total: Ring | None = field(default=None, repr=False)


@dataclass
class RoundOutcome:
    """What became of an attempt.

    Attributes:
        groups: By name.
        sketches: Of every update that was attested, in the ring, by device.
        seeds: ρ of each shard.
        scale: The round's ring.
        masked: Whether a device may have masked an update of this model, so that the model is spent.
        liars: Who is proven to have lied about sketches, and about which.
    """

    scale: RingScale
    groups: dict[str, GroupOutcome] = field(default_factory=dict)
    sketches: dict[str, Ring] = field(default_factory=dict)
    seeds: dict[str, bytes] = field(default_factory=dict)
    masked: bool = False
    liars: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What attestation has shown in a round.

    Attributes:
        sketches: In the units of updates, by device.
        owing: Who sent a masked vector and no sketch.
        disputed: Who contradicts peers about masks, and has to go without proof of who lied.
    """

    sketches: Sketches
    owing: frozenset[str] = frozenset()
    disputed: frozenset[str] = frozenset()


Accept = Callable[[Finding], frozenset[str]]
"""From a round's finding to the devices that are accepted."""


class Rounds(Protocol):
    """A level at which rounds are rehearsed."""

    def open_epoch(self, epoch: int, listed: Mapping[str, bool]) -> list[Grouping]:
        """Draw the groups of an epoch.

        Args:
            epoch: Its number, larger than any before.
            listed: The devices to group, and whether each is a newcomer on probation.
        """

    def run(self, order: Order, groupings: Sequence[Grouping], barred: frozenset[str], accept: Accept) -> RoundOutcome:
        """Run one attempt at a round up to the groups' sums.

        Args:
            order: What is to be done.
            groupings: The epoch's groups.
            barred: Devices whose joins are not taken.
            accept: Is asked once, when all sketches are there; not in rounds in which nobody attests.
        """


def in_units(sketches: Mapping[str, Ring], scale: RingScale) -> dict[str, NDArray[np.float64]]:
    """Return sketches as real numbers in the units of updates."""
    return {name: sketch.view(np.int16).astype(np.float64) * scale.step for name, sketch in sketches.items()}


def shard_of_group(group: str) -> str:
    """Return the shard's label in a group's name."""
    return group.split("-")[1]
