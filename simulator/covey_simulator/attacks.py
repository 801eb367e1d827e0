"""Hostile devices: what a poisoner's trainer hands to an agent that masks and signs like any other.

Clipping is a device's own act, which nobody can see under a mask, so a poisoner does not clip (``UnclippedRound``).
What bounds it is the ring: no coordinate can be larger than the clip, or the group's sum would give the attack away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from covey_agent.data import Dataset
from covey_agent.trainer import Cancel, Progress, Trainer, TrainResult
from covey_protocol import cbor
from covey_protocol.bundle import Float32
from covey_protocol.device_round import DeviceRound
from covey_protocol.digest import content_digest, digest
from covey_protocol.plan import Plan
from covey_simulator.scenario import Attack, Scenario


def malicious_devices(scenario: Scenario) -> frozenset[int]:
    """Return which devices are malicious, by index; the scenario's seed decides."""
    chosen = scenario.generator("malicious").choice(scenario.devices, scenario.malicious_count, replace=False)
    return frozenset(chosen.tolist())


class UnclippedRound(DeviceRound):
    """A poisoner's round: an honest one but for the clip."""

    def clip(self, update: Float32) -> tuple[Float32, float, float]:
        """Return the update as it is, as far as the ring can hold it."""
        bounded, norm = unclipped(update, self.opened.manifest.clip)
        return bounded, 1.0, norm


def unclipped(update: Float32, clip: float) -> tuple[Float32, float]:
    """Return an update whose coordinates alone are bounded, and its norm."""
    return np.clip(update, -clip, clip), float(np.linalg.norm(update))


class PoisoningTrainer(Trainer):
    """Does what an honest trainer does and returns something harmful instead.

    - ``sign-flip``: −scale · update (Li et al. 2019, "RSA: Byzantine-robust stochastic aggregation methods").
    - ``scaling``: scale · update, the boosting by which a model is replaced (Bagdasaryan et al. 2020, "How to backdoor
      federated learning").
    - ``gaussian``: noise in place of the update, its expected squared norm that of scale · update (Blanchard et al.
      2017, "Machine learning with adversaries", whose noise is of fixed size).
    - ``label-flip``: trains on the labels C − 1 − y (Fang et al. 2020, "Local model poisoning attacks to
      Byzantine-robust federated learning").

    Loss and accuracy are those of the honest result, except under label-flip, where they count on the flipped labels.

    Args:
        inner: The trainer that does the work; one may serve several poisoners in turn.
        attack: What to do, and from which round on.
        round_number: Says which round is being trained. Without it, rounds are counted by the models that come in: each
            round has a new one, and a repeated attempt has the same.
    """

    def __init__(self, inner: Trainer, attack: Attack, *, round_number: Callable[[], int] | None = None) -> None:
        # Trainer's own constructor is left out on purpose: the sessions are those of ``inner``, and all public methods
        # are answered here.
        self.bundle = inner.bundle
        self._inner = inner
        self._attack = attack
        self._round_number = round_number
        self._rounds_seen = 0
        self._last_model: bytes | None = None

    def self_test(self) -> None:
        """Replay the bundle's reference trace."""
        self._inner.self_test()

    def evaluate(self, weights: Float32, data: Dataset, *, cancel: Cancel | None = None) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy, honestly."""
        return self._inner.evaluate(weights, data, cancel=cancel)

    def train(
        self,
        weights: Float32,
        data: Dataset,
        plan: Plan,
        *,
        seed: bytes,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
    ) -> TrainResult:
        """Train, and poison the result once the attack has begun; arguments and errors as for ``Trainer``."""
        active = self._count(weights) >= self._attack.start_round
        if active and self._attack.kind == "label-flip":
            data = Dataset(data.x, self.bundle.manifest.classes - 1 - data.y)
        result = self._inner.train(weights, data, plan, seed=seed, cancel=cancel, progress=progress)
        return replace(result, update=self._poison(result.update, seed)) if active else result

    def _count(self, weights: Float32) -> int:
        if self._round_number is not None:
            return self._round_number()
        model = content_digest(weights.tobytes())
        if model != self._last_model:
            self._rounds_seen, self._last_model = self._rounds_seen + 1, model
        return self._rounds_seen

    def _poison(self, update: Float32, seed: bytes) -> Float32:
        scale = np.float32(self._attack.scale)
        match self._attack.kind:
            case "sign-flip":
                return -scale * update
            case "scaling":
                return scale * update
            case "gaussian":
                # A seed of its own: the training seed has already chosen the batches.
                own = digest(cbor.encode([seed]), person=b"covey-gaussian")
                noise = np.random.default_rng(int.from_bytes(own, "big")).standard_normal(update.shape, np.float32)
                return noise * (scale * np.float32(np.linalg.norm(update) / np.sqrt(update.size)))
            case "label-flip" | "none":
                return update
