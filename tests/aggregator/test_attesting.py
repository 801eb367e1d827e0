"""Rounds with attested sketches, coordinator and real devices: who is summed, what is remembered, what lies cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.aggregator.fleet import DIMENSION, Device, Fleet, Vector, make_task

from covey_aggregator.attesting import Finding
from covey_aggregator.coordinator import Phase
from covey_aggregator.reputation import State
from covey_aggregator.reputations import Reputations
from covey_aggregator.store import Store
from covey_aggregator.task import Attestation
from covey_protocol import topics
from covey_protocol.attest_stage import REPORT
from covey_protocol.device_attestation import DeviceAttestation
from covey_protocol.digest import content_digest
from covey_protocol.epochs import Grouping, shard_of
from covey_protocol.messages import Attestation as Attested
from covey_protocol.messages import Report, ReportHead
from covey_protocol.payload import write
from covey_protocol.policy import Policy
from covey_protocol.proofs import verify
from covey_protocol.ring import RingScale, clip_norm
from covey_protocol.roster import OpenRound
from covey_protocol.round_table import GroupStage
from covey_protocol.sealing import seal_anonymously
from covey_protocol.sketch import SketchMatrix

SKETCHES = Attestation(sketch=8)
COMMON = np.random.default_rng(5).normal(0, 0.3, DIMENSION).astype(np.float32)


class Alike(Device):
    """A device whose updates have something in common with everybody else's, times a factor."""

    factor = 1.0

    def update(self, opened: OpenRound) -> Vector:
        return (self.factor * (COMMON + 0.7 * super().update(opened))).astype(np.float32)


class Sketching(Fleet):
    """A fleet whose devices learn something."""

    def make_device(self, name: str) -> Device:
        return Alike(name, self.operator, self.home)

    def start(self, **changes: Any) -> Any:
        return super().start(**{"attestation": SKETCHES, **changes})

    def reject(self, *names: str) -> None:
        """Let the rule accept everybody but these, where a test is not about the rule."""

        def decide(finding: Finding, run: Any, task: Any) -> list[str]:
            return sorted(finding.sketches.keys() - set(names))

        self.coordinator._judgement.reputations.decide = decide  # type: ignore[method-assign]

    def state(self, name: str) -> State:
        book = self.coordinator._judgement.reputations.book(name)
        assert book is not None
        return book.standing(name).state


Make = Callable[..., Sketching]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda devices=10, **options: Sketching(tmp_path, devices, **options)


def is_plain(fleet: Sketching) -> None:
    """Every closed round's step is that of the clear updates of exactly those that it says it has summed."""
    before = fleet.weights(fleet.opened[0].manifest.model.digest)
    opened = {(o.round, o.attempt): o for o in fleet.opened}
    for record in fleet.records():
        after = fleet.weights(bytes.fromhex(record.model))
        if record.accepted:
            step, tolerance = fleet.plain_step(record, opened[record.round, record.attempt], fleet.row().task)
            assert np.abs(after - before - step).max() <= tolerance, record.round
        before = after


def test_a_round_with_sketches_sums_whom_the_rule_accepts(make: Make) -> None:
    fleet = make()
    fleet.reject("pi-3")
    fleet.start(rounds=3, group_size=5)
    assert fleet.finish().status == "done"
    for record in fleet.records():
        assert (record.sketch, record.attested) == (8, 10)
        rejected = [name for detail in record.details for name in detail.rejected]
        assert rejected == ["pi-3"]
        assert (record.accepted, record.rejected, record.dropped) == (9, 1, 0)
        assert all("pi-3" not in detail.published for detail in record.details)
    is_plain(fleet)
    assert {"attesting", "accepting"} < set(fleet.records()[0].stage_seconds)
    kinds = [send.kind for name, send in fleet.wire if name == "pi-1"]
    assert kinds.count(topics.ATTEST) == kinds.count(topics.ACCEPT) == 3
    assert fleet.devices["pi-1"].ledger.sketched() == 3 * 8


