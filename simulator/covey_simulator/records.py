"""What a simulation writes down: the types of ``report.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round; bytes are payload bytes, summed over all devices, so a broadcast counts once for each.

    Attributes:
        round: From 1.
        attempt: The attempt that closed it, from 1.
        accuracy: Of the round's new model on the held-out samples; None for a round that gave none.
        loss: Its mean cross-entropy there.
        federated_accuracy: Of the *incoming* model on the devices' own data, as they report it under the mask; None
            where nobody was asked.
        participants: Devices that joined.
        accepted: Devices whose updates are in the new model.
        rejected: Devices that were refused for what they sent.
        honest_rejected: Those of them who are honest; only a simulation knows.
        attested: Devices whose sketches were judged.
        groups: Groups whose sums were used.
        groups_aborted: Groups that fell under their threshold or failed a check.
        dropped: Devices that joined and did not finish.
        seconds: Wall-clock time of the round.
        stage_seconds: The same by stage, in the order of the stages.
        epsilon: What all rounds so far have cost the device that they cost most, by the scenario's delta; None without
            noise.
        bytes_up: Sent by all devices together.
        bytes_down: Received by all devices together.
    """

    round: int
    accuracy: float | None
    loss: float | None
    attempt: int = 1
    federated_accuracy: float | None = None
    participants: int
    accepted: int
    rejected: int = 0
    honest_rejected: int = 0
    attested: int = 0
    groups: int
    groups_aborted: int = 0
    dropped: int = 0
    seconds: float = 0.0
    stage_seconds: dict[str, float] = {}
    epsilon: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def failed(self) -> bool:
        """Whether the round taught the model nothing."""
        return self.accepted == 0 or self.accuracy is None


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One device at the end.

    Attributes:
        name: As enrolled.
        malicious: Whether the scenario made it so; only a simulation knows.
        state: In a word.
        reputation: 0 to 1, or None while devices are not scored one by one.
        quarantined_at: The round in which it was expelled.
        reason: Why it is in this state.
        reputations: Its reputation after each round; empty while devices are not scored one by one.
    """

    name: str
    malicious: bool
    state: str
    reputation: float | None = None
    quarantined_at: int | None = None
    reason: str | None = None
    reputations: list[float | None] = []


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """How many were expelled, and the first round by which nine tenths of the malicious were."""

    malicious_quarantined: int
    honest_quarantined: int
    rounds_to_90: int | None


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The same fleet in the clear: one process, no masks, no network."""

    label: str
    attacked: bool
    rule: str
    rounds: list[RoundRecord]
    final_accuracy: float | None
    masking: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the run did what was promised.

    Attributes:
        ok: All that was promised holds.
        promised_accuracy: What the fleet had to reach; None where nothing is promised for such a scenario.
        reasons: Why, one sentence each.
        notes: What else must be known to read the numbers rightly.
    """

    ok: bool
    promised_accuracy: float | None
    reasons: list[str]
    notes: list[str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of ``report.json``.

    Attributes:
        epsilon: What the rounds have cost in privacy; None without noise.
        attack_success: For attacks that want a certain answer: how often the last model gives it. None for others.
    """

    name: str
    verdict: Verdict
    final_accuracy: float | None
    rounds: list[RoundRecord]
    devices: list[DeviceRecord]
    detection: Detection
    attack_success: float | None = None
    epsilon: float | None = None
    baselines: dict[str, Baseline]
    config: dict[str, Any]
    versions: dict[str, str]
    seconds: float


def final_accuracy(rounds: Sequence[RoundRecord]) -> float | None:
    """Return the last accuracy that was measured: a failed round leaves the model as it was. None if there is none."""
    return next((record.accuracy for record in reversed(rounds) if record.accuracy is not None), None)
