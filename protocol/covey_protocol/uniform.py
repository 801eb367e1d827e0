"""Uniform random numbers that are the same on every machine, for the masks of Dropout."""

from __future__ import annotations

import numpy as np

from covey_protocol.bundle_manifest import Float32


def bits(*entropy: int) -> np.random.BitGenerator:
    """Return a source for ``fill``; numpy promises that its raw stream never changes (NEP 19)."""
    return np.random.PCG64(np.random.SeedSequence(entropy))


def fill(source: np.random.BitGenerator, out: Float32) -> None:
    """Fill a contiguous array with multiples of 2^-24 from 0 to below 1."""
    raw = np.asarray(source.random_raw((out.size + 1) // 2), np.dtype("<u8")).view(np.dtype("<u4"))[: out.size]
    np.multiply(raw >> 8, np.float32(2.0**-24), out=out.reshape(-1), casting="same_kind")
