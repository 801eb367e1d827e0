"""A distinguishing attack on sums with noise, through the ring code that devices run.

The attacker plants a canary: one member's update is as long as the clip allows, or it is nothing. It knows which way
the canary points, that everybody else's update is nothing, and whose noise is in the sum: that of the honest members
alone, as if all others were its own. It sees the sum of every round and has to say which world it is in. What it gets
right and wrong bounds ε from below (Jagielski, Ullman and Oprea 2020, "Auditing Differentially Private Machine
Learning"): for any (ε, δ) its true positives are at most e^ε times its false ones, and δ.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_protocol import accounting, ring
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics, RingScale

_NOTHING_TOLD = Metrics(loss=0, accuracy=0, samples=0, norm=0)
_CONFIDENCE = 0.95
Encode = Callable[[NDArray[np.float32], Metrics, RingScale, bytes], Ring]


@dataclass(frozen=True)
class Game:
    """What is played.

    Attributes:
        multiplier, a_min, n: Of the rounds: noise, smallest sum, roster.
        dimension: Of the model.
        spread: Whether the canary is the same in all coordinates, or all in one.
        alone: Whether one device's noisy vector is seen by itself, which is what a sketch is charged for.
        rounds: Seen before the attacker has to say.
        delta: δ; a large one leaves the least between what can be proven by trying and what is claimed.
    """

    multiplier: float
    a_min: int = 0
    n: int = 10
    dimension: int = 16
    spread: bool = True
    alone: bool = False
    rounds: int = 1
    delta: float = 1e-2

    @property
    def scale(self) -> RingScale:
        """The rounds' ring."""
        return RingScale.noisy(1.0, self.n, multiplier=self.multiplier, dimension=self.dimension, a_min=self.a_min)

    @property
    def claimed(self) -> float:
        """The ε that the accounting claims."""
        noise = self.scale.noise
        assert noise is not None
        return accounting.epsilon(self.rounds * accounting.round_cost(noise, sketched=self.alone), self.delta)

    def scores(self, there: bool, trials: int, encode: Encode = ring.encode) -> NDArray[np.float64]:
        """Return how far what is seen points the canary's way, trial by trial."""
        scale = self.scale
        assert scale.noise is not None
        nothing = np.zeros(self.dimension, np.float32)
        canary = nothing.copy()
        canary[: self.dimension if self.spread else 1] = 1.0
        canary /= np.linalg.norm(canary)
        updates = [canary if there else nothing] + [nothing] * (0 if self.alone else scale.noise.honest - 1)
        found = np.zeros(trials)
        for trial in range(trials):
            for round_ in range(self.rounds):
                total = np.zeros(self.dimension + len(ring.METRICS), np.uint16)
                for member, update in enumerate(updates):
                    seed = hashlib.sha256(repr((self, there, trial, round_, member)).encode()).digest()
                    total += encode(update, _NOTHING_TOLD, scale, seed)
                mean, _ = ring.decode_mean(total, 1, scale)
                found[trial] += float(mean @ canary)
        return found


@dataclass(frozen=True)
class Finding:
    """What came out: ε is at least ``least`` with 95% confidence, and ``claimed`` by the accounting."""

    least: float
    claimed: float

    @property
    def sound(self) -> bool:
        """Whether the claim stands."""
        return self.least <= self.claimed


def play(game: Game, trials: int, encode: Encode = ring.encode) -> Finding:
    """Play a game so many times in each world.

    Half of the trials choose the threshold, the other half are judged by it, so that choosing costs no confidence.
    """
    absent, present = (game.scores(there, trials, encode) for there in (False, True))
    half = trials // 2
    thresholds = np.quantile(absent[:half], 1 - np.geomspace(2 / half, 0.5, 40))
    guesses = [_least(absent[:half], present[:half], float(at), game.delta) for at in thresholds]
    best = float(thresholds[int(np.argmax(guesses))])
    return Finding(_least(absent[half:], present[half:], best, game.delta), game.claimed)


def _least(absent: NDArray[np.float64], present: NDArray[np.float64], threshold: float, delta: float) -> float:
    trials = len(absent)
    false = upper_bound(int((absent > threshold).sum()), trials)
    true = 1 - upper_bound(int((present <= threshold).sum()), trials)
    return max(0.0, math.log((true - delta) / false)) if true > delta else 0.0


def upper_bound(successes: int, trials: int) -> float:
    """Return Clopper and Pearson's upper bound on a chance; two of them together have 95% confidence."""
    if successes >= trials:
        return 1.0
    numbers = np.arange(successes + 1)
    ways = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in numbers])
    low, high, level = successes / trials, 1.0, math.log((1 - _CONFIDENCE) / 2)
    for _ in range(60):
        chance = (low + high) / 2
        logs = ways + numbers * math.log(chance) + (trials - numbers) * math.log1p(-min(chance, 1 - 1e-16))
        low, high = (chance, high) if np.logaddexp.reduce(logs) > level else (low, chance)
    return high
