"""What devices and aggregator must agree on: messages, masks, sketches and state machines, without any I/O."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("covey")
