"""The mask generator: from a 32-byte seed to a vector in Z_2^16.

ChaCha20 by libsodium (``randombytes_buf_deterministic``), block by block: block ``i`` of 65,536 elements comes from a
seed of its own, BLAKE2b keyed with the vector's seed over ``i`` as 8 little-endian bytes, person ``covey-prg-block``.
Blocks of 128 KiB stay in the cache, which makes one call several times faster per byte than one large call, and no
more than a block exists at a time. Elements are the bytes read as little-endian uint16. A committed test vector holds
this fast for other implementations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from nacl.bindings import randombytes_buf_deterministic
from numpy.typing import NDArray

from covey_protocol.digest import digests

SEED_BYTES = 32
BLOCK = 1 << 16  # elements

Ring: TypeAlias = NDArray[np.uint16]


def blocks(seed: bytes, length: int) -> Iterator[tuple[slice, Ring]]:
    """Yield the mask of ``length`` elements as (where it belongs, read-only block) pairs."""
    starts = range(0, length, BLOCK)
    indices = (index.to_bytes(8, "little") for index in range(len(starts)))
    for start, block_seed in zip(starts, digests(indices, key=seed, person=b"covey-prg-block"), strict=True):
        end = min(start + BLOCK, length)
        yield (
            slice(start, end),
            np.frombuffer(randombytes_buf_deterministic(2 * (end - start), block_seed), "<u2"),
        )


def expand(seed: bytes, length: int) -> Ring:
    """Return the whole mask of ``length`` elements."""
    vector = np.empty(length, np.uint16)
    for where, block in blocks(seed, length):
        vector[where] = block
    return vector


def add_mask(vector: Ring, seed: bytes) -> None:
    """Add the mask of ``seed`` to ``vector`` in place, modulo 2^16."""
    for where, block in blocks(seed, len(vector)):
        vector[where] += block


def subtract_mask(vector: Ring, seed: bytes) -> None:
    """Subtract the mask of ``seed`` from ``vector`` in place, modulo 2^16."""
    for where, block in blocks(seed, len(vector)):
        vector[where] -= block
