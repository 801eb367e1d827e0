"""covey_protocol.prg: the same masks everywhere, whatever the block size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import randombytes_buf_deterministic

from covey_protocol import prg
from covey_protocol.digest import content_digest

VECTORS = json.loads((Path(__file__).parent / "vectors" / "prg.json").read_text())
SEED = bytes(range(32))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["length"]))
def test_vectors(vector: dict[str, Any]) -> None:
    mask = prg.expand(bytes.fromhex(vector["seed"]), vector["length"])
    assert (mask[:8].tolist(), mask[-8:].tolist()) == (vector["first"], vector["last"])
    assert content_digest(mask.astype("<u2").tobytes()).hex() == vector["blake2b"]


@pytest.mark.parametrize("length", [0, 1, prg.BLOCK - 1, prg.BLOCK, prg.BLOCK + 1, 2 * prg.BLOCK])
def test_blocks_cover_the_vector_without_gaps(length: int) -> None:
    wheres = [where for where, block in prg.blocks(SEED, length) if len(block) == where.stop - where.start]
    assert sum(where.stop - where.start for where in wheres) == length
    assert [where.start for where in wheres] == list(range(0, length, prg.BLOCK))


def test_a_shorter_mask_is_the_beginning_of_a_longer_one() -> None:
    longer = prg.expand(SEED, 2 * prg.BLOCK)
    for length in (1, prg.BLOCK - 1, prg.BLOCK, prg.BLOCK + 1):
        assert np.array_equal(prg.expand(SEED, length), longer[:length])


def test_blocks_and_seeds_differ() -> None:
    vector = prg.expand(SEED, 2 * prg.BLOCK)
    assert not np.array_equal(vector[: prg.BLOCK], vector[prg.BLOCK :])
    assert not np.array_equal(vector, prg.expand(bytes(32), 2 * prg.BLOCK))


def test_elements_are_uniform() -> None:
    vector = prg.expand(SEED, 3 * prg.BLOCK)
    for part in (vector >> 8, vector & 255):
        counts = np.bincount(part, minlength=256)
        expected = len(vector) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * (2 * 255) ** 0.5


@settings(deadline=None, max_examples=20)
@given(st.binary(min_size=32, max_size=32), st.integers(0, prg.BLOCK + 10))
def test_adding_and_subtracting_are_inverse(seed: bytes, length: int) -> None:
    original = prg.expand(SEED, length)
    vector = original.copy()
    prg.add_mask(vector, seed)
    assert np.array_equal(vector, original + prg.expand(seed, length))
    prg.subtract_mask(vector, seed)
    assert np.array_equal(vector, original)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 9), max_size=5), st.lists(st.integers(0, 9), max_size=5), st.integers(0, prg.BLOCK + 10))
def test_masks_of_many_seeds_change_a_vector_as_one_by_one(added: list[int], taken: list[int], length: int) -> None:
    vector = prg.expand(SEED, length)
    expected = vector.copy()
    for number in added:
        expected += prg.expand(bytes([number]) * 32, length)
    for number in taken:
        expected -= prg.expand(bytes([number]) * 32, length)
    prg.change(vector, add=[bytes([n]) * 32 for n in added], subtract=[bytes([n]) * 32 for n in taken])
    assert np.array_equal(vector, expected)


def test_no_seed_makes_more_than_its_keystream() -> None:
    """The first level's keystream is no mask, and no block is another's beginning."""
    vector = prg.expand(SEED, prg.BLOCK)
    first = np.frombuffer(randombytes_buf_deterministic(2 * prg.BLOCK, SEED), "<u2")
    assert not np.array_equal(vector, first)
    assert np.array_equal(
        vector, np.frombuffer(randombytes_buf_deterministic(2 * prg.BLOCK, first[:16].tobytes()), "<u2")
    )
