"""The generated parts of ``docs/robustness.md``: the states of a device's reputation, and the rule's parameters."""

from __future__ import annotations

import inspect
import re

from docs.tools.figures import table

from covey_aggregator.reputation import TABLE, Settings
from covey_protocol.machine import mermaid


def meanings() -> dict[str, str]:
    """Return what the struct's docstring says of each parameter."""
    found: dict[str, str] = {}
    last = ""
    for line in inspect.cleandoc(Settings.__doc__ or "").partition("Attributes:")[2].splitlines():
        match = re.match(r"^    (?P<name>[a-z_]+): (?P<words>.+)$", line)
        if match:
            last = match["name"]
            found[last] = match["words"]
        elif line.strip():
            found[last] += " " + line.strip()
    return found


def parameters() -> str:
    """Return every parameter with its value and what it is for."""
    says, values = meanings(), Settings()
    if set(says) != set(Settings.__struct_fields__):
        raise ValueError("the parameters of reputations and their descriptions differ")
    return table(
        ["parameter", "value", "what it is for"],
        [[f"`{name}`", f"{getattr(values, name):g}", says[name]] for name in Settings.__struct_fields__],
    )


def blocks() -> dict[str, str]:
    """Return every generated block of the page by name."""
    return {"diagram reputation": f"```mermaid\n{mermaid(TABLE)}\n```", "reputation parameters": parameters()}
