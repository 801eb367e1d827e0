"""Transition tables: the one way in which state machines of this package change state.

A table is data: state → event → next state. The documents draw it, tests walk it, and an event that a state has no row
for ends in an error that names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from covey_protocol.errors import StaleError

S = TypeVar("S", bound=StrEnum)


class Machine(Generic[S]):
    """Holds a state and moves it along a table."""

    def __init__(self, table: Mapping[S, Mapping[str, S]], start: S, name: str) -> None:
        self._table = table
        self._name = name
        self.state = start

    def allows(self, event: str) -> bool:
        """Say whether the present state has a row for the event."""
        return event in self._table.get(self.state, {})

    def require(self, event: str) -> None:
        """Refuse an event that the present state has no row for.

        Raises:
            StaleError: Naming machine, event and state: the event is late, early or a repetition.
        """
        if not self.allows(event):
            raise StaleError(f"{self._name}: {event} has no place in state {self.state}", cause="stage")

    def advance(self, event: str) -> None:
        """Move along the table; errors as ``require``."""
        self.require(event)
        self.state = self._table[self.state][event]


def mermaid(table: Mapping[S, Mapping[str, S]]) -> str:
    """Return the table as a Mermaid state diagram, for the documents."""
    lines = ["stateDiagram-v2"]
    for state, row in table.items():
        lines += [f"    {state} --> {target}: {event}" for event, target in row.items()]
    return "\n".join(lines)
