"""The models that training is measured with, as lists of layers that both sides build from, with the same weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BATCH, STEPS, RATE, MOMENTUM = 32, 50, 0.01, 0.9

Layer = tuple[str | int, ...]

NETS: dict[str, tuple[tuple[int, ...], list[Layer]]] = {
    "mlp-64-64-10": ((64,), [("linear", 64, 64), ("relu",), ("linear", 64, 10)]),
    "mlp-784-128-10": ((784,), [("linear", 784, 128), ("relu",), ("linear", 128, 10)]),
    # in, out, kernel, stride, padding
    "cnn": (
        (1, 28, 28),
        [
            ("conv2d", 1, 8, 3, 1, 1),
            ("relu",),
            ("pool2d", 2),
            ("conv2d", 8, 16, 3, 1, 1),
            ("relu",),
            ("pool2d", 2),
            ("flatten",),
            ("linear", 784, 10),
        ],
    ),
    "cnn-1d": (
        (3, 128),
        [
            ("conv1d", 3, 16, 5, 2, 2),
            ("relu",),
            ("conv1d", 16, 32, 5, 2, 2),
            ("relu",),
            ("flatten",),
            ("linear", 1024, 6),
        ],
    ),
}


def weights(name: str) -> list[NDArray[np.float32]]:
    """Return weight and bias of each layer that has some."""
    rng, found = np.random.default_rng(1), []
    for kind, *sizes in NETS[name][1]:
        numbers = [int(size) for size in sizes]
        if kind == "linear":
            shape: tuple[int, ...] = (numbers[1], numbers[0])
        elif str(kind).startswith("conv"):
            shape = (numbers[1], numbers[0], *[numbers[2]] * int(str(kind)[4]))
        else:
            continue
        spread = (2 / np.prod(shape[1:])) ** 0.5
        found += [(rng.standard_normal(shape) * spread).astype(np.float32), np.zeros(shape[0], np.float32)]
    return found


def batch(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the batch that every step is taken on."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((BATCH, *NETS[name][0])).astype(np.float32)
    return x, rng.integers(0, 6, BATCH)