def test_all_groups_of_a_shard_sketch_under_one_seed_and_are_decided_on_together(make: Make) -> None:
    fleet = make(15)
    fleet.reject()
    fleet.start(rounds=1, group_size=5)
    fleet.hold_jobs = True
    fleet.run_until(lambda: bool(fleet._jobs))
    run = fleet.coordinator.run
    assert run is not None
    assert {group.stage for group in run.groups.values()} == {GroupStage.ATTESTING}
    assert len({group.attestation.seed for group in run.groups.values() if group.attestation}) == 1
    assert len(fleet._jobs) == 1
    fleet.hold_jobs = False
    assert fleet.finish().status == "done"
    assert fleet.records()[0].accepted == 15
    is_plain(fleet)


def test_the_sketches_are_those_of_the_updates_in_their_units(make: Make) -> None:
    fleet = make(5)
    fleet.start(rounds=1)
    seen: list[tuple[bytes, dict[str, Any]]] = []
    judgement = fleet.coordinator._judgement.reputations
    decide = judgement.decide

    def note(finding: Finding, run: Any, task: Any) -> list[str]:
        manifest = run.opened.manifest
        (seed,) = run.attesting.seeds.values()
        seen.append((seed, finding.in_reals(RingScale(manifest.clip, manifest.n_max))))
        return decide(finding, run, task)

    judgement.decide = note  # type: ignore[method-assign]
    fleet.finish()
    ((seed, sketches),) = seen
    (opened,) = fleet.opened
    scale, matrix = RingScale(1.0, opened.manifest.n_max), SketchMatrix(seed, DIMENSION, 8)
    for name, sketch in sketches.items():
        clear = clip_norm(fleet.devices[name].update(opened), 1.0)[0]
        units = np.round(clear / scale.step).astype(np.int16).view(np.uint16)
        exact = matrix.of([units])[0].view(np.int16) * scale.step
        np.testing.assert_allclose(sketch, exact, atol=DIMENSION / 8 * 2 * scale.step)


def test_a_group_that_ends_before_its_entry_keeps_the_others_waiting_no_longer(make: Make) -> None:
    fleet = make(10)
    fleet.reject()
    fleet.start(rounds=1, group_size=5)
    fleet.run_until(lambda: bool(fleet.opened))
    run = fleet.coordinator.run
    assert run is not None
    first = next(iter(run.groups.values()))
    for name, _ in first.grouping.members[:3]:
        fleet.silent_from[name] = topics.SURVIVORS
    assert fleet.finish().status == "done"
    (record,) = fleet.records()
    assert [detail.cause for detail in record.details] == ["too-few-signed", ""]
    assert record.accepted == 5
    assert record.details[0].published == []  # nobody was shown a set to be summed
    is_plain(fleet)


def test_the_lot_spares_groups_whose_members_are_all_trusted(make: Make) -> None:
    fleet = make(5)
    fleet.start(rounds=40, attestation=Attestation(sketch=8, lot=4), reputation="observe")
    fleet.run_until(lambda: len(fleet.records()) == 5)
    assert all(record.attested == 5 for record in fleet.records())  # on probation: watched, whatever the lot
    fleet.run_until(lambda: {fleet.state(name) for name in fleet.devices} == {State.TRUSTED})
    at = len(fleet.records()) + 1  # one may be open, and was announced before
    assert fleet.finish().status == "done"
    later = [record.attested for record in fleet.records()[at:]]
    assert set(later) == {0, 5}
    assert all(record.accepted == 5 for record in fleet.records())


def test_observe_scores_and_leaves_everybody_in(make: Make) -> None:
    fleet = make()
    fleet.devices["pi-3"].factor = -8.0  # type: ignore[attr-defined]
    fleet.start(rounds=12, group_size=5, reputation="observe")
    assert fleet.finish().status == "done"
    assert {(record.accepted, record.rejected) for record in fleet.records()} == {(10, 0)}
    assert fleet.state("pi-3") in (State.SUSPECT, State.QUARANTINED)
    assert {opened.manifest.clip for opened in fleet.opened} == {1.0}


def test_a_quarantined_device_is_never_summed_and_the_next_epoch_goes_without_it(make: Make) -> None:
    fleet = make(12)
    fleet.devices["pi-3"].factor = -1.0  # type: ignore[attr-defined]
    fleet.start(rounds=16, group_size=6, epoch_rounds=12)
    fleet.run_until(lambda: fleet.opened != [] and fleet.state("pi-3") is State.QUARANTINED)
    at = len(fleet.records())
    assert fleet.finish().status == "done"
    for record in fleet.records()[at:]:
        assert all("pi-3" not in detail.survivors for detail in record.details)
    assert any(note.cause == "reputation" and "pi-3 is in quarantine" in note.text for note in fleet.notes)
    assert all("pi-3" not in detail.members for detail in fleet.records()[-1].details)
    assert sum(len(detail.members) for detail in fleet.records()[-1].details) == 11


