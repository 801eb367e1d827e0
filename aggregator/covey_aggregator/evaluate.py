"""Measures a model on held-out data with its bundle's inference graph."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from covey_protocol.bundle import Bundle, Float32, Int64
from covey_protocol.errors import ConfigError
from covey_protocol.model import Weights

_BATCH = 1024


class Evaluator:
    """Loss and accuracy of models of one bundle on one held-out set.

    Args:
        bundle: Gives the graph.
        path: ``.npz`` file with arrays x and y.

    Raises:
        ConfigError: The file cannot be read or does not suit the model, or the graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, path: Path) -> None:
        self._manifest = bundle.manifest
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self._x = np.asarray(arrays["x"], np.float32)
                self._y = np.asarray(arrays["y"], np.int64)
        except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: not an .npz file with arrays x and y: {error}") from error
        if list(self._x.shape[1:]) != list(self._manifest.input.shape) or self._y.shape != self._x.shape[:1]:
            raise ConfigError(f"{path}: x {self._x.shape} and y {self._y.shape} do not suit {self._manifest.name!r}")
        if len(self._y) == 0 or self._y.min() < 0 or self._y.max() >= self._manifest.classes:
            raise ConfigError(f"{path}: y must hold labels from 0 to {self._manifest.classes - 1}")
        if not np.isfinite(self._x).all():
            raise ConfigError(f"{path}: x holds values that are not finite")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(bundle.infer, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise ConfigError(f"infer.onnx of {self._manifest.name!r} cannot be loaded: {error}") from error
        self._inputs = [value.name for value in self._session.get_inputs()]

    @property
    def samples(self) -> tuple[Float32, Int64]:
        """The held-out samples and their labels."""
        return self._x, self._y

    def __call__(self, weights: Weights) -> tuple[float, float]:
        """Return mean cross-entropy in nats, and accuracy in 0..1."""
        views = self._manifest.views(weights)
        loss, correct = 0.0, 0
        for start in range(0, len(self._y), _BATCH):
            x, y = self._x[start : start + _BATCH], self._y[start : start + _BATCH]
            (logits,) = self._session.run(None, dict(zip(self._inputs, [*views, x], strict=True)))
            shifted = logits - logits.max(axis=1, keepdims=True)
            partition = np.log(np.exp(shifted).sum(axis=1))
            loss += float((partition - shifted[np.arange(len(y)), y]).sum())
            correct += int((logits.argmax(axis=1) == y).sum())
        return loss / len(self._y), correct / len(self._y)
