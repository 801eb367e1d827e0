"""The model author's bench: an ONNX model in, a bundle that devices can train out."""

from __future__ import annotations

from covey_modelkit.build import build_bundle
from covey_modelkit.presets import mlp, softmax

__all__ = ["build_bundle", "mlp", "softmax"]
