"""How many groups a rule must expect to be spoilt, and how many it may leave out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONTAMINATION = 0.01  # of the devices whose updates are in the sums
RISK = 0.05


def spoilt_groups(counts: Sequence[int], contamination: float, risk: float = RISK) -> int:
    """Return the smallest number of spoilt groups that is exceeded with a probability of at most ``risk``.

    One hostile member spoils a group: a group of n is spoilt with probability 1 − (1 − contamination)ⁿ, and the groups'
    number follows as the sum of such coins. Members are not the server's to place, so coins are the right picture; that
    hostile devices are drawn without putting them back makes many at once a little rarer than said here.

    Args:
        counts: How many updates are in each group's sum.
        contamination: Share of the devices whose updates are accepted and which are hostile for all that.
        risk: How often more may be spoilt.
    """
    chances = np.ones(1)
    for count in counts:
        spoilt = 1 - (1 - contamination) ** count
        chances = np.convolve(chances, [1 - spoilt, spoilt])
    return int(np.searchsorted(chances.cumsum(), 1 - risk))


def left_out(groups: int, wanted: int) -> int:
    """Return how many rows to leave out (on each side): at least one from three on, and fewer than half.

    With one or two groups it is none, as nothing says which of two is the spoilt one.
    """
    return 0 if groups < 3 else min(max(wanted, 1), (groups - 1) // 2)
