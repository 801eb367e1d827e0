"""ChaCha20 keystreams by libsodium, written straight into memory that is used again.

PyNaCl's public binding allocates and clears a buffer, fills it, and copies it into ``bytes``: for masks that is half as
much time again as the cipher takes. The same C function is reached here through PyNaCl's own module without those
detours. That module is private, so where it is not as expected the public binding does the work; a test holds both to
the same bytes. Nothing else in Covey touches the private module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from nacl import (
    bindings,
)  # importing it also lets libsodium choose the processor's fastest code, without which it crawls
from numpy.typing import NDArray

SEED_BYTES = 32
_ALIGNMENT = 64  # bytes; vector stores that straddle cache lines cost a few per cent


def private_module() -> Any:
    """Return PyNaCl's cffi module, or None where it does not offer what is used here."""
    try:
        sodium = import_module("nacl._sodium")
    except ImportError:
        return None
    usable = hasattr(getattr(sodium, "lib", None), "randombytes_buf_deterministic")
    return sodium if usable and hasattr(getattr(sodium, "ffi", None), "from_buffer") else None


SODIUM = private_module()


class Room:
    """Memory for one keystream at a time; the next one overwrites it.

    Args:
        size: Bytes of the longest keystream.
        sodium: PyNaCl's private module; None goes through the public binding.
    """

    def __init__(self, size: int, sodium: Any = SODIUM) -> None:
        whole = np.empty(size + _ALIGNMENT, np.uint8)
        start = -whole.ctypes.data % _ALIGNMENT
        self.bytes: NDArray[np.uint8] = whole[start : start + size]
        self._generate = None
        if sodium is not None:
            self._generate = sodium.lib.randombytes_buf_deterministic
            self._pointer = sodium.ffi.from_buffer("unsigned char[]", self.bytes, require_writable=True)

    def fill(self, seed: bytes, size: int) -> None:
        """Make the first ``size`` bytes ChaCha20's keystream (RFC 8439, counter 0, nonce ``LibsodiumDRG``) of a seed.

        Raises:
            ValueError: The seed has not 32 bytes, or the keystream has no room.
        """
        if len(seed) != SEED_BYTES or not 0 <= size <= len(self.bytes):
            raise ValueError(f"{size} bytes from a seed of {len(seed)} into room for {len(self.bytes)}")
        if self._generate is None:
            self.bytes[:size] = np.frombuffer(bindings.randombytes_buf_deterministic(size, seed), np.uint8)
        else:
            self._generate(self._pointer, size, seed)
