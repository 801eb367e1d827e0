"""judge.py and hearing.py: who is summed, and what a round may and may not say."""

from __future__ import annotations

import numpy as np
import pytest
from tests.aggregator.reputation.world import Sketch, World, copied, flipped, huge, noise, nothing

from covey_aggregator.reputation import Settings, State


def established(devices: int = 30, **options: object) -> World:
    world = World(devices, **options)  # type: ignore[arg-type]
    world.play(8)
    assert world.book.established
    return world


def test_the_first_rounds_are_no_evidence() -> None:
    world = World(20, hostile={0: flipped})
    for _ in range(2):
        world.play()
        assert world.book.standing("d-000").evidence == 0
    world.play(2)
    assert world.book.standing("d-000").evidence > 0


@pytest.mark.parametrize("attack", [flipped, nothing])
def test_a_bad_update_of_a_trusted_device_is_not_summed(attack: object) -> None:
    """Its record is spotless, so only the look at this one update keeps it out."""
    world = established(strength=2.0)
    sketches = world.sketches()
    sketches["d-005"] = attack(sketches["d-005"], sketches["d-006"], world.rng)  # type: ignore[operator]
    ruling = world.book.ruling(sketches)
    assert ruling.verdicts["d-005"].after is State.TRUSTED
    assert ruling.accepted == set(world.names) - {"d-005"}


def test_absurd_updates_are_not_summed_even_before_evidence_counts() -> None:
    world = World(20, hostile={0: huge, 1: nothing})
    assert not set(world.attacks) & world.play().accepted


def test_who_turns_against_its_fellows_is_not_summed_when_the_fleet_agrees_on_nothing() -> None:
    """Two halves pull against one another, so there is no centre and the gate is shut; the halves know their own."""
    world = World(40)
    half = set(world.names[:20])

    def sketches() -> dict[str, Sketch]:
        return {name: s if name in half else s - 2 * common for name, s in apart(world).items()}

    common = np.zeros(world.k)

    def apart(world: World) -> dict[str, Sketch]:
        nonlocal common
        common = world.rng.normal(size=world.k)
        common *= 2 / np.linalg.norm(common)
        return {name: common + world.rng.normal(size=world.k) / np.sqrt(world.k) for name in world.names}

    for _ in range(10):
        world.book.settle(world.book.ruling(sketches()))
    assert world.states(world.names) <= {State.TRUSTED, State.PROBATION}
    found = sketches()
    found["d-005"] = -found["d-005"]
    ruling = world.book.ruling(found)
    assert ruling.gate == 0
    assert ruling.accepted == set(world.names) - {"d-005"}


def test_newcomers_to_a_fleet_are_watched_first_and_founders_are_not() -> None:
    world = World(40)
    late = world.names[30:]
    for _ in range(8):
        world.play(absent=late)
    new = world.join(3)
    for _ in range(world.book.settings.sit_out):
        ruling = world.play()
        assert set(late) <= ruling.accepted and not set(new) & ruling.accepted
    assert set(new) <= world.play().accepted


def test_newcomers_among_themselves_earn_nothing() -> None:
    """A wave of Sybils attests alone, in a round in which the trusted groups have not drawn the lot."""
    world = established()
    wave = world.join(30, copied)
    before = world.book.encode()
    for _ in range(20):
        ruling = world.play(absent=world.names[:30])
        assert ruling.accepted == set() and not ruling.established
    assert world.book.encode() == before
    world.play(8)
    assert world.states(wave) == {State.QUARANTINED} and world.states(world.names[:30]) == {State.TRUSTED}


@pytest.mark.parametrize(("devices", "replaced"), [(5, 1), (5, 2), (6, 3), (8, 4)])
def test_who_replaces_devices_of_a_small_fleet_earns_its_trust(devices: int, replaced: int) -> None:
    world = World(devices)
    world.play(8)
    gone, new = world.names[-replaced:], world.join(replaced)
    for _ in range(world.book.settings.sit_out):
        ruling = world.play(absent=gone)
        assert ruling.accepted == set(world.names) - {*gone, *new}
    ruling = world.play(4, absent=gone)
    assert set(new) <= ruling.accepted and world.states(new) == {State.TRUSTED}


def test_one_of_four_can_be_replaced() -> None:
    """Four sketches say nothing, so the newcomer is summed at once: without it there would be no sum at all."""
    world = World(5)
    world.play(8)
    gone, new = world.names[-2:], world.join(1)
    assert world.play(absent=gone).accepted == {*world.names[:3], *new}


