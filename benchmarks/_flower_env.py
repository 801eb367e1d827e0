"""Flower's environment."""

from __future__ import annotations

from pathlib import Path

from benchmarks._anchor_env import anchor_python


def flower_python() -> Path | None:
    """Return the interpreter that has Flower and scipy; None, and an empty column, when it cannot be installed."""
    return anchor_python("flower", Path(__file__).with_name("constraints-flower.txt"), "flwr", "scipy")
