"""Rules across groups, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from covey_aggregator.rules import RULES, Rows, cap_norms, rule
from covey_aggregator.rules.trimmed_mean import THREADS, TILE, trimmed_count
from covey_protocol.errors import ConfigError


def rows(groups: int, dimension: int = 50, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).normal(size=(groups, dimension)).astype(np.float32)


@pytest.mark.parametrize("dimension", [1, TILE - 1, TILE, 8 * THREADS * TILE + 7])
@pytest.mark.parametrize(("groups", "beta"), [(1, 0.4), (2, 0.4), (3, 0.1), (4, 0.1), (7, 0.2), (10, 0.3), (51, 0.1)])
def test_the_trimmed_mean_is_scipys(groups: int, beta: float, dimension: int) -> None:
    data = rows(groups, dimension)
    share = trimmed_count(groups, beta) / groups
    expected = stats.trim_mean(data.astype(np.float64), share + 1e-9, axis=0)
    found = rule("trimmed-mean")(data, beta)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_mean_and_median_are_numpys() -> None:
    data = rows(9)
    np.testing.assert_allclose(rule("mean")(data, 0.3), data.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(rule("median")(data, 0.3), np.median(data, axis=0))


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.499))
def test_at_least_one_group_a_side_is_cut_from_three_on_and_never_all(groups: int, beta: float) -> None:
    cut = trimmed_count(groups, beta)
    assert groups - 2 * cut >= 1
    assert cut >= (groups >= 3)
    if groups >= 3 and 2 * np.ceil(beta * groups) < groups:
        assert cut >= beta * groups


def test_with_three_groups_the_median_is_left() -> None:
    data = rows(3)
    np.testing.assert_array_equal(rule("trimmed-mean")(data, 0.0), np.median(data, axis=0))


@pytest.mark.parametrize("name", sorted(RULES))
@settings(deadline=None)
@given(order=st.permutations(range(7)))
def test_the_order_of_groups_does_not_matter(name: str, order: list[int]) -> None:
    data = rows(7)
    np.testing.assert_allclose(rule(name)(data[order], 0.2), rule(name)(data, 0.2), atol=1e-6)


def test_one_group_cannot_pull_the_trimmed_mean_out_of_the_others_range() -> None:
    data = rows(5)
    honest = data[1:].copy()
    data[0] = 1e6
    found = rule("trimmed-mean")(data, 0.1)
    assert (found <= honest.max(axis=0)).all()
    assert (found >= honest.min(axis=0)).all()


def test_no_rule_changes_its_input() -> None:
    data = rows(5)
    before = data.copy()
    for name in RULES:
        rule(name)(data, 0.2)
    cap_norms(data)
    np.testing.assert_array_equal(data, before)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="rule 'krum': unknown; there are mean, median, trimmed-mean"):
        rule("krum")


def test_norms_are_capped_at_one_and_a_half_medians_and_directions_stay() -> None:
    data = rows(5)
    data[2] *= 100
    capped = cap_norms(data)
    norms = np.linalg.norm(data, axis=1)
    np.testing.assert_allclose(np.linalg.norm(capped[2]), 1.5 * np.median(norms), rtol=1e-5)
    np.testing.assert_array_equal(np.delete(capped, 2, axis=0), np.delete(data, 2, axis=0))
    np.testing.assert_allclose(capped[2] / np.linalg.norm(capped[2]), data[2] / norms[2], atol=1e-6)


def test_groups_that_did_not_move_at_all_are_no_division_by_zero() -> None:
    assert not cap_norms(np.zeros((4, 3), np.float32)).any()