def test_the_clip_follows_the_norms_that_were_accepted(make: Make) -> None:
    fleet = make(8)
    for device in fleet.devices.values():
        device.factor = 0.1  # type: ignore[attr-defined]
    fleet.start(rounds=5, group_size=8)
    assert fleet.finish().status == "done"
    clips = [opened.manifest.clip for opened in fleet.opened]
    assert clips[:3] == [1.0, 0.5, pytest.approx(0.5 if clips[2] == 0.5 else clips[2])]
    norm = float(np.median([np.linalg.norm(device.update(fleet.opened[-1])) for device in fleet.devices.values()]))
    assert clips[-1] == pytest.approx(2 * norm, rel=0.35)  # a sketch of 8 numbers tells a norm to a quarter
    assert [record.clip for record in fleet.records()] == clips
    is_plain(fleet)


def test_sketches_that_could_wrap_or_that_the_policy_forbids_are_refused(make: Make) -> None:
    fleet = make(5, policy=Policy(sketch_max=8))
    fleet.start(rounds=1, attestation=Attestation(sketch=16))
    row = fleet.finish()
    assert (row.status, "sketch_max is 8" in row.reason) == ("failed", True)
    fleet.start(name="auto", rounds=1, attestation=Attestation())
    assert fleet.finish("auto").status == "done"
    assert fleet.records("auto")[0].sketch == 8


def test_where_the_policy_forbids_sketches_there_are_none(make: Make) -> None:
    fleet = make(5, policy=Policy(sketch_max=0))
    fleet.start(rounds=1, attestation=Attestation())
    assert fleet.finish().status == "done"
    assert (fleet.records()[0].sketch, fleet.records()[0].attested) == (0, 0)


def test_a_device_whose_budget_is_spent_stays_out_of_rounds_with_sketches(make: Make) -> None:
    fleet = make(6, policy=Policy(sketch_budget=16))
    fleet.start(rounds=3, group_size=6, attempts=1, reputation="observe")
    assert fleet.finish().status == "failed"
    assert [record.accepted for record in fleet.records()] == [6, 6, 0]
    assert {error.cause for who, error in fleet.refused if who != "aggregator"} == {"sketch-budget"}


# --- lies ---------------------------------------------------------------------------------------------------------


def lying(patch: pytest.MonkeyPatch, liar: str, *, own: bool) -> None:
    """Let a device report a false sketch, of its own mask or of the one with its first peer."""
    real = DeviceAttestation.report

    def report(self: DeviceAttestation, *arguments: Any) -> Attested:
        made = real(self, *arguments)
        if self.name != liar:
            return made
        seed, own_seed, pair_seeds, sign, ephemeral = arguments
        manifest = self.opened.manifest
        sketches = SketchMatrix(seed, DIMENSION, manifest.sketch).of_masks([own_seed, *pair_seeds.values()])
        sketches[0 if own else 1] += 1
        mine, *others = (sketch.tobytes() for sketch in sketches)
        body = write(Report(own=mine, pairs=list(zip(pair_seeds, others, strict=True))))
        head = sign(REPORT, ReportHead(seed=seed, report=content_digest(body)))
        return Attested(head=head, sealed=seal_anonymously(body, manifest.sealing_key, ephemeral))

    patch.setattr(DeviceAttestation, "report", report)


