"""Crash safety at every instant that could matter: an agent is killed there, started again, and held to rule 5.

The instants are those of ``crash_child``; ``LIFE`` lists them all, with how often each comes at the least in the life
that ``crash_rig`` leads: an opening, two rounds, a clean stop. Every day each is tried once, and the long form tries
every occurrence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.crash_rig import CrashWorld, Nursery, check_disk, live, survived

from covey_simulator.broker import RunningBroker

BOTH_SIDES = {
    "write tables": 1,
    "write connections": 1,
    "write state": 2,
    "write epoch+opening+commitment": 1,
    "write opening": 1,
    "write grouping+opening": 1,
    "write sequence+round+join": 2,
    "write peer+pin+roster+shares": 1,
    "write peer+roster+shares": 1,
    "write masked+masked/": 2,
    "write signed+exposure+survivors": 2,
    "write unmask": 2,
    **{f"settle {kind}": 1 for kind in ("commitment", "opening")},
    **{f"settle {kind}": 2 for kind in ("state", "join", "shares", "masked", "masked/", "survivors", "unmask")},
    **{f"send {kind}": 1 for kind in ("commitment", "opening")},
    **{f"send {kind}": 2 for kind in ("state", "join", "shares", "masked", "survivors", "unmask")},
    "send masked/": 8,
    **{f"hear {kind}": 1 for kind in ("connected", "epoch", "commitments", "groups")},
    **{f"hear {kind}": 2 for kind in ("open", "roster", "trained", "survivors", "unmask", "close")},
    "hear dealt": 4,
    "hear blob": 8,
    "flush blob": 4,
    "flush blobs": 4,
    "replace blob": 4,
    "unlink blob": 2,
    "unlink piece": 2,
    "replace status.json": 1,
    "schema": 1,
}
LIFE = {f"{side} {name}": count for name, count in BOTH_SIDES.items() for side in ("before", "after")}
LIFE |= {"open agent.db": 1, "open blob": 4, "half blob": 4, "open piece": 4, "half piece": 4}
# Asked for only when pieces are slow to come.
SOMETIMES = {f"{side} {word} want" for side in ("before", "after") for word in ("write", "send", "settle")}
SECRETS = {"from_entropy", "masking_key", "self_mask_seed", "pair_seed", "split", "unseal", "encode", "update"}
SECRETS |= {"ephemeral", "revealed"}
ONCE = [f"{name}#1" for name in LIFE]
AGAIN = [f"{name}#{number}" for name, count in LIFE.items() for number in range(2, count + 1)]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def world(tmp_path: Path, mosquitto: RunningBroker, nursery: Nursery) -> Iterator[CrashWorld]:
    made = CrashWorld(tmp_path, mosquitto, nursery)
    yield made
    made.close()


def test_the_list_of_instants_is_complete(world: CrashWorld) -> None:
    """Whoever adds a durable write, a message or a stage has it tried here."""
    live(world)
    assert world.stop() == 0
    check_disk(world)
    passed = Counter(instant.partition("#")[0] for instant in world.records.instants())
    assert set(passed) - SOMETIMES == set(LIFE)
    assert {name: count for name, count in LIFE.items() if passed[name] < count} == {}
    assert set(world.records.secrets().values()) == SECRETS


@pytest.mark.parametrize("kill", ONCE)
def test_a_kill_at_any_instant(kill: str, world: CrashWorld, tmp_path: Path) -> None:
    survived(world, kill, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kill", AGAIN)
def test_a_kill_at_any_later_instant(kill: str, world: CrashWorld, tmp_path: Path) -> None:
    survived(world, kill, tmp_path)
