"""The rule as a whole: who poisons is out after a few rounds, and who does not stays in."""

from __future__ import annotations

import pytest
from tests.aggregator.reputation.world import Attack, World, copied, flipped, huge, noise, nothing

from covey_aggregator.reputation import State

ATTACKS = {"sign-flip": flipped, "huge": huge, "zeros": nothing, "noise": noise, "clones": copied}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_poisoners_are_expelled_and_nobody_else(attack: Attack, share: float) -> None:
    world = World(40, hostile=dict.fromkeys(range(int(share * 40)), attack))
    ruling = world.play(14)
    assert world.states(world.attacks) == {State.QUARANTINED}
    assert world.states(world.honest) == {State.TRUSTED}
    assert ruling.accepted == set(world.honest)


def test_an_honest_fleet_is_trusted_and_summed() -> None:
    world = World(40)
    for _ in range(30):
        assert len(world.play().accepted) >= 39
    assert world.states(world.names) == {State.TRUSTED}