def test_a_fleet_whose_trusted_devices_were_revoked_begins_anew() -> None:
    """More than half of it is replaced at once; as long as the old may come back, nobody can measure the new."""
    world = World(8)
    world.play(8)
    gone, new = world.names[3:8], world.join(5)
    world.book.quarantine(gone[0], "it was stolen")
    assert not set(new) & world.play(6, absent=gone).accepted
    world.book.dismiss([f"token of {name}" for name in (*gone, world.names[0])], but=[world.names[0]])
    assert world.book.names() == sorted({*world.names[:3], gone[0], *new})
    assert set(new) <= world.play(8, absent=gone).accepted
    assert world.states(new) == {State.TRUSTED}


def test_founders_whom_nobody_there_can_measure_are_summed_unmeasured() -> None:
    world = World(40)
    late = world.names[30:]
    for _ in range(8):
        world.play(absent=late)
    before = world.book.encode()
    assert world.play(absent=world.names[:30]).accepted == set(late)
    assert world.book.rounds == 8 and len(world.book.encode()) == len(before)


def test_a_wave_cannot_outvote_the_fleet() -> None:
    world = established(20)
    wave = world.join(200, flipped)
    for _ in range(10):
        ruling = world.play()
        assert not set(wave) & ruling.accepted
    assert world.states(world.names[:20]) == {State.TRUSTED}


def test_few_devices_say_nothing_about_one_another() -> None:
    world = World(4)
    for _ in range(10):
        ruling = world.play()
        assert ruling.accepted == set(world.names) and ruling.gate == 0
    assert world.book.rounds == 0
    world.book.quarantine("d-000", "it was stolen")
    assert world.play().accepted == set(world.names[1:])


def test_absence_is_no_evidence_and_ages_nobody() -> None:
    world = World(30)
    world.play(4)
    for _ in range(6):
        world.play(absent=["d-000"])
    assert world.book.standing("d-000").state is State.PROBATION
    world.play()
    assert world.book.standing("d-000").state is State.TRUSTED


def test_a_fleet_of_which_few_take_part_is_judged_all_the_same() -> None:
    world = World(100, hostile=dict.fromkeys(range(20), flipped), strength=1.5)
    for _ in range(40):
        absent = [name for name in world.names if world.rng.random() < 0.7]
        world.play(absent=absent)
    assert len(world.book.names(State.QUARANTINED)) >= 18
    assert world.states(world.honest) <= {State.TRUSTED, State.PROBATION}


def test_the_quarantined_are_scored_and_never_summed() -> None:
    world = World(30, hostile=dict.fromkeys(range(5), flipped))
    world.play(10)
    ruling = world.book.ruling(world.sketches())
    assert set(ruling.verdicts) == set(world.names) and ruling.accepted == set(world.honest)


def test_disputes_count_and_keep_out() -> None:
    world = established()
    for count in range(1, 5):
        ruling = world.book.settle(world.book.ruling(world.sketches(), enforce=False, disputed=["d-003"]))
        assert "d-003" not in ruling.accepted
        assert ruling.verdicts["d-003"].parts.disputes == 1.5
        assert ruling.verdicts["d-003"].evidence == 1.5 * count
    assert world.book.standing("d-003").state is State.QUARANTINED


def test_a_refuser_is_expelled_and_a_flaky_link_is_not() -> None:
    world = established()
    world.book.forget("d-020")
    for number in range(40):
        sketches = world.sketches()
        silent = [name for name in ("d-003", "d-004") if number % 2 or name == "d-003"]
        world.book.heard([n for n in world.names if n != "d-004"], [])
        world.book.heard(*([["d-004"], []] if number % 3 else [[], ["d-004"]]))
        sketches = {n: s for n, s in sketches.items() if n in world.book and n not in silent}
        world.book.settle(world.book.ruling(sketches, refused=silent))
    assert world.book.standing("d-003").state is State.QUARANTINED
    assert "falls silent" in world.book.standing("d-003").words
    assert world.book.standing("d-004").state is not State.QUARANTINED
    assert world.book.standing("d-004").liveness < 0.8 < world.book.standing("d-003").liveness


