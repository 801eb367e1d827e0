"""Rules that combine the groups' mean updates into one step, behind one interface.

A rule sees one row a group and nothing else. ``beta`` is the share that a rule should expect to be bad on each side,
for the rules that can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from covey_aggregator.rules.mean import mean
from covey_aggregator.rules.median import median
from covey_aggregator.rules.trimmed_mean import trimmed_mean
from covey_protocol.errors import ConfigError
from covey_protocol.ring import norm

Rows: TypeAlias = NDArray[np.float32]
Rule: TypeAlias = Callable[[Rows, float], Rows]

RULES: dict[str, Rule] = {"trimmed-mean": trimmed_mean, "median": median, "mean": mean}

__all__ = ["RULES", "Rows", "Rule", "cap_norms", "rule"]


def rule(name: str) -> Rule:
    """Return a rule by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in RULES:
        raise ConfigError(f"rule {name!r}: unknown; there are {', '.join(sorted(RULES))}")
    return RULES[name]


def cap_norms(rows: Rows | Sequence[Rows], factor: float = 1.5) -> Rows:
    """Scale rows down to at most ``factor`` times their median norm.

    Args:
        rows: Shape (G, d), or as many vectors: there is no need to stack them before.
        factor: Above 1 it leaves honest groups alone, whose norms lie close together.

    Returns:
        A new array; no single group can pull a coordinate further than an honest one might.
    """
    norms = np.array([norm(row) for row in rows])
    cap = factor * float(np.median(norms))
    scales = np.minimum(1.0, cap / np.maximum(norms, 1e-12)).astype(np.float32)
    capped = np.empty((len(rows), len(rows[0])), np.float32)
    for target, row, scale in zip(capped, rows, scales, strict=True):
        np.multiply(row, scale, out=target)
    return capped
