"""Links, anchors and references of all pages lead somewhere; generated files are fresh."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from docs.tools import generate

ROOT = generate.DOCS.parent
PAGES = sorted([*generate.DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "broker_config" / "README.md"])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link or "000M" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page_and_record() -> None:
    index = (generate.DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(generate.DOCS / link).resolve() for link in LINK.findall(index)}
    for page in [*generate.DOCS.glob("*.md"), *generate.DOCS.glob("*.yaml"), *generate.DOCS.glob("adr/0*.md")]:
        assert page in linked | {generate.DOCS / "README.md"}, page


def test_records_have_the_templates_parts() -> None:
    for page in generate.DOCS.glob("adr/0*.md"):
        text = page.read_text(encoding="utf-8")
        assert re.match(rf"# {int(page.name[:4])}\. .+\n\nDate: \d{{4}}-\d\d-\d\d\. Status: \w+", text), page
        assert {"## Context", "## Decision", "## Consequences"} <= set(text.splitlines()), page


def test_the_threat_model_names_code_and_tests_that_exist() -> None:
    text = (generate.DOCS / "threat-model.md").read_text(encoding="utf-8")
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    code = re.findall(r"`(covey_\w+(?:\.\w+)*)\.(\w+)`", text)
    assert len(tests) > 30
    assert len(code) > 20
    for file, name in tests:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, name)
    for module, name in code:
        assert hasattr(importlib.import_module(module), name), (module, name)
    table = text.partition("## Rules, code and tests")[2].partition("##")[0]
    _, _, *rows = [row for row in table.splitlines() if row.startswith("|")]
    for row in rows:
        assert "::test_" in row, row


def test_nothing_generated_is_stale() -> None:
    assert generate.stale() == []


def test_a_page_without_a_block_or_with_a_strange_one_is_refused() -> None:
    page = "<!-- begin generated: a -->\nold\n<!-- end generated: a -->\n"
    assert generate.fill(page, {"a": "new"}) == "<!-- begin generated: a -->\n\nnew\n\n<!-- end generated: a -->\n"
    for blocks in ({}, {"b": "x"}, {"a": "x", "b": "x"}):
        with pytest.raises(ValueError, match="differ"):
            generate.fill(page, blocks)
