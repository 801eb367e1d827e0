"""The mask generator: from a 32-byte seed to a vector in Z_2^16.

ChaCha20 by libsodium (``randombytes_buf_deterministic``) in two levels (the tree of Goldreich, Goldwasser and Micali
1986, two high): the seed's keystream is cut into 32-byte seeds, and block ``i`` of 32,768 elements is the keystream of
seed ``i``. Each seed of either level is used for one keystream, so that the whole is as good a generator as ChaCha20.
Blocks of 64 KiB stay in the cache, which makes one of them several times faster per byte than one large call, and
blocks can be made in any order. Elements are the bytes read as little-endian uint16. A committed test vector holds this
fast for other implementations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from covey_protocol.chacha import SEED_BYTES, Room

BLOCK = 1 << 15  # elements

Ring: TypeAlias = NDArray[np.uint16]

__all__ = ["BLOCK", "SEED_BYTES", "Ring", "add_mask", "blocks", "change", "expand", "subtract_mask"]


def blocks(seed: bytes, length: int, room: Room | None = None) -> Iterator[tuple[slice, Ring]]:
    """Yield the mask of ``length`` elements as (where it belongs, block) pairs.

    A block is good until the next one is made, in the same room: its memory is used again.

    Args:
        seed: 32 bytes.
        length: Elements of the mask.
        room: Where blocks are made, ``room_for(length)``; by default one for this mask alone.
    """
    starts = range(0, length, BLOCK)
    tree = Room(SEED_BYTES * len(starts))
    tree.fill(seed, SEED_BYTES * len(starts))
    seeds = tree.bytes.tobytes()
    room = room or room_for(length)
    block = room.bytes.view("<u2")
    for index, start in enumerate(starts):
        count = min(BLOCK, length - start)
        room.fill(seeds[SEED_BYTES * index : SEED_BYTES * (index + 1)], 2 * count)
        yield slice(start, start + count), block[:count]


def room_for(length: int) -> Room:
    """Return room for the blocks of masks of ``length`` elements."""
    return Room(2 * min(BLOCK, length))


def expand(seed: bytes, length: int) -> Ring:
    """Return the whole mask of ``length`` elements."""
    vector = np.empty(length, np.uint16)
    for where, block in blocks(seed, length):
        vector[where] = block
    return vector


def change(vector: Ring, *, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()) -> None:
    """Add and subtract the masks of many seeds, in place and modulo 2^16.

    All masks go over one block of the vector before the next one is touched, so that it stays in the cache.
    """
    room = room_for(len(vector))
    changes: list[tuple[np.ufunc, bytes]] = [(np.add, seed) for seed in add]
    changes += [(np.subtract, seed) for seed in subtract]
    masks = [(apply, blocks(seed, len(vector), room)) for apply, seed in changes]
    for start in range(0, len(vector), BLOCK):
        tile = vector[start : start + BLOCK]
        for apply, mask in masks:
            _, block = next(mask)
            apply(tile, block, out=tile)


def add_mask(vector: Ring, seed: bytes) -> None:
    """Add the mask of ``seed`` to ``vector`` in place, modulo 2^16."""
    change(vector, add=[seed])


def subtract_mask(vector: Ring, seed: bytes) -> None:
    """Subtract the mask of ``seed`` from ``vector`` in place, modulo 2^16."""
    change(vector, subtract=[seed])
