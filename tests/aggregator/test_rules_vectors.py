"""Rules across groups against byzfl 0.0.11, on rows that are committed with its results (``vectors/make_rules.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from covey_aggregator.rules import AnyRule
from covey_aggregator.rules.centred_clipping import CentredClipping
from covey_aggregator.rules.geometric_median import GeometricMedian
from covey_aggregator.rules.mean import Mean
from covey_aggregator.rules.median import Median
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_aggregator.rules.trimmed_mean import TrimmedMean, trimmed_mean

with np.load(Path(__file__).with_name("vectors") / "rules.npz") as _file:
    VECTORS: dict[str, NDArray[np.float32]] = {name: _file[name] for name in _file.files}
CASES = [name for name in VECTORS if not name.endswith("/rows")]
# Results are float32: half a unit in the last place, and sums of a hundred.
ROUNDING = 2e-7


def chosen(name: str) -> AnyRule:
    match name.split(" "):
        case ["mean"]:
            return Mean()
        case ["median"]:
            return Median()
        case ["multi-krum", f]:
            return MultiKrum(f=int(f))
        case ["geometric-median"]:
            return GeometricMedian(tolerance=1e-9, iterations=10_000)
        case ["centred-clipping", radius, steps]:
            return CentredClipping(radius=float(radius) if radius else None, iterations=int(steps))
        case _:
            raise ValueError(name)


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_byzfl_makes_of_it(name: str) -> None:
    case, _, rule = name.partition("/")
    rows, expected = VECTORS[f"{case}/rows"], VECTORS[name]
    if rule.startswith("trimmed-mean"):
        cut = int(rule.split(" ")[1])
        found = trimmed_mean(rows, cut)
        np.testing.assert_array_equal(found, TrimmedMean()(rows, cut))
    else:
        found = chosen(rule)(rows, 0)
    largest = float(np.abs(rows).max())
    typical = float(np.median(np.linalg.norm(rows - np.median(rows, axis=0), axis=1)))
    # Weiszfeld's steps end, on both sides, that far from where they lead.
    slack = 1e-5 * typical if rule == "geometric-median" else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * largest + slack)


def test_every_rule_and_kind_of_rows_has_vectors() -> None:
    assert {name.partition("/")[2].split(" ")[0] for name in CASES} == {
        "mean", "median", "trimmed-mean", "multi-krum", "geometric-median", "centred-clipping"
    }  # fmt: skip
    assert {name.split(" ")[0] for name in CASES} == {"normal", "heavy", "outliers", "ties", "offset"}
    assert {len(VECTORS[f"{name.partition('/')[0]}/rows"]) for name in CASES} == {1, 2, 3, 4, 5, 8, 13, 30, 100}


@pytest.mark.parametrize("case", sorted({name.partition("/")[0] for name in CASES if "geometric" in name}))
def test_the_default_tolerance_is_close_enough(case: str) -> None:
    rows = VECTORS[f"{case}/rows"]
    typical = float(np.median(np.linalg.norm(rows - np.median(rows, axis=0), axis=1)))
    distance = np.linalg.norm(GeometricMedian()(rows, 0) - VECTORS[f"{case}/geometric-median"])
    assert distance <= 1e-3 * typical + ROUNDING * float(np.linalg.norm(rows, axis=1).max())
