"""Writes ``rules.npz``: what byzfl makes of rows that the tests give to Covey's rules.

    python tests/aggregator/vectors/make_rules.py

from the checkout's root. byzfl 0.0.11 wants torch (2.13.0) and torchvision, far too much for the suite's environment:
the script installs them into ``.venv/bench-byzfl``, as pinned in ``constraints-byzfl.txt``, and goes on there (Python
3.11, numpy 2.4.6, scipy 1.17.1). The result is the same on every run: all randomness is numpy's, seeded, and byzfl
works on numpy arrays in float64.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OUT = HERE / "rules.npz"
SHAPES = [(1, 6), (2, 7), (3, 16), (4, 33), (5, 24), (8, 40), (13, 32), (30, 24), (100, 12)]
KINDS = ("normal", "heavy", "outliers", "ties", "offset")
STEPS = 20_000  # of Weiszfeld: byzfl has no stopping rule
SMOOTHING = 1e-6  # the default of Covey's geometric median


def byzfl_rules() -> Any:
    """Return byzfl's aggregators without the rest of byzfl, which would import data sets and charts."""
    spec = importlib.util.find_spec("byzfl")
    assert spec is not None and spec.submodule_search_locations is not None
    bare = types.ModuleType("byzfl")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = bare
    return importlib.import_module("byzfl.aggregators")


def rows(np: Any, kind: str, groups: int, dimension: int, rng: Any) -> Any:
    """Return rows of one kind, shape (groups, dimension), float32."""
    data = rng.normal(size=(groups, dimension))
    if kind == "heavy":
        data = rng.standard_t(1.5, size=data.shape)
    elif kind == "outliers":  # all in one direction, the last ones, fewer than half
        data[groups - (groups - 1) // 2 :] = 50 * rng.normal(size=dimension) + data[: (groups - 1) // 2]
    elif kind == "ties":  # coarse values, and rows that come twice
        data = np.round(2 * data) / 2
        data[groups - groups // 3 :] = data[: groups // 3]
    elif kind == "offset":
        data += 1000
    return data.astype(np.float32)


def results(np: Any, byzfl: Any, data: Any) -> dict[str, Any]:
    """Return byzfl's results for one case by name, with the parameters in the name."""
    groups = len(data)
    half = (groups - 1) // 2
    found = {"mean": byzfl.Average()(data), "median": byzfl.Median()(data)}
    for f in {0} if groups < 3 else {1, max(1, half // 2), half}:
        found[f"trimmed-mean {f}"] = byzfl.TrMean(f)(data)
        if groups > 1:  # byzfl's Krum has no answer for one row
            found[f"multi-krum {f}"] = byzfl.MultiKrum(f)(data)
    start = np.median(data, axis=0)
    typical = float(np.median(np.linalg.norm(data - start, axis=1)))
    if groups > 2:  # between two rows every point is a geometric median
        found["geometric-median"] = byzfl.GeometricMedian(SMOOTHING * typical, STEPS)(data)
    if typical:  # byzfl divides by zero otherwise
        for radius, steps in ((typical, 1), (typical, 3), (0.5, 3)):
            clipping = byzfl.CenteredClipping(None, steps, radius)
            clipping.m = start  # its constructor refuses every start, because no array is of two types at once
            found[f"centred-clipping {'' if radius == typical else radius} {steps}"] = clipping(data)
    return found


def write() -> None:
    """Write the file; runs in byzfl's environment."""
    np = importlib.import_module("numpy")
    byzfl = byzfl_rules()
    arrays = {}
    with np.errstate(divide="ignore"):
        for number, (groups, dimension) in enumerate(SHAPES):
            for kind in KINDS:
                rng = np.random.default_rng([number, KINDS.index(kind)])
                data = rows(np, kind, groups, dimension, rng)
                case = f"{kind} {groups}x{dimension}"
                arrays[f"{case}/rows"] = data
                for name, result in results(np, byzfl, data.astype(np.float64)).items():
                    assert np.isfinite(result).all(), (case, name)
                    arrays[f"{case}/{name}"] = result
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    if importlib.util.find_spec("byzfl"):
        write()
    else:
        sys.path.insert(0, str(ROOT))
        environment = importlib.import_module("benchmarks._anchor_env")
        python = environment.anchor_python("byzfl", HERE / "constraints-byzfl.txt", "byzfl")
        sys.exit(1 if python is None else subprocess.run([python, __file__], check=False).returncode)
