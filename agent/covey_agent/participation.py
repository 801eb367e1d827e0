"""One task on this device: from an open round to its close, over and over.

Holds what outlives a round (the model, the trainer) and what a round needs before the device can join it: a grouping of
the right epoch, the bundle, the round's model. Everything heavy runs on an executor and comes back as an event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from covey_agent.data import Dataset
from covey_agent.profile import FirmwareProfile
from covey_agent.trainer import EVALUATION_BATCH, Trainer, TrainResult
from covey_protocol import envelope, model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.device_round import DeviceRound
from covey_protocol.digest import content_digest, short
from covey_protocol.effects import Effect
from covey_protocol.epochs import Grouping
from covey_protocol.errors import PeerError, RefusedError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Blob, Close, Delta, Manifest
from covey_protocol.model import Weights
from covey_protocol.model_guard import ModelGuard
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.roster import OpenRound, Trust
from covey_protocol.round_table import DeviceStage

log = logging.getLogger("covey.agent.task")

GetBlob = Callable[[bytes], bytes | None]
MakeTrainer = Callable[[Bundle], Trainer]
LoadData = Callable[[Bundle], Dataset]


@dataclass(frozen=True)
class Job:
    """Local training that is ready to run."""

    round: DeviceRound
    trainer: Trainer
    data: Dataset
    weights: Weights


class Participation:
    """A device's part in one task.

    Args:
        task: The task's name.
        profile: Limits of this device.
        get_blob: Returns a blob that is on disk.
        make_trainer: Builds a trainer for a bundle and replays its self-test.
        load_data: Reads the device's samples for a bundle.
    """

    def __init__(
        self,
        task: str,
        *,
        profile: FirmwareProfile,
        get_blob: GetBlob,
        make_trainer: MakeTrainer,
        load_data: LoadData,
    ) -> None:
        self.task = task
        self._profile, self._get_blob = profile, get_blob
        self._make_trainer, self._load_data = make_trainer, load_data
        self._pending: OpenRound | None = None
        self.round: DeviceRound | None = None
        self._bundle_digest = b""
        self._fits = (b"", 0)
        self._trainer: Trainer | None = None
        self._data: Dataset | None = None
        self.weights: Weights | None = None
        self._model_digest = b""
        self._model_round = 0
        self._guard: ModelGuard | None = None
        self._result: TrainResult | None = None
        self._training = False
        self.closed = 0

    def opened(self, round_: OpenRound) -> None:
        """Consider a new round; it replaces an older one.

        Raises:
            RefusedError: This device cannot serve it; the message names the limit.
        """
        newest = self._pending or (self.round.opened if self.round else None)
        if newest is not None and (round_.round, round_.attempt) <= (newest.round, newest.attempt):
            return
        manifest, profile = round_.manifest, self._profile
        if manifest.model.bytes > profile.model_bytes_max:
            raise RefusedError(
                f"a model of {manifest.model.bytes} bytes; profile {profile.name} allows {profile.model_bytes_max}",
                cause="profile",
            )
        if manifest.plan.batch_size > profile.batch_size_max:
            raise RefusedError(
                f"batches of {manifest.plan.batch_size}; profile {profile.name} allows {profile.batch_size_max}",
                cause="profile",
            )
        self._pending = round_

    def missing(self) -> list[Blob]:
        """Return the blobs that have to come before the pending round can be joined."""
        if self._pending is None:
            return []
        manifest = self._pending.manifest
        if self._trainer is None or self._bundle_digest != manifest.bundle.digest:
            bundle = self._get_blob(manifest.bundle.digest)
            if bundle is None:
                return [manifest.bundle]
            self._use_bundle(bundle, manifest)
        self._check_memory(manifest)
        return self._missing_model(manifest, self._pending.round)

    def overdue(self, blob: Blob) -> bool:
        """Whether a blob was published before the pending round opened, if ever, as all but the bundle are."""
        return self._pending is not None and blob.digest != self._pending.manifest.bundle.digest

    def ready(self, grouping: Grouping | None) -> OpenRound | None:
        """Return the pending round if it can be joined now."""
        if self._pending is None or grouping is None or grouping.epoch != self._pending.manifest.epoch:
            return None
        return None if self.missing() else self._pending

    def joined(self, round_: DeviceRound) -> None:
        """Note that the pending round was joined."""
        self._pending, self.round = None, round_
        self._result, self._training = None, False

    def is_over(self, round_: DeviceRound) -> bool:
        """Say whether nothing more can come of a round; may be asked from any thread."""
        return round_ is not self.round or round_.finished

    @property
    def under_way(self) -> bool:
        """Whether the device is in a round that is not over, as far as it knows."""
        return self.round is not None and not self.round.finished and self._pending is None

    def overslept(self, close: bytes, trust: Trust) -> bool:
        """Take a CLOSE for the pending round, which is then not joined any more; say whether it was for that.

        Raises:
            PeerError: It is not signed as it should be.
        """
        message, pending = envelope.parse(close), self._pending
        if pending is None or (message.round, message.attempt) != (pending.round, pending.attempt):
            return False
        envelope.verify(message, pending.context(trust.fleet, topics.CLOSE, AGGREGATOR), trust.aggregator_key)
        self._pending = None
        return True

    def give_up(self) -> None:
        """Drop the pending round."""
        self._pending = None

    def job(self) -> Job | None:
        """Return local training when it is time for it: as soon as shares are dealt, before D is known."""
        if self.round is None or self._training or self.round.stage is not DeviceStage.SHARED:
            return None
        assert self._trainer is not None and self._data is not None and self.weights is not None
        self._training = True
        return Job(self.round, self._trainer, self._data, self.weights)

    def trained(self, round_: DeviceRound, result: TrainResult) -> None:
        """Take the result of local training.

        Raises:
            RefusedError: The incoming model's loss says that it is no honest one; nothing of the result is sent.
        """
        if round_ is self.round:
            assert self._guard is not None
            self._guard.check_loss(result.loss)
            self._result = result

    def mask(self) -> list[Effect]:
        """Mask the update once it is there and D is known."""
        if self.round is None or self._result is None or self.round.stage is not DeviceStage.DEALT:
            return []
        result, self._result = self._result, None
        metrics = Metrics(loss=result.loss, accuracy=result.accuracy, samples=result.samples, norm=0.0)
        return self.round.trained(result.update, metrics)

    def close(self, close: Close) -> list[Blob]:
        """Take the round's new model: return what has to be fetched for it, if anything."""
        self.closed += 1
        if self._model_digest == close.delta.base and self._get_blob(close.delta.blob.digest) is None:
            return [close.delta.blob]
        return []

    def _use_bundle(self, data: bytes, manifest: Manifest) -> None:
        bundle = Bundle.decode(data)
        if 4 * bundle.dimension != manifest.model.bytes:
            raise RefusedError("bundle and manifest disagree about the model's size", cause="model")
        self._data = self._load_data(bundle)
        self._trainer = self._make_trainer(bundle)
        self._bundle_digest = manifest.bundle.digest
        self._guard = ModelGuard(bundle.manifest.classes)
        if self.weights is None or len(self.weights) != bundle.dimension:
            self._set_model(np.ascontiguousarray(bundle.weights, np.float32), 0)

    def _check_memory(self, manifest: Manifest) -> None:
        """Refuse what would not fit: half of a profile's memory is for the system, onnxruntime and the agent.

        Raises:
            RefusedError: A step of the plan, or looking at the local data, takes more.
        """
        assert self._trainer is not None
        batch = manifest.plan.batch_size
        if self._fits == (self._bundle_digest, batch):
            return
        bundle, profile = self._trainer.bundle, self._profile
        needed = max(bundle.memory(batch), bundle.memory(EVALUATION_BATCH, trains=False))
        if needed > profile.memory_mb << 19:
            raise RefusedError(
                f"training takes {needed >> 20} MiB with batches of {batch}; profile {profile.name} has "
                f"{profile.memory_mb >> 1} MiB for it",
                cause="profile",
            )
        self._fits = self._bundle_digest, batch

    def _missing_model(self, manifest: Manifest, round_: int) -> list[Blob]:
        wanted = manifest.model.digest
        if self._model_digest == wanted:
            return []
        stored = self._get_blob(wanted)
        if stored is not None:
            weights = model.from_bytes(stored)
            if len(weights) * 4 != manifest.model.bytes:
                raise RefusedError("the model is not of the manifest's size", cause="model")
            self._accept(weights, manifest, round_)
            return []
        delta = manifest.delta
        if delta is not None and delta.base != self._model_digest:
            base = self._get_blob(delta.base)  # the model of the last round, from before a restart
            if base is not None and len(base) == manifest.model.bytes:
                self._accept(model.from_bytes(base), manifest, round_)
        if delta is not None and delta.base == self._model_digest:
            return self._by_delta(delta, manifest, round_)
        return [manifest.model]

    def _by_delta(self, delta: Delta, manifest: Manifest, round_: int) -> list[Blob]:
        data = self._get_blob(delta.blob.digest)
        if data is None:
            return [delta.blob]
        assert self.weights is not None
        weights = model.apply_delta(self.weights, data)
        if model.model_digest(weights) != manifest.model.digest:
            raise RefusedError(f"the delta does not lead to model {short(manifest.model.digest)}", cause="model")
        self._accept(weights, manifest, round_)
        return []

    def _accept(self, weights: Weights, manifest: Manifest, round_: int) -> None:
        """Make a model the current one, unless it has moved further than honest rounds can move it."""
        assert self.weights is not None and self._guard is not None
        self._guard.check_step(self.weights, weights, RingScale.of(manifest).reach, round_ - self._model_round)
        self._set_model(weights, round_)

    def _set_model(self, weights: Weights, round_: int) -> None:
        self.weights, self._model_round = weights, round_
        self._model_digest = content_digest(model.to_bytes(weights))

    @property
    def model_digest(self) -> bytes:
        """Digest of the model that this device has."""
        return self._model_digest


def refusal(error: PeerError, task: str) -> str:
    """Say in words why a round of a task is not joined."""
    return f"not taking part in {task!r}: {error}"
