"""What training minimises: the mean loss of a batch and its gradient with respect to the model's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from covey_modelkit.graph import GraphWriter


class Loss(NamedTuple):
    """Names of the mean loss (a scalar) and of its gradient with respect to the model's output."""

    value: str
    gradient: str


def cross_entropy(writer: GraphWriter, logits: str, labels: str) -> Loss:
    """Append the mean cross-entropy of softmax(logits) against int64 labels."""
    logp = writer.emit("LogSoftmax", [logits], "loss.logp", axis=1)
    axis = writer.constant([1], np.int64)
    column = writer.emit("Unsqueeze", [labels, axis], "loss.column")
    picked = writer.emit("GatherElements", [logp, column], "loss.picked", axis=1)
    value = writer.emit("Neg", [writer.emit("ReduceMean", [picked], "loss.mean", keepdims=0)], "loss")
    # The gradient is (softmax(logits) − one-hot(labels)) / N.
    classes = writer.constant(writer.shape(logits)[1], np.int64)
    hot = writer.emit("OneHot", [labels, classes, writer.constant([0.0, 1.0], np.float32)], "loss.hot", axis=1)
    error = writer.emit("Sub", [writer.emit("Exp", [logp], "loss.p"), hot], "loss.error")
    return Loss(value, _shared(writer, error, labels))


def binary_cross_entropy(writer: GraphWriter, logits: str, targets: str) -> Loss:
    """Append the mean over all elements of the cross-entropy of sigmoid(logits) against targets in 0..1.

    softplus(z) − z·t is −t·log σ(z) − (1 − t)·log(1 − σ(z)), and does not overflow.
    """
    plus = writer.emit("Softplus", [logits], "loss.plus")
    each = writer.emit("Sub", [plus, writer.emit("Mul", [logits, targets], "loss.on")], "loss.each")
    error = writer.emit("Sub", [writer.emit("Sigmoid", [logits], "loss.p"), targets], "loss.error")
    return Loss(writer.emit("ReduceMean", [each], "loss", keepdims=0), _shared(writer, error, targets))


def mse(writer: GraphWriter, output: str, targets: str) -> Loss:
    """Append the mean squared error over all elements."""
    error = writer.emit("Sub", [output, targets], "loss.error")
    square = writer.emit("Mul", [error, error], "loss.each")
    twice = writer.emit("Mul", [error, writer.constant(2, np.float32)], "loss.twice")
    return Loss(writer.emit("ReduceMean", [square], "loss", keepdims=0), _shared(writer, twice, targets))


def huber(writer: GraphWriter, output: str, targets: str) -> Loss:
    """Append the mean Huber loss over all elements: e²/2 up to |e| = 1, |e| − 1/2 beyond (Huber 1964).

    With c the error cut to ±1, both are c·(e − c/2), and c is the slope.
    """
    error = writer.emit("Sub", [output, targets], "loss.error")
    bounds = [writer.constant(bound, np.float32) for bound in (-1, 1)]
    cut = writer.emit("Clip", [error, *bounds], "loss.cut")
    half = writer.emit("Mul", [cut, writer.constant(0.5, np.float32)], "loss.half")
    each = writer.emit("Mul", [cut, writer.emit("Sub", [error, half], "loss.beyond")], "loss.each")
    return Loss(writer.emit("ReduceMean", [each], "loss", keepdims=0), _shared(writer, cut, targets))


def _shared(writer: GraphWriter, error: str, targets: str) -> str:
    """Divide by the number of targets, as the mean does."""
    count = writer.emit("Cast", [writer.emit("Size", [targets], "loss.size")], "loss.n", to=1)
    return writer.emit("Div", [error, count], "gradient.output")


LOSSES: dict[str, Callable[[GraphWriter, str, str], Loss]] = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "mse": mse,
    "huber": huber,
}
