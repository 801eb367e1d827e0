"""What the whole transcript of a round says about one device's update: nothing beyond the sum.

Three views of it: no encoding of an update occurs in any byte that is carried; masked vectors cannot be told from
uniform noise; and for other updates of the same sum there are masks under which every byte is the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.protocol.rig import Rig, make_manifest

from covey_protocol import masking, prg, ring, topics
from covey_protocol.prg import Ring
from covey_protocol.ring import METRICS, Metrics, RingScale
from covey_protocol.round_table import GroupStage

WINDOW = 8  # bytes: two float32, one float64 or four ring elements in a row


def encodings(update: NDArray[np.float32], encoded: Ring) -> dict[str, bytes]:
    scale = RingScale(5.0, 32)
    rounded = np.rint(update / scale.step)
    return {
        "float32 little": update.astype("<f4").tobytes(),
        "float32 big": update.astype(">f4").tobytes(),
        "float64 little": update.astype("<f8").tobytes(),
        "float64 big": update.astype(">f8").tobytes(),
        "ring little": encoded.astype("<u2").tobytes(),
        "ring big": encoded.astype(">u2").tobytes(),
        "int16 little": rounded.astype("<i2").tobytes(),
        "int16 big": rounded.astype(">i2").tobytes(),
        "int32 little": encoded.astype("<u4").tobytes(),
        "int32 big": encoded.astype(">u4").tobytes(),
    }


def found_on_wire(rig: Rig) -> set[str]:
    """Return the encodings of which some window occurs somewhere in what was carried."""
    wire = b"|".join(data for *_, data in rig.wire)
    # Every window of the wire at every offset, to look up those of the updates in.
    windows = {wire[at : at + WINDOW] for at in range(len(wire) - WINDOW + 1)}
    found = set()
    for name in rig.encoded:
        for kind, data in encodings(rig.update(name), rig.encoded[name]).items():
            if any(data[at : at + WINDOW] in windows for at in range(0, len(data) - WINDOW + 1, WINDOW)):
                found.add(kind)
    return found


@pytest.mark.parametrize("dies", [{}, {"pi-1": topics.MASKED, "pi-3": "vector"}], ids=["all", "dropped"])
def test_no_update_occurs_on_the_wire(dies: dict[str, str]) -> None:
    rig = Rig(n=8, dimension=200, dies=dies)
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    assert set(rig.encoded) == set(rig.names)
    assert found_on_wire(rig) == set()


def test_the_search_finds_an_update_that_is_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "mask", lambda vector, seed, pairs, place: None)
    rig = Rig(n=6, dimension=200)
    rig.run()
    assert "ring little" in found_on_wire(rig)


# --- uniformity ---------------------------------------------------------------------------------------------------

DIMENSION = 20_000


@pytest.fixture(scope="module")
def masked() -> Iterator[tuple[Rig, dict[str, Ring]]]:
    rig = Rig(n=5, dimension=DIMENSION)
    rig.run()
    vectors = {name: np.frombuffer(data, "<u2") for way, name, _, data in rig.wire if way == "vector"}
    assert len(vectors) == 5
    yield rig, vectors


def chi_square(values: NDArray[Any]) -> float:
    """Return how many standard deviations the counts of 256 values are from even."""
    counts = np.bincount(values, minlength=256)
    expected = len(values) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - 255) / math.sqrt(2 * 255)


def correlation(one: Ring, other: Ring) -> float:
    """Return the correlation, as signed numbers, in standard errors."""
    return float(np.corrcoef(one.view(np.int16), other.view(np.int16))[0, 1]) * math.sqrt(len(one))


def test_masked_vectors_are_uniform(masked: tuple[Rig, dict[str, Ring]]) -> None:
    rig, vectors = masked
    for name, vector in vectors.items():
        for part in (vector >> 8, vector & 255):
            assert abs(chi_square(part)) < 5
        assert abs(chi_square(rig.encoded[name] & 255)) > 20  # which the updates themselves are not


def test_masked_vectors_are_uncorrelated(masked: tuple[Rig, dict[str, Ring]]) -> None:
    rig, vectors = masked
    for name, vector in vectors.items():
        assert abs(correlation(vector, rig.encoded[name])) < 5
        assert abs(correlation(vector[1:], vector[:-1])) < 5
        for other in vectors:
            if other != name:
                assert abs(correlation(vector, vectors[other])) < 5
                assert abs(correlation(vector, rig.encoded[other])) < 5
                # Nor does a sum of some of them say anything, until all are in it.
                assert abs(correlation(vector + vectors[other], rig.encoded[name])) < 5


def test_two_rounds_of_one_update_have_nothing_in_common() -> None:
    runs = [Rig(n=4, dimension=DIMENSION, seed=seed) for seed in ("one", "two")]
    for rig in runs:
        rig.run()
    one, two = (np.frombuffer(rig.wire[_vector_at(rig)][3], "<u2") for rig in runs)
    assert abs(correlation(one, two)) < 5


def _vector_at(rig: Rig) -> int:
    return next(index for index, (way, *_) in enumerate(rig.wire) if way == "vector")


# --- other updates, same transcript -------------------------------------------------------------------------------


class GivenMasks:
    """A mask generator whose output for some seeds has a given vector added to it."""

    def __init__(self) -> None:
        self.added: dict[bytes, Ring] = {}
        self._change = prg.change

    def change(self, vector: Ring, *, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()) -> None:
        self._change(vector, add=add, subtract=subtract)
        for seed in self.added.keys() & set(add):
            vector += self.added[seed]
        for seed in self.added.keys() & set(subtract):
            vector -= self.added[seed]


def run_given(
    vectors: dict[str, Ring], masks: GivenMasks, dies: dict[str, str]
) -> tuple[Rig, dict[frozenset[str], bytes]]:
    """Run a round in which devices have these vectors in the ring, and return it with its pairs' seeds."""
    rig = Rig(n=6, dimension=40, manifest=make_manifest(40), dies=dies)
    seeds: dict[frozenset[str], bytes] = {}
    pair_seed = masking.pair_seed
    now_training = ""

    def given(
        update: NDArray[np.float32], metrics: Metrics, scale: RingScale, seed: bytes, factor: float, *, clips: bool
    ) -> Ring:
        return vectors[now_training].copy()

    def noted(secret: bytes, mine: masking.PairParty, theirs: masking.PairParty, context: bytes) -> bytes:
        seed = pair_seed(secret, mine, theirs, context)
        seeds[frozenset((mine.name, theirs.name))] = seed
        return seed

    trained: Callable[[str], object] = rig.trained

    def train_one(name: str) -> object:
        nonlocal now_training
        now_training = name
        return trained(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig, "trained", train_one)
        patch.setattr(ring, "encode", given)
        patch.setattr(masking, "pair_seed", noted)
        patch.setattr(prg, "change", masks.change)
        rig.run()
        assert rig.group.stage is GroupStage.SUMMING
        total, _ = rig.group.unmask()
    survivors = list(rig.group.survivors)
    assert np.array_equal(total, total_of(vectors, survivors))
    return rig, seeds


