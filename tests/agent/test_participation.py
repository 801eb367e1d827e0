"""covey_agent.participation: what a device needs before it joins, and what it does once it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.protocol.rig import TASK, Rig, make_manifest

from covey_agent.data import Dataset
from covey_agent.participation import Participation, refusal
from covey_agent.profile import load_profile
from covey_agent.trainer import Trainer, TrainResult
from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol import model, topics
from covey_protocol.bundle import Bundle
from covey_protocol.digest import content_digest
from covey_protocol.errors import MalformedError, RefusedError
from covey_protocol.messages import Blob, Close, Delta
from covey_protocol.plan import Plan
from covey_protocol.ring import RingScale
from covey_protocol.roster import OpenRound
from covey_protocol.round_table import DeviceStage

BUNDLE = build_bundle(softmax((4,), 3), name="points")
DATA = Dataset(np.ones((8, 4), np.float32), np.zeros(8, np.int64))
PROFILE = load_profile("pi-4")
DIMENSION = BUNDLE.dimension
FIRST = model.to_bytes(np.asarray(BUNDLE.weights))
DELTA = model.make_delta(np.linspace(-1, 1, DIMENSION).astype(np.float32))
SECOND = model.to_bytes(model.apply_delta(BUNDLE.weights, DELTA))


def blob(data: bytes) -> Blob:
    return Blob(digest=content_digest(data), bytes=len(data))


STEP = Delta(base=content_digest(FIRST), blob=blob(DELTA))


def opened(round_: int = 1, attempt: int = 1, **changes: Any) -> OpenRound:
    fields = {"bundle": blob(BUNDLE.encode()), "model": blob(FIRST), **changes}
    return OpenRound(TASK, round_, attempt, make_manifest(DIMENSION, 10, **fields), bytes([round_]) * 32)


class Device:
    """A participation with a disk."""

    def __init__(self, **limits: Any) -> None:
        self.disk: dict[bytes, bytes] = {}
        self.trainers = 0
        self.fail: Exception | None = None
        self.part = Participation(
            TASK,
            profile=msgspec.structs.replace(PROFILE, **limits),
            get_blob=self.disk.get,
            make_trainer=self.make_trainer,
            load_data=self.load_data,
        )

    def make_trainer(self, bundle: Bundle) -> Trainer:
        self.trainers += 1
        return Trainer(bundle)

    def load_data(self, _: Bundle) -> Dataset:
        if self.fail:
            raise self.fail
        return DATA

    def put(self, data: bytes) -> None:
        self.disk[content_digest(data)] = data


@pytest.fixture
def device() -> Device:
    device = Device()
    device.put(BUNDLE.encode())
    return device


def test_what_is_missing_comes_in_turn() -> None:
    device = Device()
    assert device.part.missing() == []
    device.part.opened(opened(model=blob(SECOND)))
    assert device.part.missing() == [blob(BUNDLE.encode())]
    device.put(BUNDLE.encode())
    assert device.part.missing() == [blob(SECOND)]
    device.put(SECOND)
    assert device.part.missing() == []
    assert device.part.model_digest == content_digest(SECOND)
    assert device.trainers == 1


def test_the_bundles_own_weights_are_not_fetched_again(device: Device) -> None:
    device.part.opened(opened())
    assert device.part.missing() == []
    assert device.part.weights is not None
    assert model.to_bytes(device.part.weights) == FIRST


def test_a_trainer_serves_all_rounds_of_its_bundle_and_no_other(device: Device) -> None:
    for round_ in (1, 2, 3):
        device.part.opened(opened(round_))
        assert device.part.missing() == []
    assert device.trainers == 1
    other = build_bundle(softmax((4,), 3, 5), name="points").encode()
    device.put(other)
    device.part.opened(opened(4, bundle=blob(other)))
    device.part.missing()
    assert device.trainers == 2


@pytest.mark.parametrize(
    ("limits", "changes", "words"),
    [
        ({"model_bytes_max": 4 * DIMENSION - 1}, {}, f"{4 * DIMENSION} bytes; profile pi-4 allows {4 * DIMENSION - 1}"),
        ({"batch_size_max": 31}, {"plan": Plan(batch_size=32)}, "batches of 32; profile pi-4 allows 31"),
    ],
)
def test_the_profiles_limits_refuse_and_say_which(limits: dict[str, int], changes: dict[str, Any], words: str) -> None:
    device = Device(**limits)
    with pytest.raises(RefusedError, match=words) as caught:
        device.part.opened(opened(**changes))
    assert caught.value.cause == "profile"
    assert device.part.missing() == []
    assert refusal(caught.value, TASK) == f"not taking part in 'digits': {caught.value}"
    generous = Device(**{name: limit + 1 for name, limit in limits.items()})
    generous.part.opened(opened(**changes))
    assert generous.part.missing() != []


def test_who_has_the_last_model_fetches_the_step(device: Device) -> None:
    device.part.opened(opened())
    device.part.missing()
    device.part.opened(opened(2, model=blob(SECOND), delta=STEP))
    assert device.part.missing() == [STEP.blob]
    device.put(DELTA)
    assert device.part.missing() == []
    assert device.part.model_digest == content_digest(SECOND)


def test_after_a_restart_the_last_model_on_disk_will_do(device: Device) -> None:
    device.part.opened(opened(3, model=blob(SECOND), delta=STEP))
    device.put(FIRST)
    assert device.part.missing() == [STEP.blob]
    third = model.to_bytes(np.full(DIMENSION, 0.5, np.float32))
    fourth = model.apply_delta(model.from_bytes(third), DELTA)
    later = Delta(base=content_digest(third), blob=blob(DELTA))
    device.part.opened(opened(4, model=blob(model.to_bytes(fourth)), delta=later))
    assert device.part.missing() == [blob(model.to_bytes(fourth))]
    device.put(third)
    device.put(DELTA)
    assert device.part.missing() == []
    assert device.part.model_digest == content_digest(model.to_bytes(fourth))


def test_who_has_another_model_fetches_the_whole(device: Device) -> None:
    device.part.opened(opened())
    device.part.missing()
    device.part.opened(opened(5, model=blob(SECOND), delta=replace_base(STEP, bytes(32))))
    assert device.part.missing() == [blob(SECOND)]


def replace_base(delta: Delta, base: bytes) -> Delta:
    return msgspec.structs.replace(delta, base=base)


def test_a_step_that_leads_elsewhere_is_refused_and_the_model_stays(device: Device) -> None:
    device.part.opened(opened())
    device.part.missing()
    device.put(DELTA)
    device.part.opened(opened(2, model=Blob(digest=bytes(32), bytes=4 * DIMENSION), delta=STEP))
    with pytest.raises(RefusedError, match="does not lead to model"):
        device.part.missing()
    assert device.part.model_digest == content_digest(FIRST)


@pytest.mark.parametrize("count", [DIMENSION - 1, DIMENSION + 1])
def test_a_model_of_the_wrong_size_is_refused(device: Device, count: int) -> None:
    data = model.to_bytes(np.zeros(count, np.float32))
    device.put(data)
    device.part.opened(opened(model=Blob(digest=content_digest(data), bytes=4 * DIMENSION)))
    with pytest.raises(RefusedError, match="size"):
        device.part.missing()


def test_a_model_with_nonsense_in_it_is_refused(device: Device) -> None:
    data = model.to_bytes(np.full(DIMENSION, np.nan, np.float32))
    device.put(data)
    device.part.opened(opened(model=blob(data)))
    with pytest.raises(MalformedError, match="finite"):
        device.part.missing()


def test_a_bundle_for_another_models_size_is_refused(device: Device) -> None:
    device.part.opened(opened(model=Blob(digest=bytes(32), bytes=4 * DIMENSION + 4)))
    with pytest.raises(RefusedError, match="disagree about the model's size"):
        device.part.missing()
    assert device.trainers == 0


def test_a_model_that_jumps_is_refused_and_the_old_one_stays(device: Device) -> None:
    far = model.to_bytes(np.full(DIMENSION, 1e3, np.float32))
    device.put(far)
    device.part.opened(opened(model=blob(far)))
    with pytest.raises(RefusedError, match="the model moved by"):
        device.part.missing()
    assert device.part.model_digest == content_digest(FIRST)


def test_noise_moves_a_model_further_and_no_further_than_its_reach(device: Device) -> None:
    reach = RingScale.of(opened(noise=4.0).manifest).reach
    direction = np.ones(DIMENSION, np.float32) / np.float32(np.sqrt(DIMENSION))
    first = model.from_bytes(FIRST)
    assert reach > 2 * opened().manifest.clip  # so that a round without noise is refused what one with noise may do
    for times, noise, accepted in ((1.9, 0.0, False), (2.1, 4.0, False), (1.9, 4.0, True)):
        moved = model.to_bytes((first + np.float32(times * reach) * direction).astype(np.float32))
        device.put(moved)
        device.part.opened(opened(model=blob(moved), noise=noise))
        if accepted:
            device.part.missing()
            assert device.part.model_digest == content_digest(moved)
        else:
            with pytest.raises(RefusedError, match="the model moved by"):
                device.part.missing()
        device.part.give_up()


def test_an_exploded_loss_leaves_nothing_to_mask(device: Device) -> None:
    joined = Joined(device)
    joined.rig.joined()
    with pytest.raises(RefusedError, match="loss"):
        joined.part.trained(joined.round, replace(result(), loss=1e6))
    assert joined.part.mask() == []


def test_data_that_cannot_be_read_hold_the_device_back_until_they_can(device: Device) -> None:
    device.fail = ValueError("no data")
    device.part.opened(opened())
    with pytest.raises(ValueError, match="no data"):
        device.part.missing()
    device.part.give_up()
    assert device.part.missing() == []
    device.fail = None
    device.part.opened(opened(2))
    assert device.part.missing() == []


def test_older_rounds_are_ignored_and_newer_ones_replace(device: Device) -> None:
    device.part.opened(opened(2, 2))
    for old in (opened(2, 2, clip=1.0), opened(2, 1), opened(1, 9)):
        device.part.opened(old)
    rig = Rig(n=4, dimension=DIMENSION)
    grouping = rig.grouping
    ready = device.part.ready(grouping)
    assert ready is not None
    assert (ready.round, ready.attempt, ready.manifest.clip) == (2, 2, 5.0)
    device.part.opened(opened(2, 3))
    device.part.opened(opened(3, 1))
    ready = device.part.ready(grouping)
    assert ready is not None
    assert (ready.round, ready.attempt) == (3, 1)


def test_a_round_waits_for_a_grouping_of_its_epoch(device: Device) -> None:
    grouping = Rig(n=4).grouping
    device.part.opened(opened(epoch=2))
    assert device.part.ready(None) is None
    assert device.part.ready(grouping) is None
    assert device.part.ready(replace(grouping, epoch=2)) is not None


class Joined:
    """A device in a round of the rig, up to the stage that a test asks for."""

    def __init__(self, device: Device) -> None:
        self.device, self.part = device, device.part
        changes = {"bundle": blob(BUNDLE.encode()), "model": blob(FIRST)}
        self.rig = Rig(n=4, dimension=DIMENSION, manifest=make_manifest(DIMENSION, 10, **changes))
        self.part.opened(self.rig.opened)
        ready = self.part.ready(self.rig.grouping)
        assert ready is self.rig.opened
        self.round = self.rig.devices["pi-0"]
        self.part.joined(self.round)
        self.jobs: list[tuple[DeviceStage, bool]] = []
        self.masks: list[tuple[DeviceStage, int]] = []
        self.result: TrainResult | None = None
        self.rig.on_wire = self.watch

    def watch(self, way: str, name: str, kind: str, data: bytes) -> bytes:
        """Ask for a job and a mask whenever anything reaches anybody."""
        self.jobs.append((self.round.stage, self.part.job() is not None))
        if self.jobs[-1][1] and self.result is not None:
            self.part.trained(self.round, self.result)
        self.masks.append((self.round.stage, len(self.part.mask())))
        return data


def test_one_round_gives_one_job_once_shares_are_dealt(device: Device) -> None:
    joined = Joined(device)
    joined.rig.joined()
    assert joined.round.stage is DeviceStage.DEALT
    assert [stage for stage, given in joined.jobs if given] == [DeviceStage.SHARED]
    assert joined.part.job() is None


def test_there_is_no_job_before_its_stage_nor_without_a_round(device: Device) -> None:
    assert device.part.job() is None
    joined = Joined(device)
    assert joined.part.job() is None
    joined.round.join()
    assert joined.part.job() is None


def result() -> TrainResult:
    return TrainResult(np.ones(DIMENSION, np.float32), 1.0, 0.5, 8, 1)


def test_the_update_is_masked_once_both_are_there_whichever_comes_last(device: Device) -> None:
    joined = Joined(device)
    joined.rig.joined()
    assert joined.part.mask() == []  # D is known, the update is not there
    joined.part.trained(joined.round, result())
    effects = joined.part.mask()
    assert [getattr(effect, "kind", "mark") for effect in effects] == ["mark", topics.MASKED, topics.MASKED]
    assert joined.part.mask() == []


def test_an_update_that_is_there_first_waits_for_the_list(device: Device) -> None:
    joined = Joined(device)
    joined.result = result()
    joined.rig.joined()
    assert (DeviceStage.SHARED, 0) in joined.masks
    assert [mask for mask in joined.masks if mask[1]] == [(DeviceStage.DEALT, 3)]


def test_the_update_of_another_round_is_dropped(device: Device) -> None:
    joined = Joined(device)
    joined.rig.joined()
    joined.part.trained(joined.rig.devices["pi-1"], result())
    assert joined.part.mask() == []


def test_the_close_names_the_step_to_fetch(device: Device) -> None:
    close = Close(model=blob(SECOND), delta=STEP, groups_closed=1, groups_aborted=0, participants=4)
    assert device.part.close(close) == []  # this device has no model that the step could start from
    device.part.opened(opened())
    device.part.missing()
    assert device.part.close(close) == [STEP.blob]
    device.put(DELTA)
    assert device.part.close(close) == []
    assert device.part.closed == 3


def test_what_would_not_fit_into_memory_is_refused() -> None:
    """The profile's half goes to the system; what counts is the batch of the plan, each time."""
    device = Device(memory_mb=64, batch_size_max=65_536, model_bytes_max=1 << 20)
    device.disk |= {content_digest(data): data for data in (BUNDLE.encode(), FIRST)}
    device.part.opened(opened(plan=Plan(batch_size=65_536)))
    needed = BUNDLE.memory(65_536)
    assert needed < 32 << 20
    device.part.missing()
    large = build_bundle(mlp((64,), 10, (512,)), name="large")
    weights = model.to_bytes(np.asarray(large.weights))
    device.disk |= {content_digest(data): data for data in (large.encode(), weights)}
    changes: dict[str, Any] = {"bundle": blob(large.encode()), "model": blob(weights)}
    for round_, (batch, fits) in enumerate(((256, True), (65_536, False), (128, True)), start=2):
        device.part.opened(opened(round_, plan=Plan(batch_size=batch), **changes))
        if fits:
            device.part.missing()
            continue
        with pytest.raises(RefusedError, match="MiB with batches of 65536; profile pi-4 has 32 MiB"):
            device.part.missing()
