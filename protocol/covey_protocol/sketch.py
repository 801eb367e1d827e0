"""Sketches: k numbers of a vector in Z_2^16 that keep its length and its angles to others, and little else.

A CountSketch (Charikar, Chen and Farach-Colton 2002) with *balanced* buckets: coordinates are taken k at a time, every
run of k is dealt out to the k buckets in a random order, and each coordinate enters its bucket with a random sign. Any
two coordinates share a bucket with probability at most 1/k, as under a hash, but no bucket is fuller than another. For
vectors x and y the inner product of their sketches is an unbiased estimate of that of the vectors, with variance of
about (‖x‖²‖y‖² + ⟨x, y⟩²) / k.

The matrix P follows from one seed ρ that nobody knows before the vectors are fixed. It is linear modulo 2^16: sketches
of masks come off the sketch of a masked vector and leave that of the update (``attestation``).

Order and signs of block ``i`` (``prg.BLOCK`` coordinates) come from the mask generator under the seed H([ρ, k, i]): for
each coordinate 4 bytes, whose lowest 6 bits are replaced by the coordinate's place in its run of k and by whose order
the run is dealt out, then one bit for each place in (bucket, run) order, lowest bit first, which is set for minus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_protocol import cbor, prg
from covey_protocol.digest import digest
from covey_protocol.prg import BLOCK, Ring

K_MIN = 8
K_MAX = 64
_PLACE = 63  # bits of a key that hold a place in a run of at most 64
_EVERYTHING = 0xFFFFFFFF
_ELEMENTS_A_BUCKET = 128


def default_k(dimension: int) -> int:
    """Return how many numbers tell enough about an update of d parameters and no more than needed."""
    return max(K_MIN, min(K_MAX, dimension // _ELEMENTS_A_BUCKET))


class _Block(NamedTuple):
    where: slice
    order: NDArray[np.intp]  # (k, runs): which coordinate of the block stands in which bucket
    signs: Ring  # (k, runs): 1 or -1


class SketchMatrix:
    """The matrix P of one shard in one round.

    Args:
        seed: ρ, 32 bytes.
        length: Coordinates of the vectors.
        k: Buckets, ``K_MIN`` to ``K_MAX``.

    Raises:
        ValueError: ``k`` lies outside.
    """

    def __init__(self, seed: bytes, length: int, k: int) -> None:
        if not K_MIN <= k <= K_MAX:
            raise ValueError(f"a sketch has {K_MIN} to {K_MAX} buckets, not {k}")
        self.seed, self.length, self.k = seed, length, k

    def of(self, vectors: Sequence[Ring]) -> Ring:
        """Return the sketches of vectors, shape (len(vectors), k).

        Raises:
            ValueError: A vector has another length.
        """
        if any(vector.shape != (self.length,) for vector in vectors):
            raise ValueError(f"sketches are of vectors of {self.length} coordinates")
        result = np.zeros((len(vectors), self.k), np.uint16)
        for block in self._blocks():
            for sketch, vector in zip(result, vectors, strict=True):
                np.add(sketch, self._part(vector[block.where], block), out=sketch)
        return result

    def of_directions(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return P·v of vectors of real numbers, shape (len(vectors), k).

        ⟨P·u, P·v⟩ estimates ⟨u, v⟩, so a sketch of an update can be held against directions that were chosen later.

        Raises:
            ValueError: A vector has another length.
        """
        if any(vector.shape != (self.length,) for vector in vectors):
            raise ValueError(f"sketches are of vectors of {self.length} coordinates")
        result = np.zeros((len(vectors), self.k))
        for block in self._blocks():
            signs = block.signs.view(np.int16)
            values = np.zeros(block.order.size, np.float32)
            for place, vector in enumerate(vectors):
                values[: block.where.stop - block.where.start] = vector[block.where]
                result[place] += (values.take(block.order) * signs).sum(axis=1, dtype=np.float64)
        return result

    def of_masks(self, seeds: Sequence[bytes]) -> Ring:
        """Return the sketches of the masks of seeds, shape (len(seeds), k), without a whole mask in memory."""
        result = np.zeros((len(seeds), self.k), np.uint16)
        blocks = self._blocks()
        for which, _, mask in prg.side_by_side(seeds, self.length):
            if which == 0:
                block = next(blocks)
            np.add(result[which], self._part(mask, block), out=result[which])
        return result

    def _part(self, values: Ring, block: _Block) -> Ring:
        """Return what one block of a vector adds to its sketch."""
        lacking = block.order.size - len(values)
        if lacking:
            values = np.concatenate([values, np.zeros(lacking, np.uint16)])
        dealt: Ring = values.take(block.order)
        dealt *= block.signs
        part: Ring = np.add.reduce(dealt, axis=1, dtype=np.uint16)
        return part

    def _blocks(self) -> Iterator[_Block]:
        for index, start in enumerate(range(0, self.length, BLOCK)):
            count = min(BLOCK, self.length - start)
            runs = -(-count // self.k)
            size = runs * self.k
            seed = digest(cbor.encode([self.seed, self.k, index]), person=b"covey-sketch")
            drawn = prg.expand(seed, 2 * size + -(-size // 16))
            keys = drawn[: 2 * size].view("<u4").reshape(runs, self.k)
            keys &= np.uint32(_EVERYTHING - _PLACE)
            keys |= np.arange(self.k, dtype=np.uint32)
            keys.sort(axis=1)
            keys &= np.uint32(_PLACE)
            order = np.empty((self.k, runs), np.intp)  # bucket by bucket in memory: the sums below run along it
            np.add(keys.T, np.arange(0, size, self.k, dtype=np.intp), out=order)
            minus = np.unpackbits(drawn[2 * size :].view(np.uint8), count=size, bitorder="little")
            signs = np.uint16(1) - np.left_shift(minus, 1, dtype=np.uint16)
            yield _Block(slice(start, start + count), order, signs.reshape(self.k, runs))
