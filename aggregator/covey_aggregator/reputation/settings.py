"""Every number of the rule, with what it is for. The rule's page in the documents prints them with their reasons.

They were chosen together, on fleets of digits; none depends on how many devices are hostile, on the size of the model
or on the scale of its updates.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule's parameters.

    Attributes:
        memory: λ: share of the past in every moving average; 0.75 remembers about four attested rounds.
        smallest: Fewer sketches than this in a round say nothing; nobody is judged by them.
        established: Share of trusted devices in a round from which on they are the measure of all others.
        probation_weight: Weight of a newcomer, once there is an established fleet.
        suspect_weight: Weight of a suspect.
        probation_share: Largest share of the total weight that all newcomers together hold.
        neighbour: m, as a share of the round: clones are told by their m-th nearest device, and m fellows are compared.
        fellow_memory: λ of fellowship: longer, because one round's cosine with fellows says little.
        fellow_share: Share of the usual fellowship under which a device is like nobody.
        fellow_error: Standard errors that fellowship has to lie below that.
        fewest_neighbours: Smallest m.
        clone_floor: No pair less alike than this is taken for clones.
        clone_spread: How many times the lower half's spread above it clones begin.
        alike: When even the lower quarter of the fleet is this alike, likeness says nothing.
        agreement: θ: to belong to the centre a device agrees with it at least this share of what is usual there.
        norm_reach: Scales above the norm reference from which on a device is no part of the centre.
        band: Times the median norm beyond which an update is too large, before the sketch's own error.
        smallest_norm: Share of the median norm under which an update is as good as none.
        alignment_from: z₀: disagreement, in spreads, from which on it counts against a device.
        outstanding: Spreads above nine tenths of the trusted from which on disagreement counts in spite of a shut gate.
        spread_typical: Relative spread of agreement in an ordinary fleet; with a wider one disagreement weighs less.
        norm_weight: Evidence for every scale by which a device's norms lie above the reference.
        clone_weight: Evidence for being a clone.
        isolation_weight: Evidence for being like nobody, or no longer like one's fellows.
        drift: Evidence forgiven every attested round.
        floor: Most evidence that one round takes back.
        ceiling: Most evidence that one round adds.
        gate_norm: Share of the largest median norm at which the gate begins to open.
        gate_norm_width: From there on it opens over this much.
        gate_large: The same for what large norms say, over the same width.
        gate_agreement: Typical agreement at which the gate begins to open.
        gate_agreement_width: From there on it opens over this much.
        gate_clusters: Clustering of the fleet at which the gate is shut.
        gate_clusters_width: It shuts over this much below.
        opposed: Cosine with its fellows under which an update is not summed, whatever its sender's record.
        warm_up: Attested rounds of the fleet before evidence counts.
        sit_out: Attested rounds that newcomers to an established fleet are watched before they are summed; those who
            were there before it are spared.
        probation: Attested rounds before a device can be trusted.
        suspect_at: Evidence that makes a suspect.
        quarantine_at: Evidence that quarantines.
        clear_at: Evidence under which a suspect is cleared.
        trust_at: Evidence under which a newcomer can be trusted.
        worst: Evidence never grows beyond this.
        quarantine_rate: Largest share of a round's devices that is quarantined in it.
        quarantine_share: Largest share of the original fleet that is in quarantine.
        parole_after: Attested rounds in quarantine before the first parole; doubled with every one that failed.
        parole_at: Evidence that sends a device on parole back to quarantine.
        dispute_weight: Evidence for being the one to go when two devices contradict one another without proof.
        refusal_weight: Evidence for a refusal, times how much more likely a refuser is to fall silent than the device.
    """

    memory: _Share = 0.75
    smallest: _Count = 5
    established: _Share = 0.2
    probation_weight: _Share = 0.1
    suspect_weight: _Share = 0.1
    probation_share: _Share = 0.2
    neighbour: _Share = 0.05
    fewest_neighbours: _Count = 3
    fellow_memory: _Share = 0.85
    fellow_share: _Share = 0.5
    fellow_error: float = 2.0
    clone_floor: _Share = 0.85
    clone_spread: _Positive = 3.5
    alike: _Share = 0.95
    agreement: _Share = 0.25
    norm_reach: _Positive = 2.5
    band: _Positive = 2.5
    smallest_norm: _Share = 0.1
    alignment_from: _Positive = 3.5
    outstanding: float = 1.5
    spread_typical: _Positive = 0.3
    norm_weight: float = 1.75
    clone_weight: float = 2.0
    isolation_weight: float = 2.5
    drift: float = 0.3
    floor: _Positive = 0.5
    ceiling: _Positive = 2.5
    gate_norm: _Share = 0.4
    gate_norm_width: _Positive = 0.15
    gate_large: _Share = 0.5
    gate_agreement: _Share = 0.11
    gate_agreement_width: _Positive = 0.07
    gate_clusters: _Positive = 0.85
    gate_clusters_width: _Positive = 0.15
    opposed: float = -0.4
    warm_up: _Count = 2
    sit_out: _Count = 3
    probation: _Count = 5
    suspect_at: _Positive = 2.0
    quarantine_at: _Positive = 5.0
    clear_at: _Positive = 0.5
    trust_at: _Positive = 1.0
    worst: _Positive = 10.0
    quarantine_rate: _Share = 0.15
    quarantine_share: _Share = 0.5
    parole_after: _Count = 10
    parole_at: _Positive = 2.0
    dispute_weight: float = 1.5
    refusal_weight: float = 0.5
