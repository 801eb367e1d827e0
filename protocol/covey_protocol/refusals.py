"""Counts what was refused, and decides how loudly to say it.

A flood of bad messages must not become a flood of log lines: each cause is said once a place, repetitions are counted
and left to the debug level, and what is merely late is never more than that.
"""

from __future__ import annotations

import logging
from collections import Counter

from covey_protocol.errors import CoveyError, LocalError, StaleError

_PLACES_MAX = 10_000


class Refusals:
    """Refused messages by cause."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._said: set[tuple[str, str]] = set()

    def note(self, error: Exception, place: str) -> int:
        """Count a refusal and return the level to log it at.

        Args:
            error: Why; its ``cause`` is what is counted.
            place: Where, such as a topic; together with the cause it decides whether this is a repetition.
        """
        cause = error.cause if isinstance(error, CoveyError) else "value"
        self.counts[cause] += 1
        key = (cause, place)
        if key in self._said or isinstance(error, StaleError):
            return logging.DEBUG
        if len(self._said) < _PLACES_MAX:
            self._said.add(key)
        return logging.ERROR if isinstance(error, LocalError) else logging.WARNING
