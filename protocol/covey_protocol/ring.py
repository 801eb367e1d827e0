"""Between real vectors and Z_2^16.

An update x in R^d with ‖x‖₂ ≤ clip becomes integers by stochastic rounding to multiples of ``step``: unbiased, so the
mean over a group stays right. ``step`` is chosen so that the sum of ``n_max`` vectors cannot wrap, whatever the vectors
are. Metrics ride behind the parameters as four more coordinates, each a fraction of a cap, and are clipped like them.

In rounds with noise (``noise``) every parameter's coordinate gets a device's share of it after it was rounded, and the
metrics are zero, without noise: told so that they mean something, they would cost as much privacy as the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_protocol import prg
from covey_protocol.digest import digest
from covey_protocol.errors import ConfigError, LocalError
from covey_protocol.messages import Manifest
from covey_protocol.noise import Noise, calibrate
from covey_protocol.prg import HALF_RING, Ring
from covey_protocol.skellam import add_noise

_ROUNDING_TRIES = 16
_SHRINK = 0.999
_TILE = 8192  # elements: stays in a small processor's first cache and wakes no BLAS threads
_STRIDE = 32768  # elements that are rounded at a time
_SAFE = (1e-30, 1e38)  # float32 sums of squares within these have neither lost small values nor overflowed
_EXACT = 1 << 24  # float32 holds every whole number up to here

LOSS_CAP = 16.0
SAMPLES_CAP = 4096.0
NORM_CAP_CLIPS = 4.0
METRICS = ("loss", "accuracy", "samples", "norm")


@dataclass(frozen=True)
class RingScale:
    """How one round maps reals to the ring.

    Attributes:
        clip: Bound C on the L2 norm of an update.
        n_max: The largest number of vectors that are ever summed.
        noise: What every device adds, if anything; it then sets the scale.
    """

    clip: float
    n_max: int
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f"clip {self.clip} must be a positive number")
        if not 1 <= self.n_max <= 1024:
            raise ConfigError(f"n_max {self.n_max} must lie between 1 and 1024")

    @classmethod
    def of(cls, manifest: Manifest) -> RingScale:
        """Return the scale that a round's manifest asks for.

        Raises:
            ConfigError: The ring has no room for its noise.
        """
        return cls.noisy(
            manifest.clip,
            manifest.n_max,
            multiplier=manifest.noise,
            dimension=manifest.model.bytes // 4,
            a_min=manifest.a_min,
            sketch=manifest.sketch,
        )

    @classmethod
    def noisy(
        cls, clip: float, n_max: int, *, multiplier: float, dimension: int, a_min: int = 0, sketch: int = 0
    ) -> RingScale:
        """Return a round's scale, without noise at a multiplier of 0; arguments and errors as ``noise.calibrate``."""
        if not multiplier:
            return cls(clip, n_max)
        return cls(clip, n_max, calibrate(multiplier, n_max=n_max, dimension=dimension, a_min=a_min, sketch=sketch))

    @property
    def step(self) -> float:
        """The real value of one ring unit: the finest for which ``n_max`` rounded vectors cannot wrap."""
        if self.noise is not None:
            return self.clip / self.noise.units
        return self.clip * self.n_max / (HALF_RING - self.n_max)

    @property
    def reach(self) -> float:
        """How far one round may move a model, a norm: the clip, and the noise of the smallest sum's mean."""
        if self.noise is None:
            return self.clip
        return self.clip + self.step * math.sqrt(self.noise.dimension * self.noise.variance / self.noise.honest)

    @property
    def coordinate_bound(self) -> int:
        """The largest magnitude, in ring units, that an honest member can put into one coordinate."""
        return math.ceil(self.clip / self.step) if self.noise is None else self.noise.units

    def check_sketch(self, dimension: int, k: int) -> None:
        """Refuse a sketch of which a bucket could wrap.

        A bucket is a sum of d/k coordinates with random signs. Its standard deviation follows from the largest norm of
        a rounded update, and six of them have to fit the ring.

        Raises:
            ConfigError: They do not.
        """
        deviation = math.sqrt(((self.clip / self.step) ** 2 + dimension / 4) / k)
        if 6 * deviation > HALF_RING:
            raise ConfigError(f"a sketch of {k} numbers could wrap: of {dimension} parameters, {self.n_max} in a group")

    def _metric_units(self) -> int:
        return HALF_RING // self.n_max - 1


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a device reports about the incoming model on its own data; it is masked, summed and gates nothing.

    ``loss`` in nats, ``accuracy`` in 0..1, ``samples`` a count, ``norm`` that of the update before clipping.
    """

    loss: float
    accuracy: float
    samples: float
    norm: float


def norm(values: NDArray[np.float32]) -> float:
    """Return the L2 norm, summed in float64 on the calling thread alone.

    ``np.linalg.norm`` hands long vectors to BLAS threads, which spin while they wait for each other: where many devices
    share a machine, for seconds.
    """
    return distance(values, None)


def distance(values: NDArray[np.float32], other: NDArray[np.float32] | None) -> float:
    """Return the L2 norm of the difference of two vectors, likewise; None stands for zeros."""
    square, room = 0.0, np.empty(_TILE)
    for tile in _pieces(len(values), _TILE):
        exact = room[: tile.stop - tile.start]
        np.copyto(exact, values[tile])
        if other is not None:
            exact -= other[tile]
        square += float(exact @ exact)
    return math.sqrt(square)


def clip_norm(update: NDArray[np.float32], clip: float) -> tuple[NDArray[np.float32], float]:
    """Return the update scaled down to L2 norm ``clip`` if it is longer, and its norm before.

    Raises:
        LocalError: The update holds NaN or infinity: training diverged.
    """
    factor, length = clip_factor(update, clip)
    return update if factor == 1 else np.multiply(update, np.float32(factor), dtype=np.float32), length


def clip_factor(update: NDArray[np.float32], clip: float) -> tuple[float, float]:
    """Return what to multiply the update by so that its L2 norm is at most ``clip``, and its norm before.

    Squares are added in float32, 8192 at a time, which is right to five digits at the least; what becomes of the update
    in the ring is held to the bound exactly (see ``encode``).

    Raises:
        LocalError: As ``clip_norm``.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is added in float64, what is not finite refused
        length = math.sqrt(sum(_square(update[tile]) for tile in _pieces(len(update), _TILE)))
    if not math.isfinite(length):
        raise LocalError("the update is not finite: local training diverged", cause="diverged")
    return (1.0 if length <= clip else clip / length), length


