"""How much privacy rounds cost a device: Rényi differential privacy of Skellam noise, added up and put as (ε, δ).

What is protected is everything that one device holds: two worlds are neighbours if in one of them a device's rounded
update is replaced by zeros (its noise stays), so the sensitivity is the largest norm Δ of a rounded update.

- *One round*: a sum over at least ``honest`` honest members carries Skellam noise of variance µ = honest · variance in
  each coordinate. Its Rényi divergence of whole order α > 1 is at most
  αΔ²/(2µ) + min(((2α − 1)Δ² + 6Δ₁)/(4µ²), 3Δ₁/(2µ))
  (Agarwal, Kairouz and Liu 2021, corollary 3.6), and for whole numbers the L1 norm Δ₁ is at most Δ² and at most Δ√d.
- *With a sketch* the aggregator has numbers of one device's vector before it is summed. Sketch and sum together follow
  from that vector with its own noise, and from vectors that do not depend on it, so they tell no more than it would:
  the same with µ = variance, which costs ``honest`` times as much. That holds whatever matrix was drawn, by whom and
  how often. It is far more than an aggregator learns that did not pick the matrix (``docs/privacy.md``).
- *Many rounds*: what they cost adds up order by order (Mironov 2017, "Rényi Differential Privacy", proposition 1), also
  where each round is chosen in the light of those before.
- *As (ε, δ)*: ε = ρ(α) + ln(1 − 1/α) − ln(αδ)/(α − 1) at the best order (Canonne, Kamath and Steinke 2020, "The
  Discrete Gaussian for Differential Privacy", proposition 12).

No amplification by sampling is claimed: the aggregator knows who takes part in which round.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from covey_protocol.errors import ConfigError
from covey_protocol.noise import Noise, calibrate
from covey_protocol.thresholds import honest_min

Spending = NDArray[np.float64]
"""What was spent, a bound on the Rényi divergence for each of ``ORDERS``."""

ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024, 4096)
_ORDERS = np.array(ORDERS, np.float64)
_DIGITS = 4
_MULTIPLIER_MAX = 1000.0
_TRIES = 1000


def nothing() -> Spending:
    """Return what is spent before the first round."""
    return np.zeros(len(ORDERS))


def everything() -> Spending:
    """Return what a round without noise costs."""
    return np.full(len(ORDERS), math.inf)


def skellam(sensitivity: float, variance: float, dimension: int) -> Spending:
    """Return what Skellam noise lets through.

    Args:
        sensitivity: Δ², of whole-numbered vectors.
        variance: µ of each coordinate's noise.
        dimension: How many coordinates there are.
    """
    if sensitivity == 0:
        return nothing()
    if variance <= 0:
        return everything()
    longest = min(sensitivity, math.sqrt(dimension * sensitivity))
    first = _ORDERS * sensitivity / (2 * variance)
    second = ((2 * _ORDERS - 1) * sensitivity + 6 * longest) / (4 * variance**2)
    spent: Spending = first + np.minimum(second, 3 * longest / (2 * variance))
    return spent


def round_cost(noise: Noise, *, sketched: bool) -> Spending:
    """Return what one round costs each member.

    Args:
        noise: The round's.
        sketched: Whether the member tells a sketch of its vector.
    """
    variance = noise.variance * (1 if sketched else noise.honest)
    return skellam(noise.sensitivity, variance, noise.dimension)


def least_noise_cost(multiplier: float, honest: int) -> Spending:
    """Return what a sketched round costs at most of which no more is known than its least noise multiplier.

    As Δ₁ ≤ Δ², no Skellam noise costs more than (α + 3)Δ²/(2µ), whatever its variance.

    Args:
        multiplier: Of the noise.
        honest: The most honest members that its noise may have been divided by.
    """
    if multiplier <= 0:
        return everything()
    spent: Spending = (_ORDERS + 3) * honest / (2 * multiplier**2)
    return spent


def epsilon(spent: Spending, delta: float) -> float:
    """Return ε for a δ, infinite where it is not bounded.

    Raises:
        ValueError: δ does not lie between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta} does not lie between 0 and 1")
    if not spent.any():
        return 0.0
    found = spent + np.log1p(-1 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(found.min()))


def rounds_within(cost: Spending, target: float, delta: float, spent: Spending | None = None) -> int:
    """Return how many rounds of a cost fit into ε.

    Args:
        cost: Of each.
        target: ε.
        delta: δ.
        spent: What went before.
    """
    before = nothing() if spent is None else spent
    low, high = 0, 1
    while high <= 1 << 40 and epsilon(before + high * cost, delta) <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon(before + middle * cost, delta) <= target else (low, middle)
    return low


def multiplier_for(
    target: float, delta: float, rounds: int, *, n_max: int, dimension: int, a_min: int = 0, sketch: int = 0
) -> float:
    """Return the least noise multiplier, rounded up to four digits, with which so many rounds stay within ε.

    Args:
        target: ε.
        delta: δ.
        rounds: How many, each with a sketch if ``sketch`` is not 0.
        n_max, dimension, a_min, sketch: As for ``noise.calibrate``.

    Raises:
        ConfigError: No noise that the ring has room for does.
    """

    honest = honest_min(n_max, a_min) if sketch else 1

    def at_best(multiplier: float) -> float:
        """Return what a noise without grain would spend, which no ring can undercut."""
        return epsilon(rounds * honest * _ORDERS / (2 * multiplier**2), delta)

    low, high = 0.0, 0.01
    while at_best(high) > target:
        low, high = high, 2 * high
        if high > _MULTIPLIER_MAX:
            raise ConfigError(f"no noise up to {_MULTIPLIER_MAX:g} keeps {rounds} rounds within epsilon {target:g}")
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if at_best(middle) <= target else (middle, high)
    digit = 10.0 ** (math.floor(math.log10(high)) - _DIGITS + 1)
    for more in range(_TRIES):
        found = round((math.ceil(high / digit) + more) * digit, 12)
        noise = calibrate(found, n_max=n_max, dimension=dimension, a_min=a_min, sketch=sketch)
        if epsilon(rounds * round_cost(noise, sketched=bool(sketch)), delta) <= target:
            return found
    raise ConfigError(f"the ring is too coarse for {rounds} rounds within epsilon {target:g}")
