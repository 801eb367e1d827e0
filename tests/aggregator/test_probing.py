"""covey_aggregator.probing: a look at every attested round that is over, and what follows from it for the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from tests.aggregator.fleet import CLASSES, DIMENSION, FEATURES, Device, Fleet, Vector, tiny_bundle
from tests.aggregator.test_attesting import lying

from covey_aggregator.cli import cli
from covey_aggregator.probes import Gradients, Probes
from covey_aggregator.probing import Looked
from covey_aggregator.reputation import Parts, Reputation, Ruling
from covey_aggregator.task import Attestation
from covey_protocol import topics
from covey_protocol.policy import Policy
from covey_protocol.ring import clip_norm
from covey_protocol.roster import OpenRound
from covey_protocol.sketch import SketchMatrix

SKETCHES = Attestation(sketch=16)
HELD_OUT = 60
LOUD = 3.0


def held_out(samples: int = HELD_OUT) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(samples, FEATURES)).astype(np.float32)
    y = (x @ rng.normal(size=(FEATURES, CLASSES))).argmax(axis=1)
    return x, y.astype(np.int64)


class Pupil(Device):
    """A device that teaches what two labels' samples teach, rightly, and perhaps everything under another label."""

    fleet: Classroom
    wrong: int | None = None

    def update(self, opened: OpenRound) -> Vector:
        rng = np.random.default_rng([*self.name.encode(), opened.round, opened.attempt])
        mixture = np.zeros(3 * CLASSES)
        for label in range(CLASSES):
            mixture[[label, CLASSES + label]] = rng.uniform(0.3, 1.0, 2)
        if self.wrong is not None:
            mixture[2 * CLASSES + self.wrong] = 0.5 * mixture.sum()
        update = mixture @ self.fleet.directions(opened.manifest.model.digest)
        update += 0.2 * np.linalg.norm(update) / np.sqrt(DIMENSION) * rng.normal(size=DIMENSION)
        return (update / (4 * np.linalg.norm(update))).astype(np.float32)


class Classroom(Fleet):
    """A fleet of pupils, whose aggregator probes; a test may hold looks back."""

    hold_looks = False

    def __init__(self, folder: Path, devices: int, wrong: dict[str, int] | None = None, **options: Any) -> None:
        self._gradients = Gradients(tiny_bundle(), *held_out())
        self._directions: dict[bytes, NDArray[np.float32]] = {}
        self.held: list[Callable[[], Looked]] = []
        super().__init__(folder, devices, **options)
        for name, label in (wrong or {}).items():
            self.devices[name].wrong = label  # type: ignore[attr-defined]

    def make_device(self, name: str) -> Device:
        pupil = Pupil(name, self.operator, self.home)
        pupil.fleet = self
        return pupil

    def directions(self, digest: bytes) -> NDArray[np.float32]:
        if digest not in self._directions:
            self._directions[digest] = self._gradients(self.weights(digest))
        return self._directions[digest]

    def start(self, samples: int = HELD_OUT, **changes: Any) -> Any:
        x, y = held_out(samples)
        path = self.folder / "held-out.npz"
        np.savez(path, x=x, y=y)
        return super().start(**{"attestation": SKETCHES, "probes": True, "held_out": str(path), **changes})

    def _look(self, look: Callable[[], Looked]) -> None:
        if self.hold_looks:
            self.held.append(look)
        else:
            super()._look(look)

    def restart(self, *, kept: bool = True) -> None:
        self.held.clear()
        super().restart(kept=kept)

    @property
    def last(self) -> Looked:
        return self.coordinator.probing.last

    def looks(self, name: str) -> int:
        """Return how many looks a device's pull follows from."""
        devices = msgspec.msgpack.decode(self.last.state)["devices"]
        return int(devices[name]["rounds"]) if name in devices else 0

    def parts(self, name: str) -> dict[int, Parts]:
        """Return what each round said of a device."""
        return {line.round: line.parts for line in self.coordinator.chronicle.evidence.of(name)}

    def until_looked(self, round_: int) -> None:
        self.run_until(lambda: self.last.round >= round_)


Make = Callable[..., Classroom]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda devices=6, *more, **options: Classroom(tmp_path, devices, *more, **options)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Vector, dict[bytes, dict[str, Any]]]]:
    """The arguments of all looks."""
    found: list[tuple[Vector, dict[bytes, dict[str, Any]]]] = []
    real = Probes.look

    def noted(self: Probes, weights: Vector, rounds: Any) -> None:
        found.append((weights, rounds))
        real(self, weights, rounds)

    monkeypatch.setattr(Probes, "look", noted)
    return found


