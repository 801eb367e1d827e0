"""covey_protocol.sketch: lengths and angles survive, masks come off, and buckets are balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_protocol import prg
from covey_protocol.digest import digest
from covey_protocol.prg import Ring
from covey_protocol.sketch import K_MAX, K_MIN, SketchMatrix, default_k

RHO = b"\x07" * 32
LENGTHS = st.one_of(st.integers(1, 300), st.sampled_from([prg.BLOCK - 1, prg.BLOCK, prg.BLOCK + 1, 70_000]))


def seeds(count: int, tag: str = "") -> list[bytes]:
    return [digest(f"{tag}{index}".encode(), person=b"test") for index in range(count)]


def dense(matrix: SketchMatrix) -> NDArray[np.int64]:
    """Return P as a matrix of shape (k, length), column by column."""
    columns = [np.zeros(matrix.length, np.uint16) for _ in range(matrix.length)]
    for index, column in enumerate(columns):
        column[index] = 1
    return matrix.of(columns).view(np.int16).astype(np.int64).T


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(K_MIN, K_MAX), st.integers(1, 4))
def test_it_is_linear_and_masks_are_sketched_like_vectors(length: int, k: int, count: int) -> None:
    matrix = SketchMatrix(RHO, length, k)
    masks = seeds(count)
    expanded = [prg.expand(seed, length) for seed in masks]
    each = matrix.of_masks(masks)
    assert each.shape == (count, k)
    assert np.array_equal(each, matrix.of(expanded))
    total = np.add.reduce(np.stack(expanded), axis=0, dtype=np.uint16)
    assert np.array_equal(matrix.of([total])[0], np.add.reduce(each, axis=0, dtype=np.uint16))


@pytest.mark.parametrize("k", [8, 13, 16, 64])
@pytest.mark.parametrize("length", [8, 61, 64, 640])
def test_every_coordinate_is_in_one_bucket_and_no_bucket_is_fuller_than_another(length: int, k: int) -> None:
    projection = dense(SketchMatrix(RHO, length, k))
    assert np.array_equal(np.abs(projection).sum(axis=0), np.ones(length))
    sizes = np.abs(projection).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    # A run of k coordinates is dealt out to k different buckets.
    buckets = np.abs(projection).argmax(axis=0)
    for start in range(0, length - k + 1, k):
        assert len(set(buckets[start : start + k])) == k


def test_buckets_and_signs_are_as_random_as_they_should_be() -> None:
    length, k, draws = 64, 16, 400
    together = signs = 0.0
    where = np.zeros((k, length))
    for seed in seeds(draws):
        projection = dense(SketchMatrix(seed, length, k))
        where += np.abs(projection)
        signs += projection.sum()
        together += float((np.abs(projection[:, :k]).T @ np.abs(projection[:, k : 2 * k])).sum())
    assert abs(where / draws - 1 / k).max() < 5 * np.sqrt(1 / k / draws)
    assert abs(signs) < 5 * np.sqrt(length * draws)
    assert together / draws / k**2 == pytest.approx(1 / k, rel=0.05)  # two runs meet as often as a hash would have them


def test_lengths_and_angles_are_kept_without_bias() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-30, 30, (2, 2000)).astype(np.int16)
    estimates = []
    for seed in seeds(300):
        sketches = SketchMatrix(seed, 2000, 32).of([x.view(np.uint16), y.view(np.uint16)])
        a, b = sketches.view(np.int16).astype(float)
        estimates.append([a @ a, a @ b])
    true = np.array([x.astype(float) @ x, x.astype(float) @ y])
    spread = np.sqrt((true[0] ** 2 * 2) / 32 / 300)
    assert np.all(np.abs(np.mean(estimates, axis=0) - true) < 5 * spread)


def test_everything_hangs_on_the_seed_and_k() -> None:
    vector: Ring = prg.expand(RHO, 500)
    sketches = {SketchMatrix(seed, 500, 16).of([vector]).tobytes() for seed in seeds(20)}
    assert len(sketches) == 20
    first = SketchMatrix(RHO, 500, 16).of([vector])
    assert np.array_equal(first, SketchMatrix(RHO, 500, 16).of([vector]))
    assert not np.array_equal(first[0, :8], SketchMatrix(RHO, 500, 8).of([vector])[0])


def test_vectors_stay_as_they_are() -> None:
    vector = prg.expand(RHO, 500)
    before = vector.copy()
    SketchMatrix(RHO, 500, 16).of([vector])
    assert np.array_equal(vector, before)


@pytest.mark.parametrize("k", [0, 7, 65, -1])
def test_widths_that_leak_too_much_or_tell_too_little(k: int) -> None:
    with pytest.raises(ValueError, match="8 to 64"):
        SketchMatrix(RHO, 100, k)


def test_vectors_of_another_length() -> None:
    with pytest.raises(ValueError, match="100 coordinates"):
        SketchMatrix(RHO, 100, 8).of([np.zeros(99, np.uint16)])


@pytest.mark.parametrize(("dimension", "k"), [(1, 8), (1024, 8), (2048, 16), (8192, 64), (10**6, 64)])
def test_the_width_follows_the_model(dimension: int, k: int) -> None:
    assert default_k(dimension) == k


def test_directions_are_sketched_as_vectors_in_the_ring_are() -> None:
    length = prg.BLOCK + 77
    matrix = SketchMatrix(RHO, length, 16)
    values = np.random.default_rng(4).integers(-3, 4, (2, length)).astype(np.int16)
    in_ring = matrix.of([row.view(np.uint16) for row in values]).view(np.int16)
    assert np.array_equal(matrix.of_directions(list(values.astype(np.float32))), in_ring.astype(np.float64))
    with pytest.raises(ValueError, match=f"vectors of {length} coordinates"):
        matrix.of_directions([np.zeros(length - 1, np.float32)])