def random_vectors(number: int, names: list[str]) -> dict[str, Ring]:
    rng = np.random.default_rng(number)
    return {name: rng.integers(0, 1 << 16, 40 + len(METRICS), dtype=np.uint16) for name in names}


@pytest.mark.parametrize("dies", [{}, {"pi-2": "vector"}, {"pi-0": topics.MASKED}], ids=["all", "one", "first"])
def test_other_updates_of_the_same_sum_have_masks_with_the_same_transcript(dies: dict[str, str]) -> None:
    names = [f"pi-{index}" for index in range(6)]
    first = random_vectors(1, names)
    rig, seeds = run_given(first, GivenMasks(), dies)
    survivors = list(rig.group.survivors)

    # Entirely other vectors; the last survivor's makes the sum the same.
    second = random_vectors(2, names)
    last = survivors[-1]
    second[last] = total_of(first, survivors) - total_of(second, survivors[:-1])

    # Neighbouring survivors' masks take up the differences, each handing on what is left to the next. Of a member that
    # dropped out the pairwise masks become known, but never its self-mask, which takes up its difference.
    masks = GivenMasks()
    masks.added = differences(first, second, survivors, seeds)
    for name in set(names) - set(survivors):
        secrets = rig.devices[name]._secrets
        assert secrets is not None
        masks.added[masking.self_mask_seed(secrets.self_mask)] = first[name] - second[name]
    again, _ = run_given(second, masks, dies)
    assert again.wire == rig.wire  # every byte of every message
    assert again.group.survivors == rig.group.survivors


def test_updates_of_another_sum_do_not() -> None:
    names = [f"pi-{index}" for index in range(6)]
    first = random_vectors(1, names)
    rig, seeds = run_given(first, GivenMasks(), {})
    second = {**first, "pi-0": first["pi-0"] + np.uint16(1)}
    masks = GivenMasks()
    masks.added = differences(first, second, names, seeds)
    again, _ = run_given(second, masks, {})
    assert again.wire != rig.wire


def differences(
    first: dict[str, Ring], second: dict[str, Ring], survivors: list[str], seeds: dict[frozenset[str], bytes]
) -> dict[bytes, Ring]:
    """Return what neighbours' pairwise masks have to differ by so that ``second`` looks like ``first``."""
    added, carried = {}, np.zeros(44, np.uint16)
    for name, after in itertools.pairwise(survivors):
        carried = carried + first[name] - second[name]
        added[seeds[frozenset((name, after))]] = carried
    return added


def total_of(vectors: dict[str, Ring], names: list[str]) -> Ring:
    total = np.zeros(44, np.uint16)
    for name in names:
        total += vectors[name]
    return total
