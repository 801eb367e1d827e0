"""How gradients move weights: SGD with momentum, or Adam, with weight decay and FedProx.

It is plain arithmetic on flat vectors, one float32 operation after the other, so that every processor computes the same
bits from the same gradients; on onnxruntime it would take a node a parameter and operation, and two sets of buffers.
"""

from __future__ import annotations

import math

import numpy as np

from covey_protocol.bundle_manifest import Float32
from covey_protocol.plan import Plan

EPSILON = 1e-8  # of Adam
_TILE = 16_384  # elements: all that is touched at once stays in a small processor's second cache


class Optimiser:
    """Moves a weight vector step by step; its memory starts at rest.

    Args:
        weights: The vector, changed in place; what lies behind the first ``trainable`` weights are buffers, which are
            replaced by what the gradient's vector has in their place.
        trainable: How many weights have a gradient.
        plan: Optimiser, learning rate, momentum, weight decay and proximal term.
    """

    def __init__(self, weights: Float32, trainable: int, plan: Plan) -> None:
        self._weights, self._trainable, self._plan = weights, trainable, plan
        self._slow = np.zeros(trainable, np.float32)
        self._squares = np.zeros(trainable if plan.optimiser == "adam" else 0, np.float32)
        self._start = weights[:trainable].copy() if plan.proximal else None
        self._room = np.empty((2, min(_TILE, max(1, trainable))), np.float32)
        self._steps = 0

    def step(self, gradient: Float32) -> None:
        """Move the weights once.

        Args:
            gradient: Of the loss, then the new buffers, as long as the weights; overwritten.
        """
        self._steps += 1
        move = self._adam if self._plan.optimiser == "adam" else self._sgd
        for start in range(0, self._trainable, _TILE):
            tile = slice(start, min(start + _TILE, self._trainable))
            if self._start is not None:
                # FedProx (Li et al. 2020): the slope of μ/2·‖w − w₀‖² is added to that of the loss.
                away = self._room[0, : tile.stop - start]
                np.subtract(self._weights[tile], self._start[tile], out=away)
                away *= np.float32(self._plan.proximal)
                gradient[tile] += away
            move(tile, gradient[tile])
        self._weights[self._trainable :] = gradient[self._trainable :]

    def _sgd(self, tile: slice, gradient: Float32) -> None:
        """Take v ← m·v + g + λ·w, w ← w − η·v."""
        weights, slow, plan = self._weights[tile], self._slow[tile], self._plan
        if plan.weight_decay:
            decay = self._room[0, : len(weights)]
            np.multiply(weights, np.float32(plan.weight_decay), out=decay)
            gradient += decay
        slow *= np.float32(plan.momentum)
        slow += gradient
        np.multiply(slow, np.float32(plan.learning_rate), out=gradient)
        weights -= gradient

    def _adam(self, tile: slice, gradient: Float32) -> None:
        """Take a step of Adam (Kingma and Ba 2015) with decoupled decay (Loshchilov and Hutter 2019)."""
        weights, slow, squares, plan = self._weights[tile], self._slow[tile], self._squares[tile], self._plan
        one, two = self._room[:, : len(weights)]
        first, second = plan.momentum, plan.beta2
        if plan.weight_decay:
            weights *= np.float32(1 - plan.learning_rate * plan.weight_decay)
        slow *= np.float32(first)
        np.multiply(gradient, np.float32(1 - first), out=one)
        slow += one
        squares *= np.float32(second)
        np.multiply(gradient, gradient, out=one)
        one *= np.float32(1 - second)
        squares += one
        np.sqrt(squares, out=one)
        one *= np.float32(1 / math.sqrt(1 - second**self._steps))
        one += np.float32(EPSILON)
        np.multiply(slow, np.float32(plan.learning_rate / (1 - first**self._steps)), out=two)
        two /= one
        weights -= two
