"""How good a model is on some data: its mean loss, and a share from 0 to 1 that stands for how much it gets right.

- Labels (cross-entropy): the share of samples whose label has the largest logit.
- Yes or no (binary cross-entropy): the share of targets on whose side of one half the model is.
- Numbers (mean squared error, Huber): the share of the targets' variance that the model explains (R²), at least 0. A
  model that always gives the mean explains nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from covey_protocol.bundle_manifest import INPUT, LABELS, BundleManifest, Float32
from covey_protocol.errors import ConfigError

Float64 = npt.NDArray[np.float64]


class Score:
    """Sums over batches.

    Args:
        manifest: Of the model.
    """

    def __init__(self, manifest: BundleManifest) -> None:
        self._loss_name, self._size = manifest.loss, int(np.prod(manifest.output))
        self._samples, self._loss, self._right = 0, 0.0, 0
        self._error, self._sum, self._square = 0.0, np.zeros(self._size), np.zeros(self._size)

    def add(self, outputs: Float32, targets: npt.NDArray[Any]) -> None:
        """Take in a batch: what ``infer.onnx`` says, and what is true."""
        self._samples += len(outputs)
        if self._loss_name == "cross-entropy":
            highest = outputs.max(axis=1)
            partition = np.exp(outputs - highest[:, None]).sum(axis=1, dtype=np.float64)
            self._loss += float((np.log(partition) + highest - outputs[np.arange(len(targets)), targets]).sum())
            self._right += int((outputs.argmax(axis=1) == targets).sum())
            return
        found = outputs.reshape(len(outputs), -1).astype(np.float64)
        truth = targets.reshape(len(targets), -1).astype(np.float64)
        if self._loss_name == "binary-cross-entropy":
            self._loss += float((np.logaddexp(0, found) - found * truth).sum()) / self._size
            self._right += int(((found > 0) == (truth >= 0.5)).sum())
            return
        error = found - truth
        squared = float(np.square(error).sum())
        self._error += squared
        self._sum += truth.sum(axis=0)
        self._square += np.square(truth).sum(axis=0)
        if self._loss_name == "huber":
            cut = np.clip(error, -1, 1)
            squared = float((cut * (error - cut / 2)).sum())
        self._loss += squared / self._size

    def result(self) -> tuple[float, float]:
        """Return mean loss and the share that the model gets right."""
        if self._loss_name == "cross-entropy":
            return self._loss / self._samples, self._right / self._samples
        if self._loss_name == "binary-cross-entropy":
            return self._loss / self._samples, self._right / (self._samples * self._size)
        spread = float((self._square - np.square(self._sum) / self._samples).sum())
        # Rounding leaves a little spread where there is none.
        if spread <= 1e-12 * float(self._square.sum()):
            return self._loss / self._samples, float(self._error == 0)
        return self._loss / self._samples, min(1.0, max(0.0, 1 - self._error / spread))


def checked_targets(manifest: BundleManifest, x: Float32, y: npt.NDArray[Any] | None, where: str) -> npt.NDArray[Any]:
    """Return what a model is trained towards, for samples that are sound.

    Args:
        manifest: Of the model.
        x: The samples.
        y: Labels or numbers as they were read; not looked at where a model reproduces its input.
        where: What names the data in an error.

    Raises:
        ConfigError: y does not suit the model.
    """
    if manifest.target == INPUT:
        return x
    if y is None:
        raise ConfigError(f"{where}: has no array 'y', which model {manifest.name!r} is trained towards")
    if manifest.target == LABELS:
        return _checked_labels(manifest.classes, len(x), y, where)
    wanted = (len(x), *manifest.output)
    if y.shape == wanted[:1] and wanted[1:] == (1,):
        y = y[:, None]
    if y.shape != wanted:
        raise ConfigError(f"{where}: y has shape {y.shape}, the model wants {wanted}")
    if not (np.issubdtype(y.dtype, np.floating) or np.issubdtype(y.dtype, np.integer)):
        raise ConfigError(f"{where}: y has type {y.dtype}, must be numbers; use y.astype('float32')")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(y, np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).reshape(len(x), -1).all(axis=1))[0])
        raise ConfigError(f"{where}: y holds NaN or infinite values, first in sample {row}")
    if manifest.loss == "binary-cross-entropy" and (values.min() < 0 or values.max() > 1):
        raise ConfigError(f"{where}: y holds values outside 0 to 1, which binary cross-entropy cannot aim at")
    return values


def _checked_labels(classes: int, samples: int, y: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    if not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{where}: y has type {y.dtype}, must be whole numbers; use y.astype('int64')")
    if y.shape != (samples,):
        raise ConfigError(f"{where}: y has shape {y.shape}, must be one label for each of {samples} samples")
    outside = np.flatnonzero((y < 0) | (y >= classes))
    if len(outside):
        row = int(outside[0])
        raise ConfigError(f"{where}: y holds label {y[row]} in sample {row}, labels are 0 to {classes - 1}")
    return np.ascontiguousarray(y, np.int64)
