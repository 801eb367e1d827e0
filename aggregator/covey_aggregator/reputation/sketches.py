"""One round's sketches as arrays: lengths and directions, whatever finite numbers come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TINY = 1e-12
_LARGEST = 1e150  # of a value; no ring reaches it, and squares of it are still finite
_NOTHING = 1e-9  # share of the median norm under which a direction is rounding error


@dataclass(frozen=True)
class Sketches:
    """The sketches of one round, in the order of ``names``.

    Attributes:
        names: Devices, sorted.
        buckets: k, the length of a sketch.
        norms: r_i = |s_i|: estimates of the updates' norms, with a relative error of about 1/√(2k).
        directions: u_i = s_i / r_i, and zero for those who sent nothing.
    """

    names: tuple[str, ...]
    buckets: int
    norms: Array
    directions: Array


def read(sketches: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Sketches:
    """Return the named sketches as arrays.

    Raises:
        ValueError: They differ in length or are not finite; sketches recovered in a ring are neither.
    """
    if len({sketches[name].shape for name in names}) > 1:
        raise ValueError("sketches of one round differ in length")
    values = np.array([sketches[name] for name in names], np.float64).reshape(len(names), -1)
    if not np.isfinite(values).all():
        raise ValueError("a sketch holds values that are not finite")
    values = values.clip(-_LARGEST, _LARGEST)
    largest = np.abs(values).max(axis=1, initial=0.0)
    scaled = values / np.where(largest > 0, largest, 1.0)[:, None]  # by row: no overflow, and none hides another
    lengths = np.linalg.norm(scaled, axis=1)
    directions = scaled / np.maximum(lengths, TINY)[:, None]
    norms = largest * lengths
    directions[norms <= _NOTHING * typical(norms)] = 0.0
    return Sketches(names=tuple(names), buckets=values.shape[1], norms=norms, directions=directions)


def typical(norms: Array) -> float:
    """Return the median of those that sent anything: riders who send zeros do not make zero the usual norm."""
    sent = norms[norms > 0]
    return float(np.median(sent)) if len(sent) else 0.0