def test_every_settled_attested_round_is_looked_at_once(make: Make, seen: list[Any]) -> None:
    fleet = make(10)
    fleet.start(rounds=3, group_size=5)
    assert fleet.finish().status == "done"
    fleet.until_looked(3)
    assert len(seen) == 3
    for opened, (weights, rounds) in zip(fleet.opened, seen, strict=True):
        assert np.array_equal(weights, fleet.weights(opened.manifest.model.digest))
        ((seed, sketches),) = rounds.items()
        matrix = SketchMatrix(seed, DIMENSION, 16)
        assert sketches.keys() == fleet.devices.keys()
        for name, sketch in sketches.items():
            update, _ = clip_norm(fleet.devices[name].update(opened), opened.manifest.clip)
            assert sketch == pytest.approx(matrix.of_directions([update])[0], abs=0.02)
    assert {fleet.looks(name) for name in fleet.devices} == {3}
    assert fleet.last.names == sorted(fleet.devices)


def test_a_task_without_probes_or_a_round_without_sketches_is_not_looked_at(make: Make, seen: list[Any]) -> None:
    fleet = make()
    fleet.start(rounds=2, probes=False)
    fleet.finish()
    fleet.silent = set(list(fleet.devices)[2:])  # too few are left
    fleet.start(name="short", rounds=1, attempts=1)
    assert fleet.finish("short", 9000).status == "failed"
    assert seen == []
    assert not fleet.coordinator.probing.busy


def test_groups_without_a_sum_are_not_looked_at(make: Make, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make(12)
    lying(monkeypatch, "pi-3", own=True)
    fleet.start(rounds=1, group_size=6, reputation="observe")
    assert fleet.finish().status == "done"
    fleet.until_looked(1)
    (found,) = [detail.members for detail in fleet.records()[0].details if not detail.cause]
    assert fleet.last.names == sorted(found)


def test_what_is_found_counts_in_the_next_ruling_and_is_shown(make: Make) -> None:
    fleet = make()
    fleet.start(rounds=3, group_size=6)
    fleet.until_looked(1)
    probing = fleet.coordinator.probing
    probing.done(msgspec.structs.replace(probing.last, evidence={"pi-3": LOUD}))
    fleet.until_looked(2)
    assert fleet.last.evidence == {}  # so small a fleet shows nothing
    assert fleet.finish().status == "done"
    assert [fleet.parts("pi-3")[number].pulls for number in (1, 2, 3)] == [0, LOUD, 0]
    assert [fleet.parts("pi-2")[number].pulls for number in (1, 2, 3)] == [0, 0, 0]
    told = ["device", "show", "pi-3", "--home", str(fleet.home.path)]
    assert f"pulls +{LOUD:.2f}" in CliRunner().invoke(cli, [*told, "--history"]).output
    assert "pulls" in json.dumps(json.loads(CliRunner().invoke(cli, [*told, "--json"]).output))


def test_who_is_excused_is_excused_in_the_next_ruling(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, float]] = []
    real = Reputation.ruling

    def ruling(self: Reputation, sketches: Any, **more: Any) -> Ruling:
        heard.append(dict(more["excused"]))
        return real(self, sketches, **more)

    monkeypatch.setattr(Reputation, "ruling", ruling)
    fleet = make()
    fleet.start(rounds=2, group_size=6)
    fleet.until_looked(1)
    probing = fleet.coordinator.probing
    probing.done(msgspec.structs.replace(probing.last, excused={"pi-3": 1.0}))
    assert fleet.finish().status == "done"
    assert heard == [{}, {"pi-3": 1.0}]


def test_a_ruling_goes_by_the_same_evidence_after_a_restart(make: Make) -> None:
    fleet = make()
    fleet.start(rounds=2, group_size=6)
    fleet.until_looked(1)
    probing = fleet.coordinator.probing
    probing.done(msgspec.structs.replace(probing.last, evidence={"pi-3": LOUD}))
    fleet.coordinator.commit()
    fleet.run_until(lambda: fleet.coordinator.run is not None and bool(fleet.coordinator.run.attesting.findings))
    fleet.restart()
    assert fleet.finish().status == "done"
    assert fleet.parts("pi-3")[2].pulls == LOUD
    (detail,) = fleet.records()[1].details
    assert detail.rejected == ["pi-3"]


def test_a_decision_waits_for_the_look_at_the_round_before(make: Make) -> None:
    fleet = make()
    fleet.start(rounds=2, group_size=6)
    fleet.hold_looks = True
    fleet.run_until(lambda: bool(fleet.held))
    run = fleet.coordinator.run
    assert run is not None
    fleet.run_until(lambda: all(group.attested for group in run.groups.values()))
    for _ in range(30):
        fleet.now += 1.0
        fleet.carry(fleet.coordinator.tick(fleet.now))
    assert (run.opened.round, run.attesting.findings, fleet._jobs) == (2, {}, type(fleet._jobs)())
    fleet.hold_looks = False
    fleet._look(fleet.held.pop())
    assert fleet.finish().status == "done"
    fleet.until_looked(2)


