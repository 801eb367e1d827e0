"""The operator's floors at a real agent: what lies below one is refused, and no mark on the disk has moved.

Messages go the way that they always go: a signed OPEN or ROSTER is published, the agent hears it, and its database is
compared before and after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.world import BUNDLE, OPEN_TOPIC, World, blob_of
from tests.protocol.rig import FLEET, TASK, make_manifest, sign_open

from covey_agent.blobs import BlobStore
from covey_protocol import accounting, model, topics
from covey_protocol.model import Weights
from covey_protocol.noise import calibrate
from covey_protocol.policy import Policy

Make = Callable[[Policy], World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a world whose agent holds a policy; its aggregator keeps to none."""
    worlds: list[World] = []
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:

        def world(policy: Policy) -> World:
            worlds.append(World(Path(folder), rules=policy))
            worlds[-1].open_epoch()
            BlobStore(worlds[-1].home.path / "blobs").put(BUNDLE.digest, BUNDLE.encode())
            return worlds[-1]

        yield world
        for each in worlds:
            each.store.close()


def manifest_of(world: World, weights: Weights | None = None, task: str = TASK, **changes: Any) -> bytes:
    fields = {
        "bundle": blob_of(BUNDLE.encode()),
        "model": world.serve(model.to_bytes(world.weights if weights is None else weights)),
        "epoch": world.grouping.epoch,
    }
    return sign_open(make_manifest(BUNDLE.dimension, **{"n_max": 10, **fields, **changes}), task=task)


STRICT = Policy(n_min=5, t_min=5, a_min=5, sketch_max=16)
NOISY = Policy(noise_min=0.5)


@pytest.mark.parametrize(
    ("policy", "changes", "cause"),
    [
        (STRICT, {"n_min": 4}, "policy"),
        (Policy(t_min=9), {"n_max": 8}, "policy"),
        (Policy(a_min=9), {"n_max": 8}, "policy"),
        (STRICT, {"n_min": 5, "masking": False}, "policy"),
        (STRICT, {"n_min": 5, "sketch": 17}, "policy"),
        (STRICT, {"n_min": 5, "sketch": 7}, "unsupported"),
        (STRICT, {"n_min": 5, "sketch": 16, "noise": 500.0}, "unsupported"),
        (NOISY, {}, "policy"),
        (NOISY, {"noise": 0.49}, "policy"),
        (NOISY, {"noise": 0.5, "a_min": 11}, "policy"),
        (Policy(epsilon_max=1e6), {}, "policy"),
        (Policy(epsilon_max=0.1), {"noise": 2.0}, "privacy-budget"),
    ],
)
def test_a_manifest_below_a_floor_moves_no_mark(
    make: Make, policy: Policy, changes: dict[str, Any], cause: str
) -> None:
    world = make(policy)
    before = world.store.marks()
    world.say(OPEN_TOPIC, manifest_of(world, **changes))
    world.settle()
    assert world.agent.refusals.counts == {cause: 1}
    assert world.said(topics.JOIN) == []
    assert world.store.marks() == before
    world.say(OPEN_TOPIC, manifest_of(world, n_min=5))
    world.settle()
    assert len(world.said(topics.JOIN)) == (policy.noise_min == policy.epsilon_max)  # the agent itself is well


@pytest.mark.parametrize("policy", [Policy(t_min=5), Policy(a_min=5), Policy(t_min=6), Policy(a_min=6)])
def test_a_roster_below_a_floor_moves_no_mark(make: Make, policy: Policy) -> None:
    world = make(policy)
    before = marks_when(world, topics.ROSTER)
    world.open_round()  # its aggregator gives five members t = 4 and a_min = 4
    assert world.agent.refusals.counts == {"roster": 1}
    assert before == [world.store.marks()]
    assert world.said(topics.SHARES) == []


def test_a_new_task_does_not_reset_the_models_that_were_masked_for(make: Make) -> None:
    world = make(Policy())
    world.open_round()
    world.close_round()
    spent = world.store.marks()
    world.say(topics.pub(FLEET, topics.OPEN, "other"), manifest_of(world, BUNDLE.weights, task="other"))
    world.settle()
    assert world.agent.refusals.counts == {"spent-model": 1}
    assert world.store.marks() == spent


def test_a_new_task_does_not_reset_exposure(make: Make) -> None:
    world = make(Policy(exposure_max=1))
    world.open_round()
    world.close_round()
    before = world.store.marks()
    world.open_round(task="other")
    assert world.agent.refusals.counts["exposure"] == 1
    assert before == world.store.marks()
    assert len(world.said(topics.SURVIVORS)) == 1  # of the first task


def marks_when(world: World, kind: str) -> list[dict[str, bytes]]:
    """Return a list that gets the agent's marks whenever a message of a kind is about to reach it."""
    seen: list[dict[str, bytes]] = []

    def look(topic: str, payload: bytes) -> bytes:
        if topics.parse(topic).kind == kind:
            seen.append(world.store.marks())
        return payload

    world.tamper = look
    return seen


def test_at_its_exposure_cap_a_device_joins_no_round_and_says_why(make: Make) -> None:
    world = make(Policy(exposure_max=1))
    world.open_round()
    world.close_round()
    world.open_round(2)
    assert len(world.said(topics.JOIN)) == 1
    status = world.agent.snapshot()
    by_grouping = {world.grouping.group: 1}
    assert status["exposure"] == {
        "sets": 1,
        "groupings": 1,
        "max": 1,
        "by_grouping": by_grouping,
        "forgotten": 0,
    }
    assert "exposure_max is 1" in status["holds"]
    assert world.agent.refusals.counts == {"exposure": 1}


def test_a_device_whose_sketch_budget_is_spent_says_why_it_stays_out(make: Make) -> None:
    world = make(Policy(sketch_budget=15))
    world.open_round(sketch=8)
    world.close_round()
    before = world.store.marks()
    world.open_round(2, sketch=8)
    assert len(world.said(topics.ATTEST)) == 1
    assert world.agent.refusals.counts == {"sketch-budget": 1}
    assert world.store.marks() == before
    world.open_round(2, 2)
    assert len(world.said(topics.JOIN)) == 2  # rounds without sketches go on
    assert world.agent.snapshot()["sketches"] == {"numbers": 8, "budget": 15}


def test_a_device_whose_privacy_is_spent_joins_no_round_whatever_the_task_and_says_why(make: Make) -> None:
    noise = calibrate(2.0, n_max=10, dimension=BUNDLE.dimension)
    once = accounting.epsilon(accounting.round_cost(noise, sketched=False), 1e-5)
    world = make(Policy(epsilon_max=1.2 * once))
    world.open_round(noise=2.0)
    world.close_round()
    status = world.agent.snapshot()
    assert status["privacy"] == {
        "epsilon": pytest.approx(once, abs=1e-5),
        "delta": 1e-5,
        "max": 1.2 * once,
        "rounds": 1,
        "without_noise": 0,
    }
    assert not status["holds"]
    world.boot()  # a restart forgets nothing
    world.open_round(2, noise=2.0)
    world.open_round(1, task="another", noise=2.0)
    assert len(world.said(topics.JOIN)) == 1
    assert "the privacy budget is spent" in world.agent.snapshot()["holds"]
    assert world.agent.refusals.counts["privacy-budget"] >= 1
