"""covey_protocol.ring: nothing wraps, nothing is lost, and rounding favours nobody."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_protocol import prg, ring
from covey_protocol.errors import ConfigError, LocalError
from covey_protocol.prg import Ring
from covey_protocol.ring import LOSS_CAP, METRICS, NORM_CAP_CLIPS, SAMPLES_CAP, Metrics, RingScale
from covey_protocol.sketch import SketchMatrix

MOST = Metrics(loss=1e9, accuracy=2, samples=1e9, norm=1e9)
LEAST = Metrics(loss=-1, accuracy=-1, samples=0, norm=0)
SOME = Metrics(loss=1.25, accuracy=0.75, samples=120, norm=3)

scales = st.builds(RingScale, st.floats(1e-3, 1e6), st.integers(1, 1024))
small_scales = st.builds(RingScale, st.floats(1e-3, 1e3), st.integers(4, 32))


def seed(number: int) -> bytes:
    return number.to_bytes(32, "little")


def updates(count: int, dimension: int, clip: float, number: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(number)
    vectors = [rng.normal(size=dimension).astype(np.float32) * clip for _ in range(count)]
    return [ring.clip_norm(vector, clip)[0] for vector in vectors]


def total_of(vectors: list[Ring]) -> Ring:
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    return total


@settings(deadline=None, max_examples=100)
@given(scales, st.sampled_from([1.0, -1.0]), st.sampled_from([MOST, LEAST]), st.integers(0, 2**32))
def test_the_most_extreme_vectors_of_all_members_do_not_wrap(
    scale: RingScale, sign: float, metrics: Metrics, number: int
) -> None:
    # Everybody spends the whole norm on one coordinate, which is the largest sum that there can be.
    update = np.zeros(20, np.float32)
    update[0] = sign * scale.clip
    update, _ = ring.clip_norm(update, scale.clip)
    encoded = [ring.encode(update, metrics, scale, seed(number + index)) for index in range(min(scale.n_max, 40))]
    exact = sum(vector.view(np.int16).astype(np.int64) for vector in encoded)
    if scale.n_max > len(encoded):  # the others sent what the most extreme of these did
        exact = exact + (scale.n_max - len(encoded)) * encoded[0].view(np.int16).astype(np.int64)
    assert np.abs(exact).max() <= prg.HALF_RING
    assert scale.n_max * scale.coordinate_bound <= prg.HALF_RING


@settings(deadline=None, max_examples=40)
@given(small_scales, st.integers(1, 12), st.integers(1, 60), st.integers(0, 2**32))
def test_the_mean_of_a_sum_is_the_mean_of_the_updates(
    scale: RingScale, count: int, dimension: int, number: int
) -> None:
    count = min(count, scale.n_max)
    originals = updates(count, dimension, scale.clip, number)
    encoded = [ring.encode(update, SOME, scale, seed(number + index)) for index, update in enumerate(originals)]
    mean, metrics = ring.decode_mean(total_of(encoded), count, scale)
    singles = [ring.decode_mean(vector, 1, scale)[0] for vector in encoded]
    assert np.allclose(mean, np.mean(singles, axis=0), rtol=0, atol=scale.step * 1e-2)
    assert np.abs(mean - np.mean(originals, axis=0)).max() <= scale.step * 1.001
    assert metrics.accuracy == pytest.approx(SOME.accuracy, abs=1 / 900)
    assert metrics.loss == pytest.approx(SOME.loss, abs=LOSS_CAP / 900)
    assert metrics.samples == pytest.approx(SOME.samples, abs=SAMPLES_CAP / 900)
    assert ring.out_of_range(total_of(encoded), count, scale) == 0


@settings(deadline=None, max_examples=60)
@given(small_scales, st.integers(1, 3000), st.integers(0, 2**32))
def test_rounding_keeps_the_norm_bound(scale: RingScale, dimension: int, number: int) -> None:
    update = updates(1, dimension, scale.clip, number)[0]
    decoded, _ = ring.decode_mean(ring.encode(update, SOME, scale, seed(number)), 1, scale)
    bound = math.sqrt(scale.clip**2 + dimension * scale.step**2 / 4)
    assert np.linalg.norm(decoded.astype(np.float64)) <= bound * (1 + 1e-6)


def test_the_norm_bound_holds_even_if_every_draw_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A generator that always rounds up: then the fallback, which rounds towards zero.
    def always_up(seed: bytes, length: int) -> list[tuple[slice, Ring]]:
        return [(slice(0, length), np.full(length, 65535, np.uint16))]

    monkeypatch.setattr(prg, "blocks", always_up)
    scale = RingScale(1.0, 10)
    update = np.full(1000, 1 / math.sqrt(1000), np.float32)
    decoded, _ = ring.decode_mean(ring.encode(update, SOME, scale, seed(0)), 1, scale)
    assert np.linalg.norm(decoded) <= scale.clip
    assert np.abs(decoded).max() > 0


def test_rounding_is_unbiased() -> None:
    scale = RingScale(1.0, 16)
    update = np.linspace(-0.09, 0.09, 200).astype(np.float32)
    draws = 400
    encoded = [ring.encode(update, SOME, scale, seed(number)).view(np.int16)[:-4] for number in range(draws)]
    mean = np.mean(encoded, axis=0)
    error = mean - update.astype(np.float64) / scale.step
    # The standard error of one coordinate is at most 0.5 / √400; none is six of them off, nor all together one.
    assert np.abs(error).max() < 6 * 0.5 / math.sqrt(draws)
    assert abs(error.mean()) < 3 * 0.5 / math.sqrt(draws * len(update))
    assert len({vector.tobytes() for vector in encoded}) == draws


def test_rounding_repeats_under_the_same_seed_only() -> None:
    update, scale = updates(1, 100, 1.0, 0)[0], RingScale(1.0, 10)
    first = ring.encode(update, SOME, scale, seed(1))
    assert np.array_equal(first, ring.encode(update, SOME, scale, seed(1)))
    assert not np.array_equal(first, ring.encode(update, SOME, scale, seed(2)))


def test_metrics_are_clipped() -> None:
    scale = RingScale(2.0, 10)
    nothing = np.zeros(3, np.float32)
    _, most = ring.decode_mean(ring.encode(nothing, MOST, scale, seed(0)), 1, scale)
    assert most == Metrics(loss=LOSS_CAP, accuracy=1.0, samples=SAMPLES_CAP, norm=NORM_CAP_CLIPS * 2.0)
    _, least = ring.decode_mean(ring.encode(nothing, LEAST, scale, seed(0)), 1, scale)
    assert least == Metrics(loss=0, accuracy=0, samples=0, norm=0)
    broken = Metrics(loss=math.nan, accuracy=math.inf, samples=-math.inf, norm=math.nan)
    _, values = ring.decode_mean(ring.encode(nothing, broken, scale, seed(0)), 1, scale)
    assert values == Metrics(loss=LOSS_CAP, accuracy=1.0, samples=0, norm=NORM_CAP_CLIPS * 2.0)


@settings(deadline=None, max_examples=40)
@given(small_scales, st.integers(0, 9), st.booleans())
def test_a_spike_of_half_the_ring_is_noticed(scale: RingScale, at: int, tail: bool) -> None:
    count = scale.n_max // 2
    encoded = [ring.encode(update, SOME, scale, seed(0)) for update in updates(count, 10, scale.clip, at)]
    total = total_of(encoded)
    assert ring.out_of_range(total, count, scale) == 0
    total[-1 - at % len(METRICS) if tail else at] ^= np.uint16(1 << 15)
    assert ring.out_of_range(total, count, scale) == 1


def test_the_range_is_that_of_the_members_counted() -> None:
    scale = RingScale(1.0, 10)
    total = np.zeros(5 + len(METRICS), np.uint16)
    total[2] = 3 * scale.coordinate_bound
    assert ring.out_of_range(total, 3, scale) == 0
    total[2] += np.uint16(1)
    assert ring.out_of_range(total, 3, scale) == 1
    total[2] = np.uint16(65536 - 3 * scale.coordinate_bound - 1)
    assert ring.out_of_range(total, 3, scale) == 1
    total[2] += np.uint16(1)
    assert ring.out_of_range(total, 3, scale) == 0
    total[2] = 0
    total[-1] = np.uint16(65535)  # no metric is negative
    assert ring.out_of_range(total, 3, scale) == 1


@pytest.mark.parametrize("dimension", [0, 1, 8191, 8192, 20_000])
def test_norm_and_distance_are_numpys_in_float64(dimension: int) -> None:
    first, second = np.random.default_rng(dimension).normal(size=(2, dimension)).astype(np.float32)
    assert ring.norm(first) == pytest.approx(float(np.linalg.norm(first.astype(np.float64))), rel=1e-12)
    expected = float(np.linalg.norm(first.astype(np.float64) - second))
    assert ring.distance(first, second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_norm_of_what_is_not_finite_is_not(bad: float) -> None:
    assert not math.isfinite(ring.norm(np.array([1.0, bad], np.float32)))


def test_clipping() -> None:
    short = np.array([0.6, 0.8], np.float32)
    same, norm = ring.clip_norm(short, 1.5)
    assert same is short
    assert norm == pytest.approx(1.0)
    clipped, norm = ring.clip_norm(short * 10, 2.0)
    assert norm == pytest.approx(10.0)
    assert np.allclose(clipped, [1.2, 1.6])
    assert clipped.dtype == np.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_updates_that_diverged_are_refused(bad: float) -> None:
    with pytest.raises(LocalError, match="diverged"):
        ring.clip_norm(np.array([0.0, bad], np.float32), 1.0)


def test_updates_that_were_not_clipped_are_refused() -> None:
    with pytest.raises(LocalError, match="clipped"):
        ring.encode(np.array([1.1], np.float32), SOME, RingScale(1.0, 10), seed(0))


@pytest.mark.parametrize(("clip", "n_max"), [(0.0, 4), (-1.0, 4), (math.nan, 4), (math.inf, 4), (1.0, 0), (1.0, 1025)])
def test_scales_that_could_not_work_are_refused(clip: float, n_max: int) -> None:
    with pytest.raises(ConfigError):
        RingScale(clip, n_max)


@settings(deadline=None, max_examples=40)
@given(scales)
def test_the_step_is_the_finest_that_cannot_wrap(scale: RingScale) -> None:
    finer = scale.step * (1 - 4 * scale.n_max / prg.HALF_RING)
    assert scale.n_max * math.ceil(scale.clip / scale.step) <= prg.HALF_RING
    assert scale.n_max * math.ceil(scale.clip / finer) > prg.HALF_RING - scale.n_max


QUIET = Metrics(loss=0, accuracy=0, samples=0, norm=0)


@pytest.mark.parametrize("n_max", [7, 31])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_coordinate_that_is_the_whole_clip_never_leaves_the_range(
    n_max: int, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the bound is a whole number of units, rounding up could leave it by one."""
    scale = RingScale(1.0, n_max)
    # So many coordinates that the bound on the norm alone would let one more unit pass.
    update = np.zeros(10 * scale.coordinate_bound, np.float32)
    update[0] = sign
    for dither in (1, 32768, 65535):
        part = np.full(ring._STRIDE, dither, np.uint16)
        blocks = [
            (slice(at, min(at + len(part), len(update))), part[: len(update) - at])
            for at in range(0, len(update), len(part))
        ]
        monkeypatch.setattr(prg, "blocks", lambda seed, length, blocks=blocks: blocks)
        vector = ring.encode(update, QUIET, scale, seed(0)).view(np.int16)
        assert vector[0] in (sign * scale.coordinate_bound, sign * (scale.coordinate_bound - 1))
        assert not vector[1:-4].any()


