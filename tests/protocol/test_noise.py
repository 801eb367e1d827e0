"""covey_protocol.noise: honest members' noise suffices, and nothing wraps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_protocol import ring
from covey_protocol.errors import ConfigError
from covey_protocol.noise import calibrate
from covey_protocol.prg import HALF_RING
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN, accepted_min, colluders, honest_min

from .rig import make_manifest

SOME = Metrics(loss=1.25, accuracy=0.75, samples=120, norm=3)

rosters = st.integers(ROSTER_MIN, ROSTER_MAX)
multipliers = st.floats(0.05, 8)


@given(rosters, st.data())
def test_every_sum_holds_as_many_honest_members_as_are_counted_on(n_max: int, data: st.DataObject) -> None:
    """For any roster up to the largest one, and any set that may be summed over it, with c colluders in it."""
    a_min = data.draw(st.integers(0, n_max))
    n = data.draw(st.integers(max(ROSTER_MIN, a_min), n_max))
    summed = data.draw(st.integers(max(accepted_min(n), a_min), n)) if max(accepted_min(n), a_min) <= n else n
    assert summed - colluders(n) >= honest_min(n_max, a_min)
    assert honest_min(n_max, a_min) >= 3


@settings(deadline=None, max_examples=60)
@given(multipliers, rosters, st.integers(1, 20_000), st.integers(0, ROSTER_MAX), st.sampled_from([0, 0, 8, 64]))
def test_the_ring_is_as_fine_as_it_can_be(z: float, n_max: int, dimension: int, a_min: int, sketch: int) -> None:
    a_min = min(a_min, n_max)
    try:
        noise = calibrate(z, n_max=n_max, dimension=dimension, a_min=a_min, sketch=sketch)
    except ConfigError as error:
        assert error.cause == "noise-room"
        return

    def fits(units: int) -> bool:
        square = units**2 + dimension // 4
        variance = 2 * math.ceil(z**2 * square / noise.honest / 2)
        room = n_max * units + 7 * math.sqrt(n_max * variance) <= HALF_RING
        bucket = math.sqrt((square + dimension * variance) / sketch) if sketch else 0
        return room and 6 * bucket <= HALF_RING

    assert fits(noise.units) and not fits(noise.units + 1)
    assert noise.sensitivity == noise.units**2 + dimension // 4
    assert noise.variance * noise.honest >= z**2 * noise.sensitivity
    assert noise.variance % 2 == 0
    assert 4 * noise.units**2 >= dimension


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"multiplier": 100.0}, "in groups of 10; a model of 2000"), ({"sketch": 8, "multiplier": 20.0}, "sketches of 8")],
)
def test_noise_that_the_ring_has_no_room_for(changes: dict[str, object], words: str) -> None:
    fields: dict[str, object] = {"multiplier": 1.0, "n_max": 10, "dimension": 2000}
    with pytest.raises(ConfigError, match=words):
        calibrate(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_manifest_sets_the_scale() -> None:
    manifest = make_manifest(1000, n_max=10, noise=2.0, a_min=9, sketch=8)
    assert RingScale.of(manifest).noise == calibrate(2.0, n_max=10, dimension=1000, a_min=9, sketch=8)
    assert RingScale.of(make_manifest(1000, n_max=10)) == RingScale(5.0, 10)


def update_of(dimension: int, clip: float, number: int, spread: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(number)
    vector = (rng.normal(size=dimension) * rng.random(dimension) ** spread).astype(np.float32)
    return ring.clip_norm(vector * np.float32(9 * clip), clip)[0]


@settings(deadline=None, max_examples=80)
@given(
    st.floats(1e-3, 1e3),
    rosters,
    st.integers(1, 3000),
    st.sampled_from([0.0, 0.5, 60.0]),
    st.integers(0, 2**32),
    multipliers,
)
def test_a_rounded_update_is_within_the_sensitivity(
    clip: float, n_max: int, dimension: int, spread: float, number: int, z: float
) -> None:
    """The bound that all of the accounting stands on, seen before the noise is added."""
    try:
        scale = RingScale.noisy(clip, n_max, multiplier=z, dimension=dimension)
    except ConfigError:
        return
    assert scale.noise is not None
    update = update_of(dimension, clip, number, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "add_noise", lambda *_: None)
        vector = ring.encode(update, SOME, scale, number.to_bytes(32, "little"))
    rounded = vector.view(np.int16).astype(np.int64)
    assert int(rounded @ rounded) <= scale.noise.sensitivity
    assert not rounded[-4:].any()


def test_an_update_that_is_a_trifle_too_long_is_held_to_the_sensitivity() -> None:
    """A factor that is off in its last digits, and so few coordinates that rounding leaves no slack."""
    scale = RingScale.noisy(1.0, 10, multiplier=1.0, dimension=2)
    assert scale.noise is not None
    for excess in (1.004, 1.0007):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ring, "add_noise", lambda *_: None)
            update = np.full(2, excess / math.sqrt(2), np.float32)
            held, wild = (ring.encode(update, SOME, scale, bytes(32), clips=clips) for clips in (True, False))
        squares = [int((vector.view(np.int16).astype(np.int64) ** 2).sum()) for vector in (held, wild)]
        assert 0.99 * scale.noise.sensitivity < squares[0] <= scale.noise.sensitivity < squares[1]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([(0.3, 4), (1.0, 10), (4.0, 32)]), st.sampled_from([1.0, -1.0]), st.integers(0, 2**32))
def test_sums_with_noise_do_not_wrap_and_pass_the_range_check(
    shape: tuple[float, int], sign: float, number: int
) -> None:
    z, n_max = shape
    scale = RingScale.noisy(2.0, n_max, multiplier=z, dimension=400)
    update = np.zeros(400, np.float32)
    update[0] = sign * 2.0  # everybody's whole norm in one coordinate
    vectors = [ring.encode(update, SOME, scale, (number + i).to_bytes(32, "little")) for i in range(n_max)]
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    exact = np.sum([vector.view(np.int16).astype(np.int64) for vector in vectors], axis=0)
    assert np.array_equal(total.view(np.int16), exact)
    assert ring.out_of_range(total, n_max, scale) == 0
    mean, _ = ring.decode_mean(total, n_max, scale)
    assert mean[0] == pytest.approx(sign * 2.0, abs=scale.step * 7 * math.sqrt(scale.noise.variance / n_max) + 0.01)  # type: ignore[union-attr]


def test_the_range_check_with_noise() -> None:
    scale = RingScale.noisy(1.0, 10, multiplier=1.0, dimension=20)
    assert scale.noise is not None
    bound = int(6 * scale.noise.units + scale.noise.reach(6))
    for value, wild in ((bound, 0), (bound + 1, 1), (-bound, 0), (-bound - 1, 1)):
        total = np.zeros(24, np.int16)
        total[3] = value
        assert ring.out_of_range(total.view(np.uint16), 6, scale) == wild
    told = np.zeros(24, np.uint16)
    told[-2] = 1  # a metric, which nobody tells beside noise
    assert ring.out_of_range(told, 6, scale) == 1


def test_an_update_of_another_size_than_the_noise() -> None:
    with pytest.raises(ConfigError, match="noise for 10 parameters"):
        ring.encode(np.zeros(11, np.float32), SOME, RingScale.noisy(1.0, 10, multiplier=1.0, dimension=10), bytes(32))


def test_rounds_with_noise_reach_further() -> None:
    quiet, loud = RingScale(2.0, 10), RingScale.noisy(2.0, 10, multiplier=3.0, dimension=900)
    assert quiet.reach == 2.0
    assert loud.reach == pytest.approx(2.0 + 2.0 * 3.0 * 30 / 3, rel=0.01)  # z·C·√d over the three honest members
