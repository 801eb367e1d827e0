"""Measures a model on held-out data with its bundle's inference graph."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from covey_protocol.bundle import Bundle, Float32
from covey_protocol.bundle_manifest import INPUT
from covey_protocol.errors import ConfigError
from covey_protocol.model import Weights
from covey_protocol.score import Score, checked_targets

_BATCH = 1024


class Evaluator:
    """Loss and accuracy of models of one bundle on one held-out set.

    Args:
        bundle: Gives the graph.
        path: ``.npz`` file with arrays x and, unless the model reproduces its input, y.

    Raises:
        ConfigError: The file cannot be read or does not suit the model, or the graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, path: Path) -> None:
        self._manifest = bundle.manifest
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self._x = np.asarray(arrays["x"], np.float32)
                y = np.asarray(arrays["y"]) if self._manifest.target != INPUT else None
        except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: not an .npz file with arrays x and y: {error}") from error
        if list(self._x.shape[1:]) != list(self._manifest.input.shape) or len(self._x) == 0:
            raise ConfigError(f"{path}: x {self._x.shape} does not suit {self._manifest.name!r}")
        if not np.isfinite(self._x).all():
            raise ConfigError(f"{path}: x holds values that are not finite")
        self._y = checked_targets(self._manifest, self._x, y, str(path))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(bundle.infer, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise ConfigError(f"infer.onnx of {self._manifest.name!r} cannot be loaded: {error}") from error
        self._inputs = [value.name for value in self._session.get_inputs()]

    @property
    def samples(self) -> tuple[Float32, npt.NDArray[Any]]:
        """The held-out samples and their targets."""
        return self._x, self._y

    def __call__(self, weights: Weights) -> tuple[float, float]:
        """Return mean loss, and accuracy in 0..1 (see ``covey_protocol.score``)."""
        views, score = self._manifest.views(weights), Score(self._manifest)
        for start in range(0, len(self._x), _BATCH):
            part = slice(start, start + _BATCH)
            (output,) = self._session.run(None, dict(zip(self._inputs, [*views, self._x[part]], strict=True)))
            score.add(output, self._y[part])
        return score.result()
