"""What devices and aggregator must agree on: messages, masks, sketches, state machines; never any I/O."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("covey")
