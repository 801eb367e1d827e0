"""Rules across groups: what each promises, against naive computations in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from covey_aggregator.rules import RULES, AnyRule, cap_norms, rule, rule_name, spoilt_groups
from covey_aggregator.rules.centred_clipping import CentredClipping
from covey_aggregator.rules.contamination import left_out
from covey_aggregator.rules.geometric_median import GeometricMedian
from covey_aggregator.rules.mean import Mean
from covey_aggregator.rules.median import Median
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_aggregator.rules.rows import THREADS, TILE, centred_gram, squared_distances
from covey_aggregator.rules.trimmed_mean import TrimmedMean, trimmed_count, trimmed_mean
from covey_protocol.errors import ConfigError, LocalError

Matrix = NDArray[np.float32]
Exact = NDArray[np.float64]

# With parameters that scale, or without any, every rule is equivariant.
CHOSEN: list[AnyRule] = [
    *(kind() for kind in RULES.values()),
    TrimmedMean(beta=0.3),
    MultiKrum(f=2),
    GeometricMedian(smoothing=0.7),
]
ROBUST = [chosen for chosen in CHOSEN if not isinstance(chosen, Mean)]
every_rule = pytest.mark.parametrize("chosen", CHOSEN, ids=str)
robust_rule = pytest.mark.parametrize("chosen", ROBUST, ids=str)


def rows(groups: int, dimension: int = 50, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(groups, dimension)).astype(np.float32)


def close(found: Matrix, expected: Matrix | Exact, scale: float = 1.0) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


# --- naive computations -------------------------------------------------------------------------------------------


def naive_trimmed(data: Exact, cut: int) -> Exact:
    kept: Exact = np.sort(data, axis=0)[cut : len(data) - cut]
    return np.asarray(kept.mean(axis=0))


def naive_krum(data: Exact, f: int) -> Exact:
    scores = []
    for row in data:
        distances = sorted(float(((row - other) ** 2).sum()) for other in data)
        scores.append(sum(distances[1 : len(data) - f]))
    order = sorted(range(len(data)), key=lambda index: scores[index])
    mean: Exact = data[order[: len(data) - f]].mean(axis=0)
    return mean


def naive_clipping(data: Exact, iterations: int) -> Exact:
    point: Exact = np.median(data, axis=0)
    radius = float(np.median([np.linalg.norm(row - point) for row in data]))
    for _ in range(iterations):
        steps = [row - point for row in data]
        point = point + np.mean([step * min(1, radius / (np.linalg.norm(step) + 1e-300)) for step in steps], axis=0)
    return point


def naive_geometric_median(data: Exact) -> Exact:
    def total(point: Exact) -> float:
        return float(np.linalg.norm(data - point, axis=1).sum())

    found: Exact = optimize.minimize(total, np.median(data, axis=0), method="BFGS", options={"gtol": 1e-9}).x
    return found


NAIVE: dict[str, Callable[[Exact, int], Exact]] = {
    "trimmed-mean": lambda data, spoilt: naive_trimmed(data, left_out(len(data), spoilt)),
    "median": lambda data, _: np.asarray(np.median(data, axis=0)),
    "geometric-median": lambda data, _: naive_geometric_median(data),
    "multi-krum": lambda data, spoilt: naive_krum(data, left_out(len(data), spoilt)) if len(data) > 2 else data.mean(0),
    "centred-clipping": lambda data, _: naive_clipping(data, 3),
    "mean": lambda data, _: np.asarray(data.mean(axis=0)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("groups", "spoilt"), [(1, 0), (2, 1), (3, 0), (3, 1), (4, 1), (5, 2), (8, 0), (13, 4)])
def test_it_is_what_the_naive_computation_gives(name: str, groups: int, spoilt: int) -> None:
    for seed in range(3):
        data = rows(groups, 12, seed) + np.float32(3)
        data[-1] *= 20 if groups > 3 else 1
        expected = NAIVE[name](data.astype(np.float64), spoilt)
        np.testing.assert_allclose(rule(name)(data, spoilt), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dimension", [1, TILE - 1, TILE, 8 * THREADS * TILE + 7])
@pytest.mark.parametrize(("groups", "beta"), [(1, 0.4), (2, 0.4), (3, 0.1), (4, 0.1), (7, 0.2), (10, 0.3), (51, 0.1)])
def test_the_trimmed_mean_is_scipys(groups: int, beta: float, dimension: int) -> None:
    data = rows(groups, dimension)
    share = trimmed_count(groups, beta) / groups
    expected = stats.trim_mean(data.astype(np.float64), share + 1e-9, axis=0)
    found = TrimmedMean(beta=beta)(data, 0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@every_rule
@pytest.mark.parametrize("dimension", [TILE + 1, 8 * THREADS * TILE + 7])
def test_tiles_and_threads_leave_no_seam(chosen: AnyRule, dimension: int) -> None:
    data = rows(6, dimension)
    if isinstance(chosen, TrimmedMean | Median | Mean):
        expected = np.concatenate([chosen(data[:, :1000], 1), chosen(data[:, 1000:], 1)])
    else:
        order = np.random.default_rng(0).permutation(dimension)
        expected = np.empty(dimension, np.float32)
        expected[order] = chosen(data[:, order], 1)
    close(chosen(data, 1), expected)


# --- small numbers of groups --------------------------------------------------------------------------------------


@every_rule
def test_one_row_is_the_result_and_of_two_it_is_their_mean(chosen: AnyRule) -> None:
    data = rows(2)
    np.testing.assert_array_equal(chosen(data[:1], 1), data[0])
    close(chosen(data, 1), data.mean(axis=0))


@robust_rule
def test_with_three_groups_one_may_lie_anywhere(chosen: AnyRule) -> None:
    data = rows(3)
    data[1] = 1e6
    assert chosen.withstands(3, 0) == 1
    assert np.linalg.norm(chosen(data, 0)) < 3 * np.linalg.norm(data[0] - data[2]) + np.linalg.norm(data[0])


def test_with_three_groups_the_trimmed_mean_is_the_median() -> None:
    data = rows(3)
    np.testing.assert_array_equal(TrimmedMean(beta=0)(data, 0), np.median(data, axis=0))


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.499))
def test_at_least_one_group_a_side_is_cut_from_three_on_and_never_all(groups: int, beta: float) -> None:
    cut = trimmed_count(groups, beta)
    assert groups - 2 * cut >= 1
    assert cut >= (groups >= 3)
    if groups >= 3 and 2 * np.ceil(beta * groups) < groups:
        assert cut >= beta * groups


# --- properties ---------------------------------------------------------------------------------------------------


@every_rule
@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(7)), seed=st.integers(0, 2**32), spoilt=st.integers(0, 9))
def test_the_order_of_groups_does_not_matter(chosen: AnyRule, order: list[int], seed: int, spoilt: int) -> None:
    data = rows(7, seed=seed)
    close(chosen(data[order], spoilt), chosen(data, spoilt))


@every_rule
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), shift=st.floats(-30, 30, width=32), exponent=st.integers(-20, 20))
def test_moving_or_scaling_all_rows_moves_or_scales_the_result(
    chosen: AnyRule, seed: int, shift: float, exponent: int
) -> None:
    data = rows(7, seed=seed)
    result = chosen(data, 2)
    close(chosen(data + np.float32(shift), 2), result + np.float32(shift), 1 + abs(shift))
    np.testing.assert_allclose(chosen(-(data * np.float32(2.0**exponent)), 2), -result * 2.0**exponent, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), factor=st.floats(0.125, 8))
def test_a_given_radius_scales_with_the_rows_only_if_it_is_scaled_too(seed: int, factor: float) -> None:
    data, radius = rows(7, seed=seed), 2.0
    scaled = CentredClipping(radius=radius * factor)(data * np.float32(factor), 0)
    close(scaled, CentredClipping(radius=radius)(data, 0) * np.float32(factor), factor)


hostile_rows = st.lists(
    st.tuples(st.sampled_from([0.0, 1e-3, 1.0, 3.0, 50.0, 1e6, 1e12]), st.integers(0, 2**32)), min_size=1, max_size=4
)


@robust_rule
@settings(deadline=None, max_examples=50)
@given(hostile=hostile_rows, groups=st.integers(3, 12), seed=st.integers(0, 2**32))
def test_fewer_than_it_withstands_cannot_pull_it_away(
    chosen: AnyRule, hostile: list[tuple[float, int]], groups: int, seed: int
) -> None:
    spoilt = min(len(hostile), chosen.withstands(groups, len(hostile)))
    honest = rows(groups - spoilt, 20, seed) + np.float32(1)
    lies = [rows(1, 20, lie)[0] * np.float32(size) for size, lie in hostile[:spoilt]]
    lies[1:] = [lies[0] + np.float32(1e-3) * lie for lie in lies[1:]]  # in one direction they do most
    found = chosen(np.stack([*lies, *honest]), spoilt)
    centre = honest.mean(axis=0, dtype=np.float64)
    if isinstance(chosen, TrimmedMean | Median):
        assert (found <= honest.max(axis=0) + 1e-6).all()
        assert (found >= honest.min(axis=0) - 1e-6).all()
    else:
        # (1 + 2f/(G − 2f)) times the farthest honest row's distance is Minsker's bound for the geometric median; the
        # others stay within it too here, Multi-Krum within a factor.
        reach = np.linalg.norm(honest - centre, axis=1).max()
        factor = 2 if isinstance(chosen, MultiKrum) else 1
        assert np.linalg.norm(found - centre) <= factor * (1 + 2 * spoilt / (groups - 2 * spoilt)) * reach + 1e-5


def test_the_mean_withstands_nothing() -> None:
    data = rows(9)
    data[0] = 1e6
    assert np.abs(Mean()(data, 4)).min() > 1e4
    assert Mean().withstands(9, 4) == 0


@robust_rule
def test_a_far_row_does_not_cost_the_others_digits(chosen: AnyRule) -> None:
    data = rows(9) * np.float32(1e-3)
    near, far = data.copy(), data.copy()
    near[4], far[4] = 1e3, 1e12
    np.testing.assert_allclose(chosen(near, 2), chosen(far, 2), rtol=1e-3, atol=1e-9)


@every_rule
def test_rows_that_agree_are_the_result(chosen: AnyRule) -> None:
    data = np.repeat(rows(1), 6, axis=0)
    close(chosen(data, 2), data[0])
    data[0] += 100
    if not isinstance(chosen, Mean):
        close(chosen(data, 2), data[1])
    assert np.isfinite(chosen(np.zeros((5, 4), np.float32), 1)).all()


@every_rule
def test_vectors_need_not_be_stacked_and_are_not_changed(chosen: AnyRule) -> None:
    data = rows(5, TILE + 3)
    before = data.copy()
    data.flags.writeable = False
    np.testing.assert_array_equal(chosen(list(data), 2), chosen(data, 2))
    cap_norms(data)
    np.testing.assert_array_equal(data, before)


# --- parameters ---------------------------------------------------------------------------------------------------


def test_threads_do_not_change_the_trimmed_mean() -> None:
    data = rows(5, 16 * TILE + 5)
    np.testing.assert_array_equal(trimmed_mean(data, 1, threads=1), trimmed_mean(data, 1, threads=2))


def test_more_iterations_of_clipping_come_to_rest() -> None:
    data = rows(9)
    data[0] = 40
    steps = [CentredClipping(iterations=number)(data, 0) for number in (1, 100, 101)]
    assert np.linalg.norm(steps[0] - steps[1]) > 0.1
    close(steps[1], steps[2])


def test_a_coarse_tolerance_ends_early_and_a_large_smoothing_is_towards_the_mean() -> None:
    data = rows(9)
    data[0] = 40
    fine, coarse = GeometricMedian()(data, 0), GeometricMedian(tolerance=0.5)(data, 0)
    once = GeometricMedian(iterations=1)(data, 0)
    np.testing.assert_array_equal(coarse, once)
    assert np.linalg.norm(fine - once) > 1e-3
    smooth = GeometricMedian(smoothing=1)(rows(9) * np.float32(1e-3) + 1, 0)
    close(smooth, (rows(9) * np.float32(1e-3) + 1).mean(axis=0), 100)


def test_ties_in_multi_krum_go_to_the_earlier_rows() -> None:
    found = MultiKrum(f=3)(np.eye(32, dtype=np.float32), 0)  # all as far from each other
    close(found, np.repeat([1 / 29, 0.0], [29, 3]))


def test_rounding_leaves_no_distance_below_zero() -> None:
    rng = np.random.default_rng(0)
    for seed in range(100):
        data = np.repeat(rows(1, 9, seed), 7, axis=0)
        weights = rng.dirichlet(np.ones(7))
        assert (squared_distances(centred_gram(data, np.zeros(9, np.float32)), weights) >= 0).all()


def test_names_and_kinds_are_one_to_one() -> None:
    assert set(get_args(AnyRule)) == set(RULES.values())
    for name in RULES:
        assert rule_name(rule(name)) == name
        assert rule(rule(name)) == rule(name)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="rule 'krum': unknown; there are trimmed-mean, median, geometric-median"):
        rule("krum")


# --- what to expect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "contamination", "spoilt"),
    [([], 0.1, 0), ([10], 0, 0), ([10] * 5, 0.0, 0), ([6] * 5, 0.01, 1), ([10] * 50, 0.01, 8), ([10] * 50, 0.2, 48)],
)
def test_the_number_of_spoilt_groups_to_expect(counts: list[int], contamination: float, spoilt: int) -> None:
    assert spoilt_groups(counts, contamination) == spoilt


@given(st.integers(1, 60), st.integers(1, 31), st.floats(0, 0.49), st.sampled_from([0.01, 0.05, 0.3]))
def test_groups_of_one_size_are_scipys_binomial(groups: int, size: int, contamination: float, risk: float) -> None:
    chance = 1 - (1 - contamination) ** size
    found = spoilt_groups([size] * groups, contamination, risk)
    assert stats.binom.sf(found, groups, chance) <= risk + 1e-9
    assert found == 0 or stats.binom.sf(found - 1, groups, chance) > risk - 1e-9


def test_groups_of_several_sizes_are_what_coins_show() -> None:
    counts, rng = [4, 4, 9, 12, 20, 31], np.random.default_rng(0)
    hostile = [(rng.random((20_000, count)) < 0.03).any(axis=1) for count in counts]
    spoilt = np.sum(hostile, axis=0)
    found = spoilt_groups(counts, 0.03)
    assert (spoilt > found).mean() < 0.05 < (spoilt > found - 1).mean()


# --- the cap on norms ---------------------------------------------------------------------------------------------


def test_norms_are_capped_at_one_and_a_half_medians_and_directions_stay() -> None:
    data = rows(5)
    data[2] *= 100
    capped = cap_norms(data)
    norms = np.linalg.norm(data, axis=1)
    np.testing.assert_allclose(np.linalg.norm(capped[2]), 1.5 * np.median(norms), rtol=1e-5)
    np.testing.assert_array_equal(np.delete(capped, 2, axis=0), np.delete(data, 2, axis=0))
    np.testing.assert_allclose(capped[2] / np.linalg.norm(capped[2]), data[2] / norms[2], atol=1e-6)


def test_groups_that_did_not_move_at_all_are_no_division_by_zero() -> None:
    assert not np.any(cap_norms(np.zeros((4, 3), np.float32)))


def test_only_what_is_capped_is_copied() -> None:
    data = list(rows(5))
    data[2] *= 100
    assert [one is other for one, other in zip(cap_norms(data), data, strict=True)] == [True, True, False, True, True]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused_by_its_name(value: float) -> None:
    data = rows(3)
    data[1, 7] = value
    with pytest.raises(LocalError, match="group b: "):
        cap_norms(data, names=["a", "b", "c"])
    with pytest.raises(LocalError, match="group 2: "):
        cap_norms(data)


# --- influence ----------------------------------------------------------------------------------------------------


@every_rule
@settings(deadline=None, max_examples=25)
@given(groups=st.integers(1, 9), seed=st.integers(0, 2**32), spoilt=st.integers(0, 4))
def test_influence_of_one_for_all_changes_nothing(chosen: AnyRule, groups: int, seed: int, spoilt: int) -> None:
    data = rows(groups, seed=seed)
    close(chosen(data, spoilt, np.ones(groups)), chosen(data, spoilt))


@every_rule
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), spoilt=st.integers(0, 3), parts=st.integers(1, 4))
def test_a_group_in_parts_counts_as_the_whole(chosen: AnyRule, seed: int, spoilt: int, parts: int) -> None:
    data = rows(7, seed=seed)
    cut = np.concatenate([data, np.repeat(data[:1], parts - 1, axis=0)])
    influence = np.ones(len(cut))
    influence[[0, *range(7, len(cut))]] = 1 / parts
    close(chosen(cut, spoilt, influence), chosen(data, spoilt))


@robust_rule
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), wave=st.integers(1, 60), size=st.sampled_from([1.0, 50.0, 1e6]))
def test_a_wave_of_groups_that_count_little_cannot_outvote_the_others(
    chosen: AnyRule, seed: int, wave: int, size: float
) -> None:
    data = rows(6, seed=seed)
    influence = np.r_[np.ones(6), np.full(wave, 1.5 / max(wave, 2))]
    together = cap_norms([*data, *np.full((wave, data.shape[1]), size, np.float32)], influence=influence)
    found = chosen(together, 2, influence)
    spread = max(np.linalg.norm(row - data.mean(axis=0)) for row in data)
    assert np.linalg.norm(found - data.mean(axis=0)) <= 3 * spread


def test_a_wave_does_not_lift_the_cap_on_norms() -> None:
    data = rows(6)
    wave = np.full((50, data.shape[1]), 1e6, np.float32)
    capped = cap_norms([*data, *wave], influence=np.r_[np.ones(6), np.full(50, 0.02)])
    assert max(np.linalg.norm(row) for row in capped) <= 1.5 * max(np.linalg.norm(row) for row in data)
