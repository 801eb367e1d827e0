"""The report's charts as inline SVG that follows the page's light or dark colours.

matplotlib cannot write CSS variables, so everything is drawn in colours that stand for one and are replaced by it.
Text stays text: it can be read aloud, searched and copied. The same input gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# The page's style sheet gives each name a value for light and for dark screens.
COLOURS = ("ink", "grid", "fleet", "bare", "calm", "up", "down", *(f"stage{index}" for index in range(8)))
_STANDS_FOR = {name: f"#0a0b{index:02x}" for index, name in enumerate(COLOURS)}
STAGE_COLOURS = 8

Series = Sequence[tuple[int, float]]


def accuracy_chart(lines: Mapping[str, tuple[str, Series]], *, alt: str) -> str:
    """Draw accuracy by round.

    Args:
        lines: Legend text to (colour, points); the first is drawn strongest and on top.
        alt: What the chart says, in words.
    """
    with _figure("accuracy", (9.0, 3.5), alt) as (axes, out):
        styles = (("-", "o", 2.4), ("--", "s", 1.6), (":", "^", 1.8))
        for order, ((text, (colour, points)), (dash, marker, width)) in enumerate(
            zip(lines.items(), styles, strict=False)
        ):
            rounds = [number for number, _ in points]
            axes.plot(
                rounds,
                [value for _, value in points],
                linestyle=dash,
                marker=marker if len(rounds) <= 50 else "",
                markersize=4.5,
                linewidth=width,
                color=_STANDS_FOR[colour],
                label=text,
                zorder=5 - order,
            )
        values = [value for _, points in lines.values() for _, value in points]
        lowest = min(values, default=0.0)
        axes.set_ylim(max(0.0, math.floor(10 * lowest - 0.3) / 10), 1.0)
        _decorate(
            axes, "accuracy on held-out samples", {number for _, points in lines.values() for number, _ in points}
        )
    return out[0]


def reputation_chart(lines: Mapping[str, tuple[str, Series]], *, alt: str) -> str:
    """Draw every device's reputation by round, a thin line each.

    Args:
        lines: Device name to (colour, points).
        alt: What the chart says, in words.
    """
    with _figure("reputation", (9.0, 3.0), alt) as (axes, out):
        for order, wanted in enumerate(("calm", "bare")):
            label = {"calm": "honest", "bare": "malicious"}[wanted]
            for points in (points for colour, points in lines.values() if colour == wanted):
                axes.plot(
                    [number for number, _ in points],
                    [value for _, value in points],
                    linestyle="-" if wanted == "calm" else "--",
                    linewidth=0.8,
                    alpha=0.55,
                    color=_STANDS_FOR[wanted],
                    label=label,
                    zorder=2 + order,
                )
                label = "_"  # one entry in the legend for all of a kind
        axes.set_ylim(-0.02, 1.02)
        _decorate(axes, "reputation", {number for _, points in lines.values() for number, _ in points})
    return out[0]


def share_chart(lines: Mapping[str, tuple[str, Series]], *, alt: str) -> str:
    """Draw shares by round.

    Args:
        lines: Legend text to (colour, points).
        alt: What the chart says, in words.
    """
    with _figure("shares", (9.0, 2.4), alt) as (axes, out):
        for (text, (colour, points)), dash in zip(lines.items(), ("-", "--", ":"), strict=False):
            axes.plot(
                [number for number, _ in points],
                [value for _, value in points],
                linestyle=dash,
                linewidth=1.8,
                color=_STANDS_FOR[colour],
                label=text,
            )
        axes.set_ylim(-0.02, 1.02)
        _decorate(axes, "share of devices", {number for _, points in lines.values() for number, _ in points})
    return out[0]


def bytes_chart(up: Series, down: Series, *, alt: str) -> str:
    """Draw bytes per device and round, sent beside received, in kB."""
    with _figure("bytes", (4.8, 3.3), alt) as (axes, out):
        for offset, text, colour, points in ((-0.2, "sent", "up", up), (0.2, "received", "down", down)):
            axes.bar(
                [number + offset for number, _ in points],
                [value / 1000 for _, value in points],
                width=0.38,
                color=_STANDS_FOR[colour],
                label=text,
            )
        _decorate(axes, "kB per device", {number for number, _ in up})
    return out[0]


def stages_chart(stages: Mapping[str, Series], *, alt: str) -> str:
    """Draw seconds by round, one piece of a bar for each stage; later stages stand on earlier ones."""
    with _figure("stages", (4.8, 3.3), alt) as (axes, out):
        height: dict[int, float] = {}
        for index, (stage, points) in enumerate(stages.items()):
            axes.bar(
                [number for number, _ in points],
                [value for _, value in points],
                bottom=[height.get(number, 0.0) for number, _ in points],
                width=0.7,
                color=_STANDS_FOR[f"stage{index % STAGE_COLOURS}"],
                label=stage,
            )
            for number, value in points:
                height[number] = height.get(number, 0.0) + value
        _decorate(axes, "seconds", set(height), columns=4)
    return out[0]


@contextmanager
def _figure(name: str, size: tuple[float, float], alt: str) -> Iterator[tuple[Any, list[str]]]:
    """Give axes to draw on; afterwards the list holds the SVG."""
    # Imported here: it takes half a second, and only those who want a page need it. No pyplot: nothing global is made.
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    settings: dict[Any, Any] = {
        "svg.hashsalt": f"covey-{name}",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 8.5,
    }
    out: list[str] = []
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    out.append(_inline(buffer.getvalue(), name, alt))


def _decorate(axes: Any, label: str, rounds: set[int], *, columns: int = 3) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    ink, grid = _STANDS_FOR["ink"], _STANDS_FOR["grid"]
    axes.set_xlabel("round", color=ink)
    axes.set_ylabel(label, color=ink)
    axes.tick_params(colors=ink, length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=grid, linewidth=0.7)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(grid)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, steps=[1, 2, 5, 10]))
    if rounds:
        axes.set_xlim(min(rounds) - 0.6, max(rounds) + 0.6)
    if len(axes.get_legend_handles_labels()[0]):
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=columns,
            frameon=False,
            labelcolor=ink,
            handlelength=2.2,
            columnspacing=1.4,
        )


def _inline(svg: str, name: str, alt: str) -> str:
    """Make a stand-alone SVG fit to stand in a page: no addresses, names of its own, the page's colours and type."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # It styles `*`, which in a page is everything.
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg role="img" aria-label="{html.escape(alt)}" {box.group()}>', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;\s*", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for colour, code in _STANDS_FOR.items():
        svg = svg.replace(code, f"var(--{colour})")
    return svg.strip()
