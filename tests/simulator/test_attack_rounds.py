"""attacks/rounds.py: devices that break the protocol, through whole rounds, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.protocol.rig import Entropy, Rig, make_chain, make_manifest, make_trust, signing_key

from covey_agent.trainer import Trainer
from covey_protocol import topics
from covey_protocol.device_round import DeviceRound
from covey_protocol.errors import RefusedError
from covey_protocol.round_table import GroupStage
from covey_protocol.sketch import SketchMatrix
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks import malicious_devices, round_class
from covey_simulator.data import device_names, load_corpus, make_bundle, partition
from covey_simulator.engine.conductor import Step
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.scenario import parse_scenario

K, DIMENSION = 8, 50
LIAR, FRIEND = "pi-3", "pi-5"


class HostileRig(Rig):
    """A rig in which some members run an attacker's rounds."""

    hostile: frozenset[str] = frozenset({LIAR})
    attack: Attack = Attack()

    def make_device(self, name: str) -> DeviceRound:
        rounds = round_class(self.attack, self.hostile) if name in self.hostile else DeviceRound
        return rounds(
            name=name,
            key=signing_key(name),
            chain=make_chain(name),
            trust=make_trust(self.policy, self.ledgers[name].revocations),
            grouping=self.grouping,
            opened=self.opened,
            ledger=self.ledgers[name],
            entropy=Entropy(f"{self.seed} {name}"),
        )


def played(kind: Any, *, hostile: frozenset[str] = frozenset({LIAR}), sketch: int = K, **settings: Any) -> HostileRig:
    made = type("Rigged", (HostileRig,), {"attack": Attack(kind=kind, **settings), "hostile": hostile})
    rig: HostileRig = made(n=7, dimension=DIMENSION, manifest=make_manifest(DIMENSION, sketch=sketch))
    rig.run()
    for _ in range(4):
        if not rig.group.finished and rig.group.stage is not GroupStage.SUMMING:
            rig.late()
    return rig


def sums(rig: HostileRig) -> bool:
    total, _ = rig.group.unmask(rig.vector)
    return np.array_equal(total, rig.sum_of(rig.group.summed))


def shifts(rig: HostileRig) -> dict[str, Any]:
    """Return by how much each sketch is off, where it is off at all."""
    attestation = rig.group.attestation
    assert attestation is not None
    matrix = SketchMatrix(attestation.seed, DIMENSION, K)
    found = attestation.sketches(rig.vector)
    off = {name: sketch - matrix.of([rig.encoded[name][:DIMENSION]])[0] for name, sketch in found.items()}
    return {name: shift for name, shift in off.items() if shift.any()}


def test_a_lie_about_its_own_mask_is_proven_when_that_is_unmasked() -> None:
    rig = played("attestation-liar", manner="own")
    assert set(shifts(rig)) == {LIAR}
    with pytest.raises(RefusedError) as caught:
        rig.group.unmask(rig.vector)
    assert caught.value.cause == "false-sketch"
    assert set(rig.group.liars) == {LIAR}


def test_a_lie_about_a_pair_is_contradicted_and_proven() -> None:
    rig = played("attestation-liar", manner="pair")
    assert len(rig.group.summed) == 6
    if LIAR in rig.group.summed:
        with pytest.raises(RefusedError):
            rig.group.unmask(rig.vector)
    else:
        assert sums(rig)
    assert set(rig.group.liars) == {LIAR}


def test_what_one_of_two_colluders_gains_the_other_loses() -> None:
    rig = played("attestation-liar", manner="together", hostile=frozenset({LIAR, FRIEND}))
    off = shifts(rig)
    assert set(off) == {LIAR, FRIEND}
    assert not (off[LIAR] + off[FRIEND]).any()
    assert not rig.group.liars
    assert sums(rig)


def test_alone_there_is_nobody_to_collude_with() -> None:
    rig = played("attestation-liar", manner="together")
    assert not shifts(rig)
    assert sums(rig)


