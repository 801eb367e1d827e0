"""Pulls: who teaches one label to everything is found, whoever holds few labels is not."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.aggregator.probes.classroom import CLASSES, Classroom

from covey_aggregator.probes import Probes
from covey_protocol.errors import StateError
from covey_protocol.sketch import SketchMatrix

WRONG = dict.fromkeys(range(8), 3)


@pytest.fixture(scope="module")
def attacked() -> tuple[Classroom, Probes]:
    room = Classroom(wrong=WRONG)
    probes = room.probes()
    room.attend(probes, 16)
    return room, probes


def test_who_teaches_one_label_to_everything_is_found_and_nobody_else(attacked: tuple[Classroom, Probes]) -> None:
    room, probes = attacked
    assert list(probes.alarms()) == [3]
    assert set(probes.evidence()) == {room.names[number] for number in WRONG}
    assert all(0 < weight <= probes.settings.most for weight in probes.evidence().values())
    assert min(probes.pulls()[room.names[number]][3] for number in WRONG) > 0.1


def test_devices_with_a_single_label_each_pull_nowhere() -> None:
    room = Classroom(labels=1)
    probes = room.probes()
    room.attend(probes, 16)
    assert probes.evidence() == {}


def test_an_alarm_is_raised_when_it_has_held_three_times_and_ends_late() -> None:
    room = Classroom(wrong=WRONG)
    probes = room.probes(calm=0.0, looks=3)
    at_once = room.probes(looks=1)
    first: dict[str, int] = {}
    for number in range(12):
        seed = room.rng.bytes(32)
        sketches = room.sketches(seed)
        for name, book in (("three", probes), ("one", at_once)):
            book.look(room.weights, {seed: sketches})
            if book.alarms():
                first.setdefault(name, number)
    assert first["three"] >= first["one"] + 2
    room.attend(probes, 60, share=0.0)
    assert list(probes.alarms()) == [3]  # with calm at nothing it never ends
    assert probes.evidence() == {}  # yet nobody pulls any more


def test_a_class_that_many_resemble_is_no_alarm() -> None:
    room = Classroom(wrong=WRONG)
    probes = room.probes(slope_from=0.001, slope=0.5)  # as if everybody pulled nearly notably
    room.attend(probes, 16)
    assert probes.alarms() == {}


def test_who_teaches_nothing_but_its_own_labels_is_excused() -> None:
    room = Classroom(devices=20, labels=1, wrong=WRONG, noise=0.1)
    probes = room.probes()
    for _ in range(6):
        seed = room.rng.bytes(32)
        sketches = room.sketches(seed, share=2.0)
        sketches |= {name: -sketches[name] for name in ("d-10", "d-11")}
        probes.look(room.weights, {seed: sketches})
    # Who teaches others' samples one label beside them is not, nor who turns round what they teach.
    assert set(probes.excused()) == {room.names[number] for number in range(20) if number not in {*WRONG, 10, 11}}
    assert all(0.5 < share <= 1 for share in probes.excused().values())


def test_one_look_excuses_nobody() -> None:
    room = Classroom(labels=1)
    probes = room.probes(excuse_from=0.3)
    assert probes.explained() == probes.excused() == {}
    room.attend(probes, 1)
    assert probes.excused() == {}
    room.attend(probes, 1)
    assert set(probes.excused()) == set(room.names)


def test_a_crowd_of_one_label_is_not_excused() -> None:
    room = Classroom(labels=1, noise=0.1)
    for label in (0, 1, 2):
        room.labels[10 + label] = [3]  # one label less each, and three devices more for another
    probes = room.probes()
    room.attend(probes, 3)
    excused = {label for number, [label] in enumerate(room.labels) if room.names[number] in probes.excused()}
    assert excused == set(range(CLASSES)) - {3}


def test_fewer_than_the_alarm_asks_for_are_an_oddity() -> None:
    room = Classroom(wrong={0: 3, 1: 3})
    probes = room.probes()
    room.attend(probes, 16)
    assert sum(strength[3] > probes.settings.notable for strength in probes.strengths().values()) == 2
    assert probes.alarms() == {}
    assert probes.evidence() == {}


def test_rounds_in_which_next_to_nothing_is_learnt_count_for_nothing(attacked: tuple[Classroom, Probes]) -> None:
    room, before = attacked
    probes = Probes(room.gradients, state=before.encode())
    room.attend(probes, 1, scale=0.1)
    assert probes.alarms()
    assert probes.evidence() == {}
    # And they say little about who taught what: honest ones, in which the same devices behave, do not wash it off.
    room.attend(probes, 5, scale=0.1, share=0.0)
    assert list(probes.alarms()) == [3]


def test_old_rounds_fade() -> None:
    room = Classroom(wrong=WRONG)
    probes = room.probes(memory=0.8)
    room.attend(probes, 16)
    assert probes.evidence()
    room.attend(probes, 20, share=0.0)
    assert probes.evidence() == {}


def test_newcomers_are_not_looked_at_before_they_are_known() -> None:
    room = Classroom(wrong=WRONG)
    probes = room.probes()
    room.attend(probes, probes.settings.age - 1)
    assert probes.pulls() == probes.evidence() == {}
    room.attend(probes, 1)
    assert len(probes.pulls()) == len(room.names)


def test_a_handful_of_devices_says_nothing_about_one_another() -> None:
    room = Classroom(devices=19, wrong=WRONG)
    probes = room.probes()
    room.attend(probes, 16)
    assert probes.alarms() == {}


def test_an_absent_device_stays_as_it_was(attacked: tuple[Classroom, Probes]) -> None:
    room, before = attacked
    probes = Probes(room.gradients, state=before.encode())
    seed = bytes(32)
    probes.look(room.weights, {seed: room.sketches(seed, absent=[5])})
    was, now = before.pulls(), probes.pulls()
    np.testing.assert_allclose(now["d-05"], was["d-05"], atol=1e-3)
    assert np.abs(now["d-06"] - was["d-06"]).max() > 1e-3


def test_shards_have_matrices_of_their_own() -> None:
    room = Classroom(wrong=WRONG)
    probes = room.probes()
    for _ in range(16):
        rounds = {}
        for half in range(2):
            seed = room.rng.bytes(32)
            absent = [number for number in range(40) if number % 2 == half]
            rounds[seed] = room.sketches(seed, absent=absent)
        probes.look(room.weights, rounds)
    assert set(probes.evidence()) == {room.names[number] for number in WRONG}


def test_who_sends_nothing_is_passed_over() -> None:
    room = Classroom()
    probes = room.probes()
    probes.look(room.weights, {})
    seed = bytes(32)
    sketches = room.sketches(seed) | {"d-00": np.zeros(16)}
    for _ in range(4):
        probes.look(room.weights, {seed: sketches})
    assert "d-00" not in probes.pulls()
    assert np.isfinite(list(probes.pulls().values())).all()


def test_the_book_survives_a_restart_and_refuses_what_it_cannot_read(attacked: tuple[Classroom, Probes]) -> None:
    room, probes = attacked
    state = probes.encode()
    again = Probes(room.gradients, state=state)
    assert again.evidence() == pytest.approx(probes.evidence(), abs=1e-3)
    assert again.explained() == pytest.approx(probes.explained(), abs=1e-3)
    assert again.encode() == state
    with pytest.raises(StateError, match="cannot be read"):
        Probes(room.gradients, state=state[:-1])
    kept = msgspec.msgpack.decode(state)
    with pytest.raises(StateError, match="version 9"):
        Probes(room.gradients, state=msgspec.msgpack.encode(kept | {"version": 9}))
    kept["devices"]["d-01"]["products"] = b"1234"
    with pytest.raises(StateError, match="incomplete"):
        Probes(room.gradients, state=msgspec.msgpack.encode(kept))


def test_a_device_is_forgotten(attacked: tuple[Classroom, Probes]) -> None:
    room, before = attacked
    probes = Probes(room.gradients, state=before.encode())
    probes.forget("d-01")
    probes.forget("nobody")
    assert "d-01" not in probes.pulls()
    assert "d-01" not in probes.explained()
    assert len(probes.explained()) == len(room.names) - 1
    kept = {name: pulls for name, pulls in before.pulls().items() if name != "d-01"}
    for name, pulls in probes.pulls().items():
        np.testing.assert_allclose(pulls, kept[name], atol=1e-5)


def test_pulls_are_what_the_updates_were_made_of() -> None:
    """Without noise, and with as many numbers as it takes, the fit is the truth."""
    room = Classroom(wrong={0: 3})
    probes = room.probes()
    mixture = np.zeros(3 * CLASSES)
    mixture[[0, 10, 23]] = 0.5, 0.2, 0.3
    for _ in range(8):
        seed = room.rng.bytes(32)
        matrix = SketchMatrix(seed, room.bundle.dimension, 64)
        other = room.update(1, 0)
        ours = (mixture @ room.directions).astype(np.float32)
        rows = matrix.of_directions([ours, other, -other])
        probes.look(room.weights, {seed: dict(zip("abc", rows, strict=True))})
    assert probes.pulls()["a"][3] == pytest.approx(0.3, abs=0.03)
