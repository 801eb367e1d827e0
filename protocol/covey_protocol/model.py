"""Models on the wire: float32 parameters, and 16-bit steps between them.

The server's step is rounded to 16 bits *before* it is applied, so a device that holds the last model fetches two bytes
a parameter and reaches exactly the new one: ``new = old + scale · q`` in float32, one multiplication and one addition a
parameter, which IEEE 754 makes the same on every processor. The digest of the result is checked all the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from covey_protocol.digest import content_digest
from covey_protocol.errors import MalformedError

Weights = NDArray[np.float32]
_SCALE_BYTES = 4
_LARGEST = 32767


def to_bytes(weights: Weights) -> bytes:
    """Return parameters as little-endian float32."""
    return weights.astype("<f4", copy=False).tobytes()


def from_bytes(data: bytes) -> Weights:
    """Read parameters.

    Raises:
        MalformedError: Their number is not whole, or one is not finite.
    """
    if len(data) % 4:
        raise MalformedError(f"a model of {len(data)} bytes is not a row of float32")
    weights = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(weights).all():
        raise MalformedError("the model holds values that are not finite")
    return weights


def model_digest(weights: Weights) -> bytes:
    """Return the digest that names a model."""
    return content_digest(to_bytes(weights))


def make_delta(step: Weights) -> bytes:
    """Round a step to 16 bits: float32 scale, then one int16 a parameter, all little-endian."""
    largest = float(np.abs(step).max(initial=0.0))
    scale = np.float32(largest / _LARGEST) or np.float32(1.0)
    steps = np.clip(np.rint(step / scale), -_LARGEST, _LARGEST).astype("<i2")
    return b"".join((np.asarray(scale, "<f4").tobytes(), steps.tobytes()))


def apply_delta(base: Weights, delta: bytes) -> Weights:
    """Return the model that a delta leads to.

    Raises:
        MalformedError: The delta is not one for a model of this size, or something in it or in the result is not
            finite.
    """
    if len(delta) != _SCALE_BYTES + 2 * len(base):
        raise MalformedError(f"a delta of {len(delta)} bytes for a model of {len(base)} parameters")
    scale = np.frombuffer(delta[:_SCALE_BYTES], "<f4")[0]
    if not np.isfinite(scale):
        raise MalformedError("the delta's scale is not finite")
    steps = np.frombuffer(delta[_SCALE_BYTES:], "<i2").astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        result: Weights = base + steps * np.float32(scale)
    if not np.isfinite(result).all():
        raise MalformedError("the delta leads to a model with values that are not finite")
    return result
