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
from tests.agent.crash_rig import (
    SECONDS,
    CrashWorld,
    Nursery,
    Speech,
    check_disk,
    copied_database,
    go_on,
    live,
    survived,
)
from tests.agent.world import DEVICE
from tests.protocol.rig import FLEET

from covey_agent.store import Store
from covey_protocol import topics
from covey_protocol.digest import content_digest
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
    "write signed+exposure+survivors": 1,
    "write signed+survivors": 1,
    "write sketched+sketches+attest": 1,
    "write accepted+exposure+accept": 1,
    "write unmask": 2,
    **{f"settle {kind}": 1 for kind in ("commitment", "opening", "attest", "accept")},
    **{f"settle {kind}": 2 for kind in ("state", "join", "shares", "masked", "masked/", "survivors", "unmask")},
    **{f"send {kind}": 1 for kind in ("commitment", "opening", "attest", "accept")},
    **{f"send {kind}": 2 for kind in ("state", "join", "shares", "masked", "survivors", "unmask")},
    "send masked/": 8,
    **{f"hear {kind}": 1 for kind in ("connected", "epoch", "commitments", "groups", "attest", "accept")},
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


@pytest.mark.parametrize("moment", ["hear epoch#1", "hear roster#1", "hear dealt#1", "hear survivors#1"])
def test_a_stop_in_the_middle_loses_nothing(moment: str, world: CrashWorld, tmp_path: Path) -> None:
    """SIGTERM: what was promised is sent, and the next round finds the agent there."""
    world.start()
    if moment == "hear epoch#1":
        world.goal = lambda: world.handled(f"after {moment}")
        world.open_epoch()
    else:
        world.group_up()
        world.goal = lambda: world.handled(f"after {moment}")
        world.open_round(1)
    world.until(world.goal)
    assert world.stop() == 0
    promised = world.records.put()
    _, waiting = copied_database(world.home.path, tmp_path / "copy")
    kept = {content_digest(payload).hex() for _, payload in waiting}
    assert promised - heard(world) == kept - heard(world)
    check_disk(world)
    world.start()
    go_on(world, 1 if world.group else 0)
    assert promised <= heard(world)
    Speech(world.heard).check()


def heard(world: CrashWorld) -> set[str]:
    """Return the digests of all that the broker has heard of the agent."""
    return {content_digest(payload).hex() for _, payload, _ in world.heard}


def test_a_stop_without_a_broker_keeps_what_waits(
    world: CrashWorld, mosquitto: RunningBroker, nursery: Nursery, tmp_path: Path
) -> None:
    mosquitto.stop()
    store = Store(world.home.database)
    promised = [(topics.up(FLEET, DEVICE, topics.SHARES), bytes([210, number])) for number in range(5)]
    for topic, payload in promised:
        store.outbox.put(topic, payload)
    store.close()
    nursery.start(world.home.path, world.records.path)
    world.alive = True
    world.until(lambda: world.handled("after write connections#1"))
    assert world.stop() == 0
    _, waiting = copied_database(world.home.path, tmp_path / "copy")
    assert [row for row in waiting if not row[0].endswith("/state")] == promised
    mosquitto.start()
    assert world.radio.wait_connected(SECONDS)
    world.drop = {topics.SHARES}  # they are not for the aggregator
    world.start()
    world.until(lambda: len(world.said(topics.SHARES)) >= len(promised))
    assert world.said(topics.SHARES) == [payload for _, payload in promised]