def test_a_look_outlives_a_restart_and_counts_once(make: Make, seen: list[Any]) -> None:
    fleet = make()
    fleet.start(rounds=5, group_size=6)
    fleet.until_looked(2)
    before = fleet.last
    fleet.restart()
    assert fleet.last == before
    assert not fleet.coordinator.probing.busy
    assert fleet.finish().status == "done"
    fleet.until_looked(5)
    assert len(seen) == 5
    assert {fleet.looks(name) for name in fleet.devices} == {5}


def test_a_look_that_was_not_kept_is_lost_and_nothing_else(make: Make) -> None:
    fleet = make()
    fleet.start(rounds=3, group_size=6)
    fleet.until_looked(1)
    fleet.hold_looks = True
    fleet.run_until(lambda: bool(fleet.held))
    fleet.restart()
    fleet.hold_looks = False
    assert (fleet.last.round, fleet.looks("pi-1")) == (1, 1)
    assert fleet.finish().status == "done"
    fleet.until_looked(3)
    assert {fleet.looks(name) for name in fleet.devices} == {2}


def test_a_round_that_was_looked_at_is_not_looked_at_again(make: Make) -> None:
    fleet = make()
    fleet.start(rounds=1, group_size=6)
    fleet.run_until(lambda: fleet.coordinator.run is not None)
    run = fleet.coordinator.run
    assert run is not None
    fleet.finish()
    fleet.until_looked(1)
    probing = fleet.coordinator.probing
    probing.ask(run, fleet._gradients, tiny_bundle, fleet.devices)  # type: ignore[arg-type]
    assert probing.job() is None


def test_who_is_banned_forgotten_or_revoked_is_remembered_no_longer(make: Make) -> None:
    fleet = make(12)
    fleet.start(rounds=4, group_size=12)
    fleet.until_looked(1)
    reputations = fleet.coordinator._judgement.reputations
    book = reputations.book("pi-1")
    assert book is not None
    fleet.silent = {"pi-1", "pi-2", "pi-3", "pi-4"}
    book.quarantine("pi-4", "a test")
    book.ban("pi-1", "a proof")
    fleet.revoke("pi-3")
    fleet.until_looked(4)
    assert set(fleet.last.names) == fleet.devices.keys() - {"pi-1", "pi-3"}
    assert fleet.looks("pi-1") == fleet.looks("pi-3") == 0
    for name in ("pi-2", "pi-4"):  # who may come back is remembered
        assert 0 < fleet.looks(name) < fleet.looks("pi-5")
    book.forget("pi-2")
    assert "pi-2" not in reputations.known()


def test_another_task_begins_anew(make: Make) -> None:
    fleet = make()
    fleet.start(rounds=2, group_size=6)
    fleet.finish()
    fleet.until_looked(2)
    probing = fleet.coordinator.probing
    probing.done(msgspec.structs.replace(probing.last, evidence={"pi-3": LOUD}))
    fleet.start(name="other", rounds=2, group_size=6)
    assert fleet.finish("other").status == "done"
    fleet.run_until(lambda: (fleet.last.task, fleet.last.round) == ("other", 2))
    assert {fleet.looks(name) for name in fleet.devices} == {2}
    assert {parts.pulls for parts in fleet.parts("pi-3").values()} == {0}


def test_a_book_that_cannot_be_read_is_begun_anew(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    fleet = make()
    fleet.start(rounds=2, group_size=6)
    fleet.until_looked(1)
    probing = fleet.coordinator.probing
    probing.done(msgspec.structs.replace(probing.last, state=b"old"))
    assert fleet.finish().status == "done"
    fleet.until_looked(2)
    assert {fleet.looks(name) for name in fleet.devices} == {1}
    assert "what was known of the devices' pulls is lost" in caplog.text


def test_who_teaches_everything_under_one_label_is_found(make: Make) -> None:
    wrong = {f"pi-{number}": 2 for number in range(5)}
    fleet = make(24, wrong)
    fleet.start(rounds=12, group_size=8)
    fleet.run_until(lambda: bool(fleet.last.evidence) or fleet.row().status == "done")
    # Sketches are drawn anew in every run: now and then one of the nineteen others stands out with them.
    assert wrong.keys() <= fleet.last.evidence.keys() and len(fleet.last.evidence) <= len(wrong) + 1


def test_tasks_that_cannot_be_probed_are_refused(make: Make) -> None:
    fleet = make(policy=Policy(sketch_max=0))
    fleet.start(rounds=1, attestation=Attestation())
    row = fleet.finish()
    assert (row.status, row.reason) == ("failed", "probes look at sketches, and the policy or the model allows none")
    fleet.start(samples=9, name="scarce", rounds=1)
    row = fleet.finish("scarce")
    assert row.status == "failed"
    assert "probes need 6 held-out samples of every class" in row.reason
    assert topics.OPEN not in {publish.kind for publish in fleet.published if publish.data}