def over_all_dithers(value: float, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.int16]:
    """Round a value once with every dither that there is, where a unit is 1."""
    dithers = np.arange(1 << 16, dtype=np.uint16)
    vector = np.empty(1 << 16, np.uint16)
    with monkeypatch.context() as patch:
        patch.setattr(prg, "blocks", lambda seed, length: [(slice(0, length), dithers.copy())])
        ring._round(np.full(1 << 16, value, np.float32), 1.0, 32766, vector, seed(0))
    return vector.view(np.int16)


@pytest.mark.parametrize("value", [-200.25, -16 / 16, -15 / 16, -0.5, -1 / 16, 0.0, 1 / 16, 0.5, 15 / 16, 1.0, 255.75])
def test_over_all_dithers_the_mean_is_exact(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = over_all_dithers(value, monkeypatch)
    assert rounded.mean(dtype=np.float64) == value
    assert set(rounded.tolist()) == {math.floor(value), math.ceil(value)}  # a whole number of units stays as it is


@pytest.mark.parametrize("value", [1e-7, 0.3, 1 / 3, 0.99999, 2.7, 100.1])
def test_no_direction_is_favoured(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by the 131,072nd of a unit that the mean of all 65,536ths is short of a half."""
    up, down = over_all_dithers(value, monkeypatch), over_all_dithers(-value, monkeypatch)
    assert up.sum(dtype=np.int64) == -down.sum(dtype=np.int64)
    assert abs(up.mean(dtype=np.float64) - value) < 1 / 65536


@pytest.mark.parametrize("value", [300.0, -5000.3, 20_000.0, -32_000.5])
def test_large_coordinates_are_shifted_by_no_more_than_float32_did(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = over_all_dithers(value, monkeypatch).mean(dtype=np.float64)
    assert abs(mean - float(np.float32(value))) < abs(value) / (1 << 24) + 1 / 65536


@settings(deadline=None, max_examples=60)
@given(small_scales, st.sampled_from([1, 5, 4096, 8192, 8193, 40_000]), st.integers(0, 2**32), st.booleans())
def test_the_norm_that_decides_is_exact(scale: RingScale, dimension: int, number: int, peaked: bool) -> None:
    """Squares are added in float32, which is exact only as long as they are small."""
    update = updates(1, dimension, scale.clip, number)[0]
    if peaked:
        update = np.float32(scale.clip / 2) * np.eye(1, dimension, dtype=np.float32)[0] + update * np.float32(0.3)
    vector = np.empty(dimension, np.uint16)
    square = ring._round(update, 1 / scale.step, scale.coordinate_bound, vector, seed(number))
    assert square == (vector.view(np.int16).astype(np.int64) ** 2).sum()


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e-3, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("dimension", [1, 8192, 30_001])
def test_the_norm_by_which_updates_are_clipped_is_right(size: float, dimension: int) -> None:
    update = np.random.default_rng(dimension).normal(size=dimension).astype(np.float32) * np.float32(size)
    factor, length = ring.clip_factor(update, 1e-3)
    assert length == pytest.approx(ring.norm(update), rel=1e-5)
    assert factor == pytest.approx(min(1.0, 1e-3 / length))


def test_clipping_on_the_way_is_clipping_before() -> None:
    update = np.random.default_rng(0).normal(size=5000).astype(np.float32) * 3
    scale = RingScale(2.0, 8)
    factor, norm = ring.clip_factor(update, scale.clip)
    clipped, same = ring.clip_norm(update, scale.clip)
    assert (norm, factor) == (same, scale.clip / norm)
    one, other = (
        ring.encode(clipped, QUIET, scale, seed(3)).view(np.int16),
        ring.encode(update, QUIET, scale, seed(3), factor).view(np.int16),
    )
    assert np.abs(one - other).max() <= 1  # the products' last bits differ
    assert np.count_nonzero(one != other) < 10
    assert ring.clip_factor(clipped * np.float32(0.5), scale.clip)[0] == 1.0
    with pytest.raises(LocalError, match="clipped"):
        ring.encode(update, QUIET, scale, seed(3), 100.0)


def test_a_sketch_whose_buckets_could_wrap_is_refused() -> None:
    for n_max, k in ((4, 8), (11, 8), (32, 64)):
        RingScale(1.0, n_max).check_sketch(1_000_000, k)
    with pytest.raises(ConfigError, match="could wrap"):
        RingScale(1.0, 1).check_sketch(1_000, 8)  # one vector may fill the ring by itself
    with pytest.raises(ConfigError, match="could wrap"):
        RingScale(1.0, 4).check_sketch(10**9, 8)  # by rounding alone


def test_no_bucket_of_a_clipped_update_wraps() -> None:
    scale, dimension = RingScale(1.0, 4), 4096
    rng = np.random.default_rng(3)
    for number in range(20):
        update = rng.normal(size=dimension).astype(np.float32)
        update /= np.float32(np.linalg.norm(update))
        units = np.round(update / scale.step).astype(np.int64)
        whole = SketchMatrix(bytes([number]) * 32, dimension, 8).of([units.astype(np.int16).view(np.uint16)])[0]
        # The sum over buckets of squares is near the squared norm: nothing has wrapped.
        assert np.sum(whole.view(np.int16).astype(np.float64) ** 2) < 6 * float(units @ units)
