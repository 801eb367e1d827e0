"""Power cuts: the n-th file operation of a piece of code fails, before it is carried out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

OPERATIONS: list[tuple[Any, str]] = [(os, name) for name in ("open", "write", "fsync", "fchmod")]
OPERATIONS += [(Path, name) for name in ("replace", "unlink", "mkdir", "touch", "chmod", "write_text", "write_bytes")]


class PowerCut(BaseException):
    """Not an Exception, so that no handler makes anything good."""


class Cut:
    """While entered, counts file operations and cuts the power at one of them.

    Args:
        monkeypatch: To patch with.
        at: Number of the operation that does not happen, or -1 for none.
        half: The operation is half done: a write stops in its middle. Others do not happen.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, half: bool = False) -> None:
        self._monkeypatch, self._at, self._half = monkeypatch, at, half
        self.count = 0

    def __enter__(self) -> Cut:
        self._context = self._monkeypatch.context()
        patch = self._context.__enter__()
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, self._counted(getattr(owner, name), name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)

    def _counted(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count - 1 == self._at:
                if self._half and name in ("write", "write_text", "write_bytes"):
                    real(args[0], args[1][: len(args[1]) // 2], **options)
                raise PowerCut
            if name == "fsync":
                return None  # there is no real power cut, so nothing has to be flushed
            return real(*args, **options)

        return operation


def steps(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """Count the file operations of a piece of code."""
    with Cut(monkeypatch, -1) as cut:
        work()
    return cut.count
