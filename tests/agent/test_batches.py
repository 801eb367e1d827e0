"""covey_agent.batches: which samples are trained on, and how often."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.batches import batches, chances

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64))
BALANCE = st.sampled_from([0.0, 0.5, 1.0, 1.25, 2.0])


def drawn(labels: np.ndarray, balance: float, *, passes: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(list(batches(labels, len(labels), passes, balance, rng)))


@given(LABELS, BALANCE, st.integers(1, 70), st.integers(1, 12), st.integers(0, 99))
def test_batches_have_the_plans_sizes(labels: np.ndarray, balance: float, size: int, total: int, seed: int) -> None:
    found = list(batches(labels, size, total, balance, np.random.default_rng(seed)))
    one_pass = [len(labels[start : start + size]) for start in range(0, len(labels), size)]
    assert [len(rows) for rows in found] == (one_pass * total)[:total]
    assert all(0 <= row < len(labels) for rows in found for row in rows)


@given(LABELS, st.integers(0, 99))
def test_without_balance_every_sample_comes_once_a_pass(labels: np.ndarray, seed: int) -> None:
    assert sorted(drawn(labels, 0.0, seed=seed)) == list(range(len(labels)))


@given(LABELS, BALANCE.filter(bool), st.integers(0, 99))
def test_a_sample_comes_as_often_as_its_chance_says(labels: np.ndarray, balance: float, seed: int) -> None:
    expected = len(labels) * chances(labels, balance)
    found = np.bincount(drawn(labels, balance, seed=seed), minlength=len(labels))
    assert (found >= np.floor(expected - 1e-9)).all()
    assert (found <= np.ceil(expected + 1e-9)).all()


@given(LABELS)
def test_at_one_all_classes_are_seen_equally_often(labels: np.ndarray) -> None:
    chance = chances(labels, 1.0)
    shares = [chance[labels == label].sum() for label in np.unique(labels)]
    np.testing.assert_allclose(shares, 1 / len(shares))


def test_above_one_rare_classes_are_seen_more_often() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    found = labels[drawn(labels, 1.25, passes=40)]
    share = (found == 1).mean()
    assert abs(share - 10**-0.25 / (10**-0.25 + 90**-0.25)) < 0.01


def test_passes_differ_and_are_in_no_order() -> None:
    labels = np.arange(40) % 4
    rows = drawn(labels, 1.25, passes=3).reshape(3, 40)
    assert (rows[0] != rows[1]).any() and (rows[1] != rows[2]).any()
    assert (np.diff(labels[rows[0]]) < 0).sum() > 5
