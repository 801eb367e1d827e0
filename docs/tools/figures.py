"""The generated parts of ``docs/protocol.md``: state diagrams, topics, thresholds, sizes of messages."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from docs.tools.catalogue import CATALOGUE, context_of
from tests.protocol import rig

from covey_aggregator import coordinator
from covey_protocol import epoch_member, epoch_opening, round_table
from covey_protocol.machine import mermaid
from covey_protocol.thresholds import ROSTER_MAX, ROSTER_MIN, accepted_min, colluders, threshold

SIZES_FOR = (6, 10, 16, 32)
DIAGRAMS: Mapping[str, Mapping[Any, Mapping[str, Any]]] = {
    "epoch-member": epoch_member.TABLE,
    "epoch-opening": epoch_opening.TABLE,
    "device-round": round_table.DEVICE_TABLE,
    "group-round": round_table.GROUP_TABLE,
    "coordinator": coordinator.TABLE,
}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def diagram(name: str) -> str:
    """Return a transition table as a Mermaid block."""
    return f"```mermaid\n{mermaid(DIAGRAMS[name])}\n```"


def topics_table() -> str:
    """Return every topic with its payload and what its signature is bound to."""
    rows = []
    for entry in CATALOGUE:
        payload = f"`{entry.payload.__name__}`" if entry.payload else "pieces"
        if entry.inside:
            payload += f", sealed inside: `{entry.inside.__name__}`"
        address = entry.address.removeprefix("covey/v1/{fleet}/").replace("dev/{device}/", "")
        kept = ", retained" if entry.retained else ""
        rows.append([f"`{address}`", payload + kept, entry.about, context_of(entry)])
    return table(["topic", "payload", "what it says", "the signature also covers"], rows)


def thresholds_table() -> str:
    """Return the thresholds of every roster size."""
    rows = []
    for n in range(ROSTER_MIN, ROSTER_MAX + 1):
        c, t, a_min = colluders(n), threshold(n), accepted_min(n)
        rows.append([n, c, t, a_min, 2 * t - (n + c), n - max(t, a_min)])
    return table(["n", "c", "t", "a_min", "2t - (n + c)", "may fall silent"], rows)


@functools.cache
def message_sizes(n: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Run a round of ``n`` devices and return, by way and kind, the largest message and how many a device handles."""
    group = rig.Rig(n=n)
    group.run()
    sizes: dict[tuple[str, str], list[int]] = {}
    for way, name, kind, data in group.wire:
        if name == group.names[0]:
            sizes.setdefault((way, kind), []).append(len(data))
    return {key: (max(found), len(found)) for key, found in sizes.items()}


def sizes_table() -> str:
    """Return what one device sends and receives in a round, by roster size."""
    by_size = {n: message_sizes(n) for n in SIZES_FOR}
    order = list(by_size[SIZES_FOR[0]])
    rows: list[list[object]] = []
    totals = {"up": dict.fromkeys(SIZES_FOR, 0), "down": dict.fromkeys(SIZES_FOR, 0)}
    for way, kind in order:
        if way == "vector":
            continue
        sizes = [by_size[n][way, kind][0] for n in SIZES_FOR]
        for n, size in zip(SIZES_FOR, sizes, strict=True):
            totals[way][n] += size
        rows.append([f"{kind.upper()} {'↑' if way == 'up' else '↓'}", *(f"{size:,}" for size in sizes)])
    for way, arrow in (("up", "↑"), ("down", "↓")):
        rows.append([f"**together {arrow}**", *(f"**{totals[way][n]:,}**" for n in SIZES_FOR)])
    return table(["message", *(f"n = {n}" for n in SIZES_FOR)], rows)


def blocks() -> dict[str, str]:
    """Return every generated block of the page by name."""
    result = {f"diagram {name}": diagram(name) for name in DIAGRAMS}
    return result | {"topics": topics_table(), "thresholds": thresholds_table(), "sizes": sizes_table()}
