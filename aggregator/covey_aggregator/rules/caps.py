"""The cap on norms that stands before every rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from covey_aggregator.rules.influence import Influence, weighted_median
from covey_aggregator.rules.rows import Row, Rows
from covey_protocol.errors import LocalError
from covey_protocol.ring import norm


def cap_norms(
    rows: Rows, factor: float = 1.5, names: Sequence[str] = (), influence: Influence | None = None
) -> list[Row]:
    """Scale rows down to at most ``factor`` times their median norm: no single group can pull further than that.

    Args:
        rows: One a group.
        factor: Above 1 it leaves honest groups alone, whose norms lie close together.
        names: The groups' names, for the refusal; numbers stand in where there are none.
        influence: What each group counts for in the median; None is 1 for all.

    Returns:
        The rows themselves, and new ones in place of those above the cap: less than half of the weight.

    Raises:
        LocalError: A row holds values that are not finite. Sums in a ring cannot, so something is broken here.
    """
    norms = np.array([norm(row) for row in rows])
    broken = np.flatnonzero(~np.isfinite(norms))
    if len(broken):
        name = names[broken[0]] if names else broken[0] + 1
        raise LocalError(f"group {name}: its mean holds values that are not finite", cause="not-finite")
    cap = factor * weighted_median(norms, np.ones(len(norms)) if influence is None else influence)
    return [row if size <= cap else row * np.float32(cap / size) for row, size in zip(rows, norms, strict=True)]