def test_answers_take_back_what_silences_have_added() -> None:
    """A device on a bad link that differs from others, so that no round forgives it anything."""
    world = established(settings=Settings(floor=0.001))
    world.play(1, absent=["d-003"])
    sketches = {name: sketch for name, sketch in world.sketches().items() if name != "d-003"}
    world.book.settle(world.book.ruling(sketches, refused=["d-003"]))
    doubt = world.book.standing("d-003").evidence
    assert doubt > 1
    world.play(1)
    assert 0 < world.book.standing("d-003").evidence < doubt - 0.2
    world.play(4)
    assert world.book.standing("d-003").evidence == 0


def test_an_answer_takes_back_nothing_but_silences() -> None:
    world = established(settings=Settings(floor=0.001))
    world.book.settle(world.book.ruling(world.sketches(), enforce=False, disputed=["d-003"]))
    world.play(5)
    assert world.book.standing("d-003").evidence > 1.4


def test_who_is_in_quarantine_cannot_frame_the_trusted() -> None:
    world = established(40)
    gang, victim = world.names[:10], world.names[20]
    for name in gang:
        world.book.quarantine(name, "they were caught")
    for _ in range(12):
        sketches = world.sketches()
        for name in gang:
            sketches[name] = sketches[victim] * 1.001
        ruling = world.book.settle(world.book.ruling(sketches))
        assert ruling.verdicts[victim].parts.clones == 0 and victim in ruling.accepted
        assert ruling.verdicts[gang[0]].parts.clones > 0 or ruling.round < 12
    assert world.states([victim]) == {State.TRUSTED}


def test_who_was_hardly_seen_while_the_fleet_agreed_is_found_later() -> None:
    """Devices that turn everything round and took part twice only before the model had learnt nearly all it could."""
    world = World(80, hostile=dict.fromkeys(range(8), flipped), strength=1.5)
    world.play(9, absent=list(world.attacks))
    assert world.book.established
    world.strength = 0.3
    ruling = world.play(12, absent=list(world.attacks))
    assert ruling.gate == 0
    world.play(30)
    assert world.states(world.honest) == {State.TRUSTED}
    assert world.states(world.attacks) <= {State.QUARANTINED, State.SUSPECT}


def test_in_a_fleet_that_nobody_knows_yet_nothing_stands_out() -> None:
    """Where little is left to learn and nobody is trusted, a few who disagree may as well be right."""
    world = World(40, hostile=dict.fromkeys(range(2), flipped), strength=0.3, settings=Settings(probation=100))
    world.play(5)
    for _ in range(15):
        ruling = world.play()
        assert ruling.gate == 0 and max(v.parts.alignment for v in ruling.verdicts.values()) <= 0


def test_liveness_is_no_part_of_the_score() -> None:
    world = established()
    for _ in range(50):
        world.book.heard([], ["d-001"])
    assert world.book.standing("d-001").liveness == 0 and world.book.standing("d-001").score == 1


def test_the_reference_norm_and_the_contamination_follow_the_accepted() -> None:
    world = World(30, hostile=dict.fromkeys(range(6), huge))
    ruling = world.play(10)
    sizes = [float(np.linalg.norm(ruling.hearing.sketches[name])) for name in world.honest]
    assert ruling.reference_norm == pytest.approx(float(np.median(sizes)))
    assert ruling.contamination == 0.01
    doubtful = World(30, hostile=dict.fromkeys(range(6), noise), settings=Settings(suspect_at=9.0, quarantine_at=9.0))
    assert max(doubtful.play().contamination for _ in range(6)) > 0.01


def test_one_class_a_device_is_no_attack() -> None:
    """Ten classes pull in ten directions: each device agrees with a tenth of the fleet and with nobody else."""
    world = World(60)
    for _ in range(25):
        directions = world.rng.normal(size=(10, world.k)) * 2
        sketches = {
            name: directions[number % 10] + world.rng.normal(size=world.k) / 4
            for number, name in enumerate(world.names)
        }
        world.book.settle(world.book.ruling(sketches))
    assert world.states(world.names) == {State.TRUSTED}


def test_who_sends_noise_is_found_when_there_is_nothing_left_to_agree_about() -> None:
    """Six clusters of honest devices, no common direction: only lasting likeness tells."""
    world = World(60)
    riders = set(world.names[::10])
    for _ in range(25):
        directions = world.rng.normal(size=(6, world.k))
        sketches = {}
        for number, name in enumerate(world.names):
            own = world.rng.normal(size=world.k)
            sketches[name] = own if name in riders else directions[number % 6] + 0.2 * own
        world.book.settle(world.book.ruling(sketches))
    assert world.states(riders) == {State.QUARANTINED}
    assert world.states(set(world.names) - riders) == {State.TRUSTED}
