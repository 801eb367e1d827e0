"""Least squares under x ≥ 0, by the conditions that a solution must meet."""

from __future__ import annotations

import numpy as np
import pytest

from covey_aggregator.probes.nonnegative import RIDGE, solve


@pytest.mark.parametrize("start", [False, True])
def test_no_slope_is_left_where_x_may_grow(start: bool) -> None:
    rng = np.random.default_rng(3)
    design = rng.normal(size=(20, 60, 12))
    truth = np.maximum(rng.normal(size=(20, 12)), 0)
    values = np.einsum("irp,ip->ir", design, truth) + rng.normal(size=(20, 60))
    squares, products = np.einsum("irp,irq->ipq", design, design), np.einsum("irp,ir->ip", design, values)
    x = solve(squares, products, rng.uniform(size=(20, 12)) if start else None)
    diagonal = np.einsum("ipp->ip", squares)
    slope = products - np.einsum("ipq,iq->ip", squares, x) - RIDGE * diagonal * x
    slope /= diagonal
    assert (x >= 0).all()
    assert slope.max() < 1e-3
    assert np.abs(slope[x > 0]).max() < 1e-3
    assert (x == 0).any()
    assert (x > 0).any()


def test_directions_that_nobody_took_stay_at_nothing() -> None:
    assert (solve(np.zeros((2, 3, 3)), np.zeros((2, 3))) == 0).all()
