"""Writes what the documents take from the code, or says what is stale.

``python -m docs.tools.generate`` from the checkout's root rewrites ``docs/asyncapi.yaml`` and every block of the pages
that stands between ``<!-- begin generated: NAME -->`` and ``<!-- end generated: NAME -->``; with ``--check`` it writes
nothing and exits 1 when something would change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docs.tools import asyncapi, figures, reputation, settings

DOCS = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- begin generated: (?P<name>[^>]+) -->\n).*?(<!-- end generated: (?P=name) -->)", re.DOTALL)


def fill(page: str, blocks: dict[str, str]) -> str:
    """Return a page with its blocks replaced.

    Raises:
        ValueError: The page lacks one of the blocks, or has one that nobody makes.
    """
    found = [match["name"] for match in _BLOCK.finditer(page)]
    if sorted(found) != sorted(blocks):
        raise ValueError(f"blocks of the page and of the code differ in {sorted(set(found) ^ set(blocks)) or found}")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match['name']]}\n\n{match[3]}", page)


def generated() -> dict[Path, str]:
    """Return the files as they should be."""
    result = {DOCS / "asyncapi.yaml": asyncapi.render()}
    for name, blocks in (
        ("protocol.md", figures.blocks()),
        ("configuration.md", settings.blocks()),
        ("robustness.md", reputation.blocks()),
    ):
        path = DOCS / name
        result[path] = fill(path.read_text(encoding="utf-8"), blocks)
    return result


def stale() -> list[Path]:
    """Return the files that are not as they should be."""
    return [path for path, text in generated().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Run the command."""
    if "--check" in sys.argv[1:]:
        for path in stale():
            print(f"{path.relative_to(DOCS.parent)} is stale; run: python -m docs.tools.generate")
        return 1 if stale() else 0
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