@pytest.mark.parametrize("own", [True, False])
def test_a_liar_is_proven_and_banned_and_the_proof_holds_for_others(
    make: Make, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    fleet = make(12)
    with monkeypatch.context() as patch:
        lying(patch, "pi-3", own=own)
        fleet.start(rounds=2, group_size=6)
        assert fleet.finish().status == "done"
    (kept,) = fleet.store.kept_proofs()
    proven = verify(kept.proof, operator_key=fleet.operator.public_key, fleet=fleet.home.fleet)
    assert (proven.device, proven.task, proven.round) == ("pi-3", "digits", 1)
    assert proven.key == bytes(fleet.devices["pi-3"].key.verify_key)
    assert proven.lie == ("self-mask" if own else "pair-mask")
    assert fleet.state("pi-3") is State.BANNED
    assert [note.text for note in fleet.notes if note.cause == "banned"]
    assert all("pi-3" not in detail.members for detail in fleet.records()[-1].details)
    if own:  # the group was lied about, and dropped
        assert sorted(detail.cause for detail in fleet.records()[0].details) == ["", "bad-sum"]
    is_plain(fleet)


def test_a_ban_outlives_restarts_and_a_second_name(make: Make) -> None:
    fleet = make(8)
    fleet.start(rounds=1, group_size=8)
    fleet.finish()
    fleet.store.put_proof("pi-2", "reported a false sketch of its self-mask", b"proof")
    fleet.store.commit()
    fleet.start(name="again", rounds=2, group_size=8)
    assert fleet.finish("again").status == "done"
    assert fleet.state("pi-2") is State.BANNED
    fleet.restart()
    assert fleet.state("pi-2") is State.BANNED
    assert all("pi-2" not in detail.members for detail in fleet.records("again")[-1].details)


# --- books --------------------------------------------------------------------------------------------------------


def book_of(fleet: Sketching) -> Any:
    book = fleet.coordinator._judgement.reputations.book("pi-1")
    assert book is not None
    return book


def test_the_sketches_of_a_group_that_was_lied_about_count_for_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make(12)
    fleet.reject()
    lying(monkeypatch, "pi-3", own=True)
    fleet.start(rounds=1, group_size=6, reputation="observe")
    assert fleet.finish().status == "done"
    details = {detail.cause: detail.members for detail in fleet.records()[0].details}
    ages = {name: book_of(fleet)._records[name].age for name in fleet.devices}
    assert {ages[name] for name in details[""]} == {1}
    assert {ages[name] for name in details["bad-sum"]} == {0}


def test_who_keeps_its_report_back_is_noted_and_not_summed(make: Make) -> None:
    fleet = make(6)
    fleet.silent_from["pi-2"] = topics.ATTEST
    fleet.start(rounds=1, group_size=6, reputation="observe")
    assert fleet.finish().status == "done"
    (detail,) = fleet.records()[0].details
    assert detail.rejected == ["pi-2"]
    parts = {name: book_of(fleet).standing(name).parts.refusals for name in fleet.devices}
    assert parts.pop("pi-2") > 0
    assert set(parts.values()) == {0}


def test_newcomers_to_an_established_fleet_have_groups_of_their_own(make: Make) -> None:
    fleet = make(8)
    fleet.start(rounds=14, group_size=4, reputation="observe")
    fleet.run_until(lambda: fleet.opened != [] and book_of(fleet).established)
    fleet.arrive(*(f"new-{number}" for number in range(5)))
    fleet.run_until(lambda: any("new-0" in detail.members for r in fleet.records() for detail in r.details))
    groups = [set(detail.members) for detail in fleet.records()[-1].details]
    fresh = {f"new-{number}" for number in range(5)}
    assert fresh in groups
    run = fleet.coordinator.run
    assert run is not None
    assert {name for name, group in run.groups.items() if "new-0" in dict(group.grouping.members)} <= set(
        fleet.coordinator._judgement.reputations.watched(fleet.coordinator._groupings)
    )


def test_what_the_accepted_make_likely_reaches_the_rule_across_groups(make: Make) -> None:
    fleet = make(10)
    fleet.start(rounds=1, group_size=5, contamination=0.02, reputation="observe")
    fleet.hold_jobs = False
    fleet.run_until(lambda: fleet.coordinator.phase is Phase.COMBINING)
    reputations = fleet.coordinator._judgement.reputations
    ((finding, ruling),) = reputations._rulings.values()
    reputations._rulings[finding.shard] = finding, replace(ruling, contamination=0.2)
    assert fleet.coordinator.combine_inputs().keywords["contamination"] == 0.2  # type: ignore[attr-defined]
    reputations._rulings[finding.shard] = finding, replace(ruling, contamination=0.01)
    assert fleet.coordinator.combine_inputs().keywords["contamination"] == 0.02  # type: ignore[attr-defined]


def test_groups_of_newcomers_count_little_where_reputation_is_enforced(make: Make) -> None:
    fleet = make(8)
    fleet.start(rounds=14, group_size=4, reputation="observe")
    fleet.run_until(lambda: fleet.opened != [] and book_of(fleet).established)
    fleet.arrive(*(f"new-{number}" for number in range(5)))
    fleet.run_until(lambda: any("new-0" in detail.members for r in fleet.records() for detail in r.details))
    fleet.hold_jobs = False
    fleet.run_until(lambda: fleet.coordinator.phase is Phase.COMBINING)
    running, run = fleet.coordinator._busy()
    assert fleet.coordinator.combine_inputs().keywords["influence"] is None  # type: ignore[attr-defined]
    running.task = msgspec.structs.replace(running.task, reputation="enforce")
    found = fleet.coordinator.combine_inputs().keywords["influence"]  # type: ignore[attr-defined]
    assert found == {name: 0.1 if "new-0" in group.summed else 1.0 for name, group in run.groups.items()}
    assert sorted(found.values()) == [0.1, 1.0, 1.0]


def grouping(shard: str, *names: str) -> Grouping:
    return Grouping(1, f"1-{shard}-0", tuple((name, name.encode().ljust(32)) for name in names))


def test_the_quarantined_stay_on_a_roster_while_their_group_can_afford_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "aggregator.db")
    books, names = Reputations(store), [f"pi-{number}" for number in range(10)]
    group, task = grouping("s", *names), make_task(tmp_path)
    books.admit([group], {name: (key, key) for name, key in group.members})
    book = books.book("pi-0")
    assert book is not None
    for number, (bad, excluded) in enumerate([(2, []), (3, ["pi-0", "pi-1", "pi-2"])]):
        for name in names[:bad]:
            book.quarantine(name, "a test")
        assert books.excluded([group], task) == excluded, number
    assert books.excluded([group], make_task(tmp_path, reputation="observe")) == []
    book.release("pi-1", "a test")
    book.release("pi-2", "a test")
    book.ban("pi-0", "a proof")
    assert books.excluded([group], task) == ["pi-0"]  # never, whatever the group can afford
    store.close()


