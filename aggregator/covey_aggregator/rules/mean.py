"""The plain mean: no defence, for comparisons."""

from __future__ import annotations

import msgspec
import numpy as np

from covey_aggregator.rules.influence import Influence
from covey_aggregator.rules.rows import Row, Rows, weighted_sum


class Mean(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="mean"):
    """The mean of the rows: a single spoilt group moves it anywhere."""

    def __call__(self, rows: Rows, spoilt: int, influence: Influence | None = None) -> Row:
        """Return the mean of every column; ``spoilt`` is not used."""
        counts = np.ones(len(rows)) if influence is None else influence
        return weighted_sum(rows, counts / counts.sum())

    def withstands(self, groups: int, spoilt: int) -> int:
        """Return zero."""
        return 0
