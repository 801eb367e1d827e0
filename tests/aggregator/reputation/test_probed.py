"""Evidence from probes: it counts however well a device agrees, and it is said."""

from __future__ import annotations

from tests.aggregator.reputation.world import World

from covey_aggregator.reputation import State

LOUD = 2.0


def test_a_pull_expels_a_device_that_agrees_with_all() -> None:
    world = World()
    agreeable = world.names[3]
    for _ in range(8):
        world.book.settle(world.book.ruling(world.sketches()))
    assert world.book.standing(agreeable).state is State.TRUSTED
    states = []
    for _ in range(4):
        ruling = world.book.ruling(world.sketches(), probed={agreeable: LOUD, "nobody": LOUD})
        assert ruling.verdicts[agreeable].parts.pulls == LOUD
        world.book.settle(ruling)
        states.append(world.book.standing(agreeable).state)
    assert State.SUSPECT in states
    assert states[-1] is State.QUARANTINED
    assert agreeable not in ruling.accepted
    assert "it teaches one label to samples of all kinds" in world.book.standing(agreeable).words
    others = [name for name in world.names if name != agreeable]
    assert all(world.book.standing(name).state is State.TRUSTED for name in others)
    assert all(ruling.verdicts[name].parts.pulls == 0 for name in others)


def test_what_is_not_pulled_any_more_is_forgiven() -> None:
    world = World()
    one = world.names[3]
    for _ in range(8):
        world.book.settle(world.book.ruling(world.sketches()))
    world.book.settle(world.book.ruling(world.sketches(), probed={one: LOUD}))
    for _ in range(8):
        world.book.settle(world.book.ruling(world.sketches()))
    assert world.book.standing(one).evidence < LOUD / 2
    assert world.book.standing(one).state is State.TRUSTED


def test_settling_anew_keeps_what_was_probed() -> None:
    world = World()
    one, spoilt = world.names[3], world.names[4]
    for _ in range(8):
        world.book.settle(world.book.ruling(world.sketches()))
    settled = world.book.settle(world.book.ruling(world.sketches(), probed={one: LOUD}), without=[spoilt])
    assert settled.verdicts[one].parts.pulls == LOUD
