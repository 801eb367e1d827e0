"""Excuses: whose updates are those of its own labels may differ from everybody in angle, norm and likeness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.aggregator.reputation.world import Attack, Sketch, World, copied, huge, noise, nothing

from covey_aggregator.reputation import OUT, Settings, State

ODD = range(3, 8)


def askew(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    """What agrees with nobody but its like: a third of the direction turned round, the rest its own."""
    beside = np.roll(common, 5)
    return np.asarray(0.4 * sketch - 0.3 * common + beside)


def long(sketch: Sketch, common: Sketch, rng: np.random.Generator) -> Sketch:
    return 2.6 * sketch


def played(attack: Attack, excuse: float, rounds: int = 12) -> tuple[World, list[str]]:
    # Devices of one class have fellows in the clusters of other devices' data, which this world has not.
    world = World(
        hostile=dict.fromkeys(ODD, attack), settings=Settings(isolation_weight=0.0 if attack is askew else 1.5)
    )
    odd = [world.names[number] for number in ODD]
    for _ in range(rounds):
        ruling = world.book.ruling(world.sketches(), excused=dict.fromkeys([*odd, "nobody"], excuse))
        world.book.settle(ruling)
    return world, odd


@pytest.mark.parametrize("attack", [askew, long, copied])
def test_who_is_excused_stays_and_is_summed(attack: Attack) -> None:
    world, odd = played(attack, 0.0)
    assert world.states(odd) == {State.QUARANTINED}
    world, odd = played(attack, 1.0)
    assert world.states(odd) == {State.TRUSTED}
    ruling = world.book.ruling(world.sketches(), excused=dict.fromkeys(odd, 1.0))
    assert ruling.accepted >= set(odd)
    assert world.states(world.honest) == {State.TRUSTED}


@pytest.mark.parametrize("attack", [huge, nothing, noise])
def test_no_excuse_covers_absurd_norms_or_being_like_nobody(attack: Callable[..., Sketch]) -> None:
    world, odd = played(attack, 1.0)
    assert world.states(odd) <= OUT


def test_an_excuse_is_shown_and_said() -> None:
    world, odd = played(askew, 1.0, 6)
    standing = world.book.standing(odd[0])
    assert standing.parts.excused > 0.5
    assert standing.parts.alignment <= 0
    assert "Its updates are those of its own labels" in standing.words
    assert "own labels" not in world.book.standing(world.honest[0]).words


def test_half_an_excuse_leaves_half_of_the_evidence() -> None:
    world, odd = played(askew, 0.0, 4)
    sketches = world.sketches()
    parts = [world.book.ruling(sketches, excused={odd[0]: excuse}).verdicts[odd[0]].parts for excuse in (0.0, 0.5, 1.0)]
    whole = parts[0].alignment + parts[0].norm + parts[0].clones
    assert whole > 1
    assert parts[1].alignment + parts[1].norm + parts[1].clones == pytest.approx(whole / 2)
    assert [part.excused for part in parts] == pytest.approx([0, whole / 2, whole])


def test_settling_anew_keeps_excuses() -> None:
    world, odd = played(askew, 1.0, 6)
    ruling = world.book.ruling(world.sketches(), excused=dict.fromkeys(odd, 1.0))
    settled = world.book.settle(ruling, without=[world.honest[-1]])
    assert settled.verdicts[odd[0]].parts.excused > 0.5


def test_who_is_excused_measures_nobody() -> None:
    """What is usual is what it would be without them, though the excused are many, much alike and long."""
    world = World(hostile=dict.fromkeys(range(15), long), strength=0.42)
    crowd, alone = world.names[:15], World(strength=0.42)
    for _ in range(8):
        sketches = world.sketches()
        ruling = world.book.settle(world.book.ruling(sketches, excused=dict.fromkeys(crowd, 1.0)))
        rest = {name: sketch for name, sketch in sketches.items() if name not in crowd}
        without = alone.book.settle(alone.book.ruling(rest))
    assert ruling.draft.fleet == without.draft.fleet
    for name in world.honest:
        assert ruling.verdicts[name].parts == without.verdicts[name].parts


def test_where_most_are_excused_they_are_the_measure_after_all() -> None:
    world = World(hostile={3: huge})
    for _ in range(8):
        world.book.settle(world.book.ruling(world.sketches(), excused=dict.fromkeys(world.names, 1.0)))
    assert world.states(world.honest) == {State.TRUSTED}
    assert world.states(world.names[3:4]) == {State.QUARANTINED}