def test_a_garbled_share_is_complained_of_and_proven() -> None:
    rig = played("share-poisoner", manner="garbled")
    assert set(rig.group.complaints.blamed) == {LIAR}
    assert any(note.cause == "bad-share" for note in rig.notes)


def test_shares_of_another_secret_spoil_the_sum_and_name_the_dealer() -> None:
    rig = played("share-poisoner", manner="wrong-secret")
    with pytest.raises(RefusedError) as caught:
        rig.group.unmask(rig.vector)
    assert caught.value.culprits == (LIAR,)


def test_who_withholds_its_sketch_is_not_summed() -> None:
    rig = played("sketch-withholder")
    assert not [1 for way, name, kind, _ in rig.wire if (way, name, kind) == ("up", LIAR, topics.ATTEST)]
    assert set(rig.group.summed) == set(rig.names) - {LIAR}
    assert sums(rig)


def test_the_sum_does_without_the_shares_of_one_who_refuses() -> None:
    rig = played("unmask-refuser")
    assert not [1 for way, name, kind, _ in rig.wire if (way, name, kind) == ("up", LIAR, topics.UNMASK)]
    assert LIAR in rig.group.summed
    assert sums(rig)


@pytest.mark.parametrize("kind", ["attestation-liar", "share-poisoner", "sketch-withholder", "unmask-refuser"])
def test_they_behave_until_their_round(kind: Any) -> None:
    rig = played(kind, start_round=2)
    assert not rig.group.liars and not rig.group.complaints.blamed
    assert set(rig.group.summed) == set(rig.names)
    assert len({name for way, name, sent, _ in rig.wire if (way, sent) == ("up", topics.UNMASK)}) == 7
    assert sums(rig) and not shifts(rig)


@pytest.mark.parametrize(
    "attack",
    [
        {"kind": "sketch-withholder"},
        {"kind": "unmask-refuser"},
        {"kind": "share-poisoner", "manner": "wrong-secret"},
    ],
    ids=lambda attack: str(attack["kind"]),
)
def test_rehearsed_fleets_have_them_too(attack: dict[str, Any]) -> None:
    value = {
        "name": "hostile",
        "devices": 8,
        "rounds": 1,
        "samples_per_device": 10,
        "group_size": 8,
        "local": {"steps": 2},
        "transport": "direct",
        "attestation": {"sketch": K},
        "attack": {**attack, "fraction": 0.125},
    }
    scenario = parse_scenario(value, origin="test", folder=Path())
    corpus = load_corpus(scenario)
    trainer, slices = Trainer(make_bundle(scenario, corpus)), partition(corpus.train, scenario)
    steps: list[Step] = []
    rehearse(scenario, trainer, slices, corpus.held_out, on_step=steps.append)
    (hostile,) = (device_names(8)[index] for index in malicious_devices(scenario))
    (group,) = steps[0].outcome.groups.values()
    if attack["kind"] == "sketch-withholder":
        assert group.owing == {hostile} and set(group.summed) == set(device_names(8)) - {hostile}
    elif attack["kind"] == "unmask-refuser":
        assert hostile in group.summed and hostile not in group.finishers
    else:
        assert group.aborted and group.causers == {hostile}


def test_only_poisoners_of_updates_leave_out_the_clip() -> None:
    wild = np.full(4, 9.0, np.float32)

    class Opened:
        class manifest:  # noqa: N801 - stands for the attribute
            clip = 3.0

    for attack, clips in (
        (Attack(kind="sign-flip"), False),
        (Attack(kind="label-flip"), True),
        (Attack(kind="on-off", inner="label-flip"), True),
        (Attack(kind="unmask-refuser"), True),
        (Attack(kind="unmask-refuser", inner="sign-flip"), False),
    ):
        device: DeviceRound = object.__new__(round_class(attack, frozenset()))
        device.opened = Opened()  # type: ignore[assignment]
        update, factor, norm = device.clip(wild)
        assert norm == pytest.approx(18.0)
        assert (factor < 1) == clips
        assert clips or np.array_equal(update, np.full(4, 3.0, np.float32))
