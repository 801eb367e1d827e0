"""The mask generator: from a 32-byte seed to a vector in Z_2^16.

ChaCha20 by libsodium (``randombytes_buf_deterministic``) in two levels (the tree of Goldreich, Goldwasser and Micali
1986, two high): the seed's keystream is cut into 32-byte seeds, and block ``i`` of 65,536 elements is the keystream of
seed ``i``. Each seed of either level is used for one keystream, so that the whole is as good a generator as ChaCha20.
Blocks of 128 KiB stay in the cache, which makes one of them several times faster per byte than one large call, and
blocks can be made in any order. Elements are the bytes read as little-endian uint16. A committed test vector holds this
fast for other implementations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from covey_protocol.chacha import SEED_BYTES, Room

BLOCK = 1 << 16  # elements
HALF_RING = 32767

Ring: TypeAlias = NDArray[np.uint16]

__all__ = [
    "BLOCK",
    "HALF_RING",
    "SEED_BYTES",
    "Ring",
    "add_mask",
    "blocks",
    "change",
    "expand",
    "side_by_side",
    "subtract_mask",
]


def blocks(seed: bytes, length: int) -> Iterator[tuple[slice, Ring]]:
    """Yield the mask of ``length`` elements as (where it belongs, block) pairs.

    A block is good until the next one is made: its memory is used again.
    """
    room, block = _room(length)
    for index, block_seed in enumerate(_block_seeds(seed, length)):
        start = index * BLOCK
        count = min(BLOCK, length - start)
        room.fill(block_seed, 2 * count)
        yield slice(start, start + count), block[:count]


def expand(seed: bytes, length: int) -> Ring:
    """Return the whole mask of ``length`` elements."""
    vector = np.empty(length, np.uint16)
    for where, block in blocks(seed, length):
        vector[where] = block
    return vector


def side_by_side(seeds: Sequence[bytes], length: int) -> Iterator[tuple[int, slice, Ring]]:
    """Yield the masks of many seeds as (which seed, where it belongs, block): the first block of each, then the second.

    So what is done with them can stay in the cache. A block is good until the next one is made.
    """
    trees = [_block_seeds(seed, length) for seed in seeds]
    room, whole = _room(length)
    for index, start in enumerate(range(0, length, BLOCK)):
        where = slice(start, min(start + BLOCK, length))
        block, size = whole[: where.stop - start], 2 * (where.stop - start)
        for which, tree in enumerate(trees):
            room.fill(tree[index], size)
            yield which, where, block


def change(vector: Ring, *, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()) -> None:
    """Add and subtract the masks of many seeds, in place and modulo 2^16."""
    for which, where, block in side_by_side([*add, *subtract], len(vector)):
        tile = vector[where]
        apply = np.add if which < len(add) else np.subtract
        apply(tile, block, out=tile)


def _room(length: int) -> tuple[Room, Ring]:
    """Return room for a block of a mask, and its elements."""
    room = Room(2 * min(BLOCK, length))
    return room, room.bytes.view("<u2")


def _block_seeds(seed: bytes, length: int) -> list[bytes]:
    """Return the seeds of a mask's blocks."""
    size = SEED_BYTES * -(-length // BLOCK)
    room = Room(size)
    room.fill(seed, size)
    seeds = room.bytes.tobytes()
    return [seeds[start : start + SEED_BYTES] for start in range(0, size, SEED_BYTES)]


def add_mask(vector: Ring, seed: bytes) -> None:
    """Add the mask of ``seed`` to ``vector`` in place, modulo 2^16."""
    change(vector, add=[seed])


def subtract_mask(vector: Ring, seed: bytes) -> None:
    """Subtract the mask of ``seed`` from ``vector`` in place, modulo 2^16."""
    change(vector, subtract=[seed])
