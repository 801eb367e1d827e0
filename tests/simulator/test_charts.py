"""Charts: the same bytes each time, in the page's colours, with nothing that reaches outside."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from covey_simulator.charts import COLOURS, accuracy_chart, bytes_chart, stages_chart
from covey_simulator.style import STYLE

POINTS = [(1, 0.5), (2, 0.75), (3, 0.9)]


def charts() -> dict[str, str]:
    return {
        "accuracy": accuracy_chart({"this fleet": ("fleet", POINTS), "none": ("calm", POINTS[:2])}, alt="rises"),
        "bytes": bytes_chart(POINTS, POINTS, alt="bars"),
        "stages": stages_chart({f"stage {n}": POINTS for n in range(9)}, alt="stacks"),
    }


def test_the_same_bytes_each_time() -> None:
    assert charts() == charts()


@pytest.mark.parametrize("name", ["accuracy", "bytes", "stages"])
def test_fits_into_a_page(name: str) -> None:
    svg = charts()[name]
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert "http" not in svg
    assert "<style" not in svg
    # Only colours that follow the page, so that both light and dark can be read.
    assert re.findall(r"(?:fill|stroke): (?!none|var)[^;\"]+", svg) == []
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", svg))
    assert used <= set(COLOURS)


def test_ids_do_not_meet_in_one_page() -> None:
    drawn = charts().values()
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in drawn]
    assert sum(map(len, ids)) == len(set.union(*ids))
    for svg, own in zip(drawn, ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own


def test_text_stays_text() -> None:
    texts = [element.text for element in ElementTree.fromstring(charts()["accuracy"]).iter("text")]
    assert {"this fleet", "none", "round"} <= set(texts)


def test_foreign_text_is_only_text() -> None:
    svg = accuracy_chart({"<script>$x$": ("fleet", POINTS)}, alt='"><script>')
    assert "<script" not in svg
    assert "&lt;script&gt;$x$" in svg


def test_one_round_and_many_can_be_drawn() -> None:
    assert "<svg" in accuracy_chart({"a": ("fleet", [(1, 0.5)])}, alt="one")
    assert "<svg" in accuracy_chart({"a": ("fleet", [(n, 0.5) for n in range(1, 300)])}, alt="many")
    assert "<svg" in accuracy_chart({"a": ("fleet", [])}, alt="none")


def test_the_style_sheet_knows_each_colour_twice() -> None:
    for colour in COLOURS:
        assert STYLE.count(f"--{colour}:") == 2


def test_matplotlib_is_imported_late() -> None:
    code = "import sys, covey_simulator.page, covey_simulator.live; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
