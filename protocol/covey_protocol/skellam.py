"""Skellam noise: whole numbers whose distribution stays in its family when they are added up.

A Skellam variable of variance 2λ is the difference of two Poisson variables of rate λ (Agarwal, Kairouz and Liu 2021,
"The Skellam Mechanism for Differentially Private Federated Learning", section 3). No floating-point number takes part
in a draw: Poisson's distribution is a table of 128-bit thresholds, made in whole numbers, and a draw counts how many of
them a uniform 128-bit number reaches. So there is nothing in the low bits of a draw (Mironov 2012, "On Significance of
the Least Significant Bits for Differential Privacy"), and a draw is as likely as it should be to within 2^-100.

Uniform numbers come from the mask generator. Nearly always their first 16 bits decide already; where they do not, 48
more are drawn, and another 64 where even these fall onto a threshold.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_protocol import cbor, prg
from covey_protocol.digest import digest
from covey_protocol.prg import Ring

RATE_MAX = 1 << 26
_BITS = 128  # of a threshold
_SPARE = 48  # bits by which the table is finer than its thresholds, so that what its making loses does not show
_GUIDE = 16  # bits that are looked at first
_WORD = 64
_OPEN = -1  # in a guide: more bits have to be seen


class _Table(NamedTuple):
    low: int  # the least number that is ever drawn
    exact: tuple[int, ...]  # P(X <= low + i), as a 128-bit number
    high: NDArray[np.uint64]  # the first 64 bits of each
    guide: NDArray[np.int32]  # how many thresholds a number with these first 16 bits reaches, or ``_OPEN``


def add_noise(vector: Ring, seed: bytes, variance: int) -> None:
    """Add independent Skellam noise to every coordinate of a vector, in place and modulo 2^16.

    Args:
        vector: Shape (d,).
        seed: 32 secret random bytes, used for nothing else.
        variance: Of each coordinate's noise; an even number, 0 for none.

    Raises:
        ValueError: No whole rate has such a variance.
    """
    if variance % 2 or not 0 <= variance <= 2 * RATE_MAX:
        raise ValueError(f"a variance of {variance} is no even number from 0 to {2 * RATE_MAX}")
    if variance == 0:
        return
    table = _table(variance // 2)
    for apply, side in ((np.add, 0), (np.subtract, 1)):
        for index, (where, guides) in enumerate(prg.blocks(_derived(seed, side), len(vector))):
            counts = _draw(table, guides, _derived(seed, side, index))
            tile = vector[where]
            # Both sides count from ``low``, which cancels.
            apply(tile, counts.astype(np.uint16), out=tile)


def _derived(seed: bytes, *purpose: int) -> bytes:
    return digest(cbor.encode(list(purpose)), key=seed, person=b"covey-skellam")


def _draw(table: _Table, guides: Ring, seed: bytes) -> NDArray[np.int32]:
    """Return for each uniform 16-bit number, continued as far as needed, how many thresholds it reaches."""
    counts = table.guide[guides]
    (open_,) = np.nonzero(counts == _OPEN)
    if not len(open_):
        return counts
    words = prg.expand(_derived(seed, 0), len(open_) * _WORD // 16).view("<u8")
    high = (guides[open_].astype(np.uint64) << np.uint64(_WORD - _GUIDE)) | (words >> np.uint64(_GUIDE))
    reached = np.searchsorted(table.high, high, side="left")
    counts[open_] = reached
    on_threshold = table.high[np.minimum(reached, len(table.high) - 1)] == high
    for place in np.flatnonzero(on_threshold).tolist():
        rest = int.from_bytes(_derived(seed, 1, place)[: _WORD // 8], "big")
        counts[open_[place]] = bisect_right(table.exact, (int(high[place]) << _WORD) | rest)
    return counts


@lru_cache(maxsize=4)
def _table(rate: int) -> _Table:
    """Return Poisson's distribution, from its most likely number outwards to where 2^-176 of that number's rest."""
    above, below = [1 << (_BITS + _SPARE)], list[int]()
    while above[-1]:
        above.append(above[-1] * rate // (rate + len(above)))
    weight = above[0]
    for number in range(rate, 0, -1):
        weight = weight * number // rate
        if not weight:
            break
        below.append(weight)
    weights = [*reversed(below), *above[:-1]]
    total, reached, exact = sum(weights), 0, list[int]()
    for weight in weights[:-1]:
        reached += weight
        exact.append((reached << _BITS) // total)
    high = np.array([threshold >> _WORD for threshold in exact], np.uint64)
    edges = np.arange(1 << _GUIDE, dtype=np.uint64) << np.uint64(_WORD - _GUIDE)
    first = np.searchsorted(high, edges, side="left")
    last = np.append(first[1:], len(high))
    return _Table(rate - len(below), tuple(exact), high, np.where(first == last, first, _OPEN).astype(np.int32))