def _square(values: NDArray[np.float32]) -> float:
    """Return the sum of squares, in float32 where that can hold it."""
    square = float(np.dot(values, values))
    if _SAFE[0] < square < _SAFE[1]:
        return square
    exact = values.astype(np.float64)
    return float(exact @ exact)


def encode(
    update: NDArray[np.float32],
    metrics: Metrics,
    scale: RingScale,
    seed: bytes,
    factor: float = 1.0,
    *,
    clips: bool = True,
) -> Ring:
    """Round a clipped update and its metrics into the ring, and add the noise that the scale asks for.

    Args:
        update: Shape (d,), L2 norm at most ``scale.clip`` once it is multiplied by ``factor``.
        metrics: Values beyond their caps are clipped to them.
        scale: The round's scale.
        seed: 32 secret random bytes for the rounding and the noise; fresh for every call.
        factor: Clips the update on the way (see ``clip_factor``), which spares a copy of it.
        clips: Whether what is made noisy is held to the bound that the noise was made for. Simulated attackers do not.

    Returns:
        Shape (d + 4,): the parameters' coordinates, then loss, accuracy, samples and norm.

    Rounding is repeated until the rounded vector's norm is within √(C² + d·step²/4), which half of all draws meet
    (after Kairouz, Liu and Steinke 2021, section 4), so that a norm bound also holds for what leaves the device. If
    none does, it is rounded towards zero.

    Raises:
        LocalError: A coordinate is larger than any of a clipped update.
        ConfigError: The scale's noise is for a model of another size.
    """
    noise, units = scale.noise, factor / scale.step
    if noise is not None and noise.dimension != len(update):
        raise ConfigError(f"noise for {noise.dimension} parameters, and an update of {len(update)}")
    limit = (scale.clip / scale.step) ** 2 + len(update) / 4 if noise is None else float(noise.sensitivity)
    bound, vector = scale.coordinate_bound, np.empty(len(update) + len(METRICS), np.uint16)
    for attempt in range(_ROUNDING_TRIES):
        if _round(update, units, bound, vector, seed[:-1] + bytes([seed[-1] ^ attempt])) <= limit:
            break
    else:
        square = _round(update, units, bound, vector, None)
        while noise is not None and clips and square > limit:  # the clip's factor may be off in its last digits
            units *= _SHRINK * math.sqrt(limit / square)
            square = _round(update, units, bound, vector, None)
    if noise is None:
        vector[len(update) :] = _encode_metrics(metrics, scale)
    else:
        vector[len(update) :] = 0
        add_noise(vector[: len(update)], digest(seed, person=b"covey-noise"), noise.variance)
    return vector


