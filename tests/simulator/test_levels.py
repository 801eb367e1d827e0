"""All levels of a rehearsal learn the same from the same draws, bit for bit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from tests.simulator.test_engine import played, scenario

from covey_protocol import attest_stage, prg
from covey_protocol.errors import RefusedError
from covey_simulator.engine.conductor import Play, Step
from covey_simulator.engine.draws import Draws
from covey_simulator.engine.plain import PlainRounds
from covey_simulator.engine.signed import SignedRounds, masks_left_out
from covey_simulator.scenario import Scenario

FIELDS = ("joined", "dealt", "survivors", "attested", "summed", "aborted", "causers", "finishers", "owing")
QUIET: dict[str, Any] = {"rounds": 3}
STORMY: dict[str, Any] = {
    "devices": 20,
    "rounds": 6,
    "group_size": 10,
    "dropout": 0.15,
    "participation": 0.9,
    "attack": {"kind": "sign-flip", "fraction": 0.2, "scale": 3},
    "adaptive_clip": True,
}
SPARED: dict[str, Any] = {"rounds": 3, "attestation": False, "dropout": 0.1}
NOISY: dict[str, Any] = {**STORMY, "rounds": 3, "privacy": {"noise_multiplier": 0.2, "a_min": 7}}


class Replayed(Draws):
    """Draws whose seeds of sketches are those of another run, whose vectors' digests they follow from."""

    def __init__(self, what: Scenario, seeds: dict[tuple[str, int, int], bytes]) -> None:
        super().__init__(what)
        self._seeds = seeds

    def shard_seed(self, shard: str, round_: int, attempt: int) -> bytes:
        return self._seeds[shard, round_, attempt]


def seeds_of(steps: list[Step]) -> dict[tuple[str, int, int], bytes]:
    return {
        (shard, step.record.round, step.record.attempt): seed
        for step in steps
        for shard, seed in step.outcome.seeds.items()
    }


def assert_same(one: tuple[Play, list[Step]], other: tuple[Play, list[Step]]) -> None:
    assert len(one[1]) == len(other[1])
    for left, right in zip(one[1], other[1], strict=True):
        place = f"round {left.record.round}.{left.record.attempt}"
        assert (left.record.round, left.record.attempt) == (right.record.round, right.record.attempt)
        assert left.barred == right.barred, place
        assert left.accepted == right.accepted, place
        assert left.outcome.masked == right.outcome.masked, place
        assert left.outcome.groups.keys() == right.outcome.groups.keys(), place
        for name, group in left.outcome.groups.items():
            twin = right.outcome.groups[name]
            for field in (
                "joined",
                "dealt",
                "survivors",
                "attested",
                "summed",
                "aborted",
                "causers",
                "finishers",
                "owing",
            ):
                assert getattr(group, field) == getattr(twin, field), (place, name, field, group, twin)
            assert (group.total is None) == (twin.total is None), (place, name)
            if group.total is not None and twin.total is not None:
                assert np.array_equal(group.total, twin.total), (place, name)
        assert left.outcome.sketches.keys() == right.outcome.sketches.keys(), place
        for name, sketch in left.outcome.sketches.items():
            assert np.array_equal(sketch, right.outcome.sketches[name]), (place, name)
        assert np.array_equal(left.weights, right.weights), place
    assert [record.epsilon for record in one[0].records] == [record.epsilon for record in other[0].records]
    assert one[0].scores == other[0].scores and one[0].expelled == other[0].expelled
    assert np.array_equal(one[0].weights, other[0].weights)


@pytest.mark.parametrize("changes", [QUIET, STORMY, SPARED, NOISY], ids=["quiet", "stormy", "no sketches", "noisy"])
def test_without_signatures_the_same_is_learnt(changes: dict[str, Any]) -> None:
    signed = scenario(**changes, signatures=True)
    steps: list[Step] = []
    slow = played(signed, steps.append)
    assert any(step.outcome.sketches for step in steps) == bool(signed.attesting)
    plain = scenario(**changes)
    again: list[Step] = []
    rounds = PlainRounds(Replayed(plain, seeds_of(steps)), group_size=plain.group_size)
    fast = played(plain, again.append, rounds=rounds)
    assert_same((slow, steps), (fast, again))


@pytest.mark.parametrize("changes", [QUIET, STORMY, SPARED, NOISY], ids=["quiet", "stormy", "no sketches", "noisy"])
def test_without_masks_the_same_is_learnt(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Step] = []
    real = played(scenario(**changes, signatures=True, masking=True), steps.append)
    again: list[Step] = []
    # The seed of the sketches follows from the digests of masked vectors, the one thing that masks change.
    monkeypatch.setattr(attest_stage, "shard_seed", lambda entries: steps[len(again)].outcome.seeds["s"])
    simulated = played(scenario(**changes, signatures=True, masking="simulated"), again.append)
    assert_same((real, steps), (simulated, again))


def test_masks_are_back_afterwards_and_real_ones_are_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    original = SignedRounds.run

    def watched(self: SignedRounds, *arguments: Any) -> Any:
        seen.append(prg.expand(bytes(32), 8).tobytes())
        vector = np.zeros(8, np.uint16)
        prg.add_mask(vector, bytes(32))
        assert vector.any(), "outside of the run masks expand"
        return original(self, *arguments)

    monkeypatch.setattr(SignedRounds, "run", watched)
    played(scenario(rounds=2, signatures=True))
    assert len(set(seen)) == 1 and len(seen) == 2
    vector = np.zeros(8, np.uint16)
    with pytest.raises(RuntimeError), masks_left_out():
        prg.add_mask(vector, bytes(32))
        assert not vector.any()
        raise RuntimeError
    prg.add_mask(vector, bytes(32))
    assert vector.any()


def test_devices_check_what_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level runs the real checks: a manifest under the policy's floor is refused by the devices."""
    rounds = SignedRounds(scenario(signatures=True))
    manifest = rounds.manifest
    monkeypatch.setattr(rounds, "manifest", lambda *asked: msgspec.structs.replace(manifest(*asked), masking=False))
    with pytest.raises(RefusedError, match="mask"):
        played(scenario(signatures=True), rounds=rounds)
