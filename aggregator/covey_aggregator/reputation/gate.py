"""The gate: how much there is to agree about.

While a model learns, honest gradients point the same way. Near convergence what is left of them is each device's own
noise: norms shrink, cosines fall, and disagreement says nothing. It says nothing either where the fleet falls into
clusters, as when each device holds one class: whoever is like a whole cluster and unlike the rest has other data, or
the cluster lies, and no sketch tells which. So what alignment and norms say counts only as far as the gate is open.
"""

from __future__ import annotations

import numpy as np

from covey_aggregator.reputation.settings import Settings

_LEAST_CORE = 0.5


def openness(*, norm_share: float, agreement: float, core_share: float, clustering: float, s: Settings) -> float:
    """Return κ, from 0 (shut) to 1 (open).

    Args:
        norm_share: The usual norm over the largest that it has been.
        agreement: q̄.
        core_share: How many of the candidates are in the centre: one that most of them disagree with is no measure.
        clustering: How much more alike devices are to their nearest than to all.
        s: The rule's parameters.
    """
    by_norm = np.clip((norm_share - s.gate_norm) / s.gate_norm_width, 0, 1)
    by_agreement = np.clip((agreement - s.gate_agreement) / s.gate_agreement_width, 0, 1)
    by_clusters = np.clip((s.gate_clusters - clustering) / s.gate_clusters_width, 0, 1)
    return float(by_norm * by_agreement * by_clusters) if core_share >= _LEAST_CORE else 0.0
