"""The gate: how much there is to agree about.

While a model learns, honest gradients point the same way. Near convergence what is left of them is each device's own
noise: norms shrink, cosines fall, and disagreement says nothing. It says nothing either where the fleet falls into
clusters, as when each device holds one class: whoever is like a whole cluster and unlike the rest has other data, or
the cluster lies, and no sketch tells which. So what alignment and norms say counts only as far as the gate is open.

Where it is shut for want of anything to agree about, and only then, a device that disagrees more than hardly any
trusted one does can still be told: see ``alignment.bar``. Norms have a gate that shuts sooner: a device with few
samples, or one that trains against perturbed inputs, has more left to learn than others when these are nearly done.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from covey_aggregator.reputation.settings import Settings

_LEAST_CORE = 0.5


class Gate(NamedTuple):
    """How far the gate is open, from 0 to 1.

    Attributes:
        openness: κ, for disagreement.
        norms: ν, for large norms besides: they say less, and sooner nothing, when some have more left to learn.
        clear: κ as it would be if all had much to learn: whether the fleet has one centre.
    """

    openness: float
    norms: float
    clear: float

    @property
    def late(self) -> float:
        """How far the gate is shut for no other reason than that there is little left to agree about."""
        return self.clear - self.openness


def gate(*, norm_share: float, agreement: float, core_share: float, clustering: float, s: Settings) -> Gate:
    """Return how far the gate is open.

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
    clear = float(by_clusters) if core_share >= _LEAST_CORE else 0.0
    return Gate(
        openness=clear * float(by_norm * by_agreement),
        norms=float(np.clip((norm_share - s.gate_large) / s.gate_norm_width, 0, 1)),
        clear=clear,
    )
