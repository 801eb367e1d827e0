"""The gate: how much there is to agree about.

While a model learns, honest gradients point the same way. Near convergence what is left of them is each device's own
noise: norms shrink, cosines fall, and disagreement says nothing. So what alignment, norms and isolation say counts only
as far as the gate is open.
"""

from __future__ import annotations

import numpy as np

from covey_aggregator.reputation.settings import Settings

_LEAST_CORE = 0.5


def openness(norm_share: float, agreement: float, core_share: float, s: Settings) -> float:
    """Return κ, from 0 (shut) to 1 (open).

    Args:
        norm_share: The usual norm over the largest that it has been.
        agreement: q̄.
        core_share: How many of the candidates are in the centre: one that most of them disagree with is no measure.
        s: The rule's parameters.
    """
    by_norm = np.clip((norm_share - s.gate_norm) / s.gate_norm_width, 0, 1)
    by_agreement = np.clip((agreement - s.gate_agreement) / s.gate_agreement_width, 0, 1)
    return float(by_norm * by_agreement) if core_share >= _LEAST_CORE else 0.0
