"""Where the time of quantising and masking goes: the same step as ``mask`` in ``_ours``, taken apart."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ours import CONTEXT, METRICS, Mask
from benchmarks._worker import serve
from covey_protocol import masking, prg, ring
from covey_protocol.prg import Ring

CIPHER = "bare ChaCha20: the masks and the dither"
ADDS = "bare additions of the masks"
WHOLE = "quantise + mask"
PARTS = ("pair seeds", "norm", "rounding, with its dither", "masks", "copy to bytes")


class MaskProfile(Mask):
    """``Mask`` in parts, each on a clock of its own, and behind it the bare primitives on as many bytes."""

    def __init__(self, dimension: int, peers: int) -> None:
        super().__init__(dimension, peers)
        self._seconds: dict[str, float] = {}

    def run(self, update: NDArray[np.float32]) -> bytes:
        """Do what ``Party.masked`` does."""
        self._seconds = {}
        me, others, scale = self._me, self._others, self._scale
        with self._clock("norm"):
            factor, _ = ring.clip_factor(update, scale.clip)
        with self._clock("rounding, with its dither"):
            vector = ring.encode(update, METRICS, scale, os.urandom(prg.SEED_BYTES), factor)
        with self._clock("pair seeds"):
            pairs = [
                (other.place, masking.pair_seed(me.key, me.pair_party, other.pair_party, CONTEXT)) for other in others
            ]
        with self._clock("masks"):
            masking.mask(vector, masking.self_mask_seed(me.secrets.self_mask), pairs, me.place)
        with self._clock("copy to bytes"):
            result = vector.astype("<u2", copy=False).tobytes()
        self._seconds[WHOLE] = sum(self._seconds.values())
        self._bare(vector.copy(), len(pairs) + 1)
        return result

    def check(self, result: bytes) -> dict[str, Any]:
        """Return the parts' seconds beside the facts."""
        return {**super().check(result), "parts": self._seconds}

    def _bare(self, vector: Ring, masks: int) -> None:
        room, block = prg._room(len(vector))
        tiles = [vector[start : start + prg.BLOCK] for start in range(0, len(vector), prg.BLOCK)]
        with self._clock(CIPHER):
            for tile in tiles:
                for _ in range(masks + 1):
                    room.fill(CONTEXT.ljust(prg.SEED_BYTES), 2 * len(tile))
        with self._clock(ADDS):
            for tile in tiles:
                for _ in range(masks):
                    np.add(tile, block[: len(tile)], out=tile)

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[part] = time.perf_counter() - began


if __name__ == "__main__":
    serve({"mask-profile": MaskProfile}, {})