def _round(update: NDArray[np.float32], units: float, bound: int, vector: Ring, seed: bytes | None) -> float:
    """Round ``units`` times the update into ``vector``, under a seed's dither or, without one, towards zero.

    The dither is an odd number of 65,536ths, which favours neither direction. A coordinate of 256 units or more loses
    some of the dither's last bits in float32, which may shift its mean by 2^-24 of itself, as much as float32 rounded
    it by before.

    Returns:
        The squared norm of what results, exact.

    Raises:
        LocalError: A coordinate is larger than any of a clipped update.
    """
    square, signed, part = 0.0, vector.view(np.int16), np.float32(1 / 65536)
    buffers = np.empty((2, _STRIDE), np.float32)
    whole: list[tuple[slice, Ring | None]] = [(slice(0, len(update)), None)]
    for block, dither in whole if seed is None else prg.blocks(seed, len(update)):
        if dither is not None:
            np.bitwise_or(dither, 1, out=dither)
        for inside in _pieces(block.stop - block.start, _STRIDE):
            where = slice(block.start + inside.start, block.start + inside.stop)
            rounded, offset = buffers[:, : inside.stop - inside.start]
            np.multiply(update[where], np.float32(units), out=rounded)
            if dither is None:
                np.trunc(rounded, out=rounded)
            else:
                np.multiply(dither[inside], part, out=offset, dtype=np.float32)
                np.floor(np.add(rounded, offset, out=rounded), out=rounded)
            for tile in _pieces(len(rounded), _TILE):
                square += _bounded_square(rounded[tile], bound)
            np.copyto(signed[where], rounded, casting="unsafe")
    return square


def _bounded_square(rounded: NDArray[np.float32], bound: int) -> float:
    """Hold rounded coordinates to the bound, in place, and return their squared norm.

    Raises:
        LocalError: They come from an update that was not clipped.
    """
    square, small = float(rounded @ rounded), min(_EXACT, bound**2)
    if square < small:  # then every part of the sum was exact, and no coordinate is larger than its root
        return square
    largest = float(np.abs(rounded).max())
    # A coordinate that is the whole clip may be rounded one unit beyond it.
    if not largest <= bound + 1:
        raise LocalError(f"a coordinate exceeds {bound} ring units: the update was not clipped")
    exact = np.clip(rounded, -bound, bound, out=rounded).astype(np.float64)
    return float(exact @ exact)


def _pieces(length: int, size: int) -> Iterator[slice]:
    """Cut a vector into pieces."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def decode_mean(total: Ring, count: int, scale: RingScale) -> tuple[NDArray[np.float32], Metrics]:
    """Turn the ring sum of ``count`` encoded vectors into their mean.

    Returns:
        The mean update, shape (d,), and the mean metrics, which mean nothing in rounds with noise.
    """
    signed = total.view(np.int16)
    mean = signed[: -len(METRICS)].astype(np.float32) * np.float32(scale.step / count)
    caps = _metric_caps(scale)
    values = signed[-len(METRICS) :].astype(np.float64) / (count * scale._metric_units()) * caps
    return mean, Metrics(**dict(zip(METRICS, values.tolist(), strict=True)))


def out_of_range(total: Ring, count: int, scale: RingScale) -> int:
    """Count the coordinates of a sum that ``count`` honest members cannot have produced."""
    signed = total.view(np.int16)
    body, tail = signed[: -len(METRICS)], signed[-len(METRICS) :]
    reach, most = 0.0, count * scale._metric_units()
    if scale.noise is not None:
        reach, most = scale.noise.reach(count), 0
    bound = min(count * scale.coordinate_bound + reach, HALF_RING)
    wild = np.count_nonzero(body > bound) + np.count_nonzero(body < -bound)
    return int(wild + np.count_nonzero((tail < 0) | (tail > most)))


def _metric_caps(scale: RingScale) -> NDArray[np.float64]:
    return np.array([LOSS_CAP, 1.0, SAMPLES_CAP, NORM_CAP_CLIPS * scale.clip])


def _encode_metrics(metrics: Metrics, scale: RingScale) -> Ring:
    values = np.array([getattr(metrics, name) for name in METRICS], np.float64)
    fractions = np.clip(np.nan_to_num(values / _metric_caps(scale), nan=1.0), 0.0, 1.0)
    return np.rint(fractions * scale._metric_units()).astype(np.int16).view(np.uint16)