def test_whom_the_operator_has_revoked_is_in_no_book_once_groups_are_drawn_without_it(tmp_path: Path) -> None:
    """Or the trust of devices that are gone would keep those who replace them from ever being measured."""
    store = Store(tmp_path / "aggregator.db")
    books, group = Reputations(store), grouping("s", *(f"pi-{number}" for number in range(5)))
    identities = {name: (key, key) for name, key in group.members}
    books.admit([group], identities)
    book = books.book("pi-2")
    assert book is not None
    book.quarantine("pi-2", "a test")
    for name in ("pi-1", "pi-2", "pi-3"):
        store.note_revoked(identities[name][1], name, "stolen")
    books.admit([grouping("s", "pi-0", "pi-1", "pi-5")], identities)
    assert book.names() == ["pi-0", "pi-1", "pi-2", "pi-4"], "pi-1 is still in a group, and who is out stays out"
    store.close()


def test_a_fleet_that_is_cut_anew_washes_nobody(tmp_path: Path) -> None:
    store = Store(tmp_path / "aggregator.db")
    books = Reputations(store)

    def draw(*groups: Grouping) -> None:
        books.admit(groups, {name: (key, key) for group in groups for name, key in group.members})

    halves: list[list[str]] = [[], []]
    for number in range(8):
        halves[shard_of(f"pi-{number}", 1)].append(f"pi-{number}")
    (a, a2, *_), (b, *_) = halves
    draw(grouping("s", *halves[0], *halves[1]))
    for name in (a, a2):
        books.book(name).quarantine(name, "a test")  # type: ignore[union-attr]
    books.book(b).ban(b, "a proof")  # type: ignore[union-attr]
    draw(grouping("s0", *halves[0]), grouping("s1", *halves[1]))
    assert books.out() == {a, a2, b}
    books.book(a2).release(a2, "a test")  # type: ignore[union-attr]
    assert books.out() == {a, b}  # what the other half's book says of it is old
    books.keep()
    books = Reputations(store)
    assert books.out() == {a, b}
    draw(grouping("s", *halves[0], *halves[1]))
    assert books.out() == {a, b}
    assert books.banned() == {b}
    store.close()
