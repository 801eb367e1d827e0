"""How much noise each device adds to its update, and what of the ring is left for the update.

Noise has to hide one device's update in a sum that the aggregator sees, and what can be counted on in a sum is the
noise of its honest members alone: a_min − c of them (``thresholds.honest_min``), however many there are. So each device
adds Skellam noise of variance z²Δ²/(a_min − c) to each coordinate, where z is the noise multiplier and Δ bounds the L2
norm of an update in the ring. Rounding makes an update longer: Δ² = units² + d/4 where the clip is that many units,
which ``ring.encode`` holds to the letter (after Kairouz, Liu and Steinke 2021, section 4, and Agarwal, Kairouz and Liu
2021, section 4).

The finer the ring's step, the less is lost to rounding, and the more room the noise takes. ``calibrate`` takes the
finest step for which sums, and sketches if there are any, do not wrap. No rotation comes before rounding: it would
spread an update evenly and so save room for the largest coordinate of a sum, but with enough noise to speak of the
noise takes most of the room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from covey_protocol.errors import ConfigError
from covey_protocol.prg import HALF_RING
from covey_protocol.thresholds import honest_min

TAILS = 7.0  # standard deviations of a sum's noise that the ring has room for: 2.6e-12 of all coordinates lie beyond
_SKETCH_TAILS = 6.0


@dataclass(frozen=True)
class Noise:
    """What a round's noise comes to in the ring.

    Attributes:
        multiplier: z, what the noise of a sum's honest members is to the largest norm of an update.
        honest: How many honest members every sum has.
        dimension: Coordinates that get noise, d.
        units: The clip in ring units.
        sensitivity: Δ², the largest squared norm of a rounded update.
        variance: Of the noise that each device adds to each coordinate; even.
    """

    multiplier: float
    honest: int
    dimension: int
    units: int
    sensitivity: int
    variance: int

    def reach(self, count: int) -> float:
        """Return the largest magnitude that a coordinate of a sum's noise has room for."""
        return TAILS * math.sqrt(count * self.variance)


def calibrate(multiplier: float, *, n_max: int, dimension: int, a_min: int = 0, sketch: int = 0) -> Noise:
    """Find the finest ring that has room for a round's noise.

    Args:
        multiplier: z, above 0.
        n_max: The largest roster.
        dimension: Parameters of the model.
        a_min: Smallest set that is summed, where it exceeds the formula's.
        sketch: Numbers in a sketch, 0 for none.

    Raises:
        ConfigError: Sums or sketches would wrap, or rounding would cost as much noise as clipping does.
    """
    honest = honest_min(n_max, a_min)

    def noise(units: int) -> Noise:
        sensitivity = units**2 + dimension // 4
        variance = 2 * math.ceil(multiplier**2 * sensitivity / honest / 2)
        return Noise(multiplier, honest, dimension, units, sensitivity, variance)

    def fits(units: int) -> bool:
        found = noise(units)
        if n_max * units + found.reach(n_max) > HALF_RING:
            return False
        bucket = (found.sensitivity + dimension * found.variance) / sketch if sketch else 0.0
        return _SKETCH_TAILS * math.sqrt(bucket) <= HALF_RING

    units, too_many = 0, HALF_RING
    while too_many - units > 1:
        middle = (units + too_many) // 2
        units, too_many = (middle, too_many) if fits(middle) else (units, middle)
    if 4 * units**2 < dimension:
        with_sketch = f" with sketches of {sketch} numbers" if sketch else ""
        raise ConfigError(
            f"noise of {multiplier:g} leaves {units} units of the ring for the clip, in groups of {n_max}"
            f"{with_sketch}; a model of {dimension} parameters needs {math.ceil(math.sqrt(dimension / 4))}",
            cause="noise-room",
        )
    return noise(units)
