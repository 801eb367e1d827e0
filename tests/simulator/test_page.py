"""report.html: alone in one file, complete, and safe with foreign text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from tests.simulator.records import report, rounds

from covey_aggregator.rules.multi_krum import MultiKrum
from covey_simulator.page import render_page, write_page
from covey_simulator.records import DeviceRecord
from covey_simulator.scenario import demo_scenario

VOID = {"meta", "path", "use", "link", "br", "img"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def test_asks_the_network_for_nothing() -> None:
    page = render_page(report())
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe|object)|@import|\bsrc=", page)


def test_holds_charts_and_their_numbers_as_tables() -> None:
    page = render_page(report())
    assert page.count('<svg role="img" aria-label="') == 3
    assert "0.800 in round 1 to 0.930 in round 10" in page
    rounds_table, devices_table, config, versions = Reader(page).tables
    head, *rows = rounds_table
    assert len(rows) == 10
    last = dict(zip(head, rows[-1], strict=True))
    assert (last["round"], last["accuracy"], last["undefended (clear)"], last["no attack (clear)"]) == (
        *("10", "0.930"),
        *("0.500", "0.960"),
    )
    assert (last["sent / device"], last["received / device"], last["dropped"]) == ("9.0 kB", "21.0 kB", "1")
    assert [row[1] for row in devices_table[1:]] == ["malicious"] * 6 + ["honest"] * 24
    assert ["attack.kind", "sign-flip"] in config
    assert ["masking", "true"] in config
    assert "python" in [row[0] for row in versions]


@pytest.mark.parametrize(
    ("accuracies", "scale", "kind"), [([0.9] * 10, 1, "passed"), ([0.5] * 10, 1, "failed"), ([0.5] * 10, 3, "open")]
)
def test_says_the_verdict_first_and_in_words(accuracies: list[float], scale: float, kind: str) -> None:
    made = report(demo_scenario(scale=scale, attestation=scale == 1), accuracies)
    page = render_page(made)
    assert f'class="verdict {kind}"' in page
    assert page.index("verdict") < page.index("<svg")
    text = page.replace("&#x27;", "'")
    for sentence in (*made.verdict.reasons, *made.verdict.notes):
        assert sentence in text


def test_foreign_text_is_only_text() -> None:
    hostile = "<script>alert(1)</script>"
    device = DeviceRecord(name=hostile, malicious=False, state=hostile, reason=hostile)
    scenario = msgspec.structs.replace(demo_scenario(), name=hostile)
    page = render_page(report(scenario, devices=[device], failures=[hostile], versions={hostile: hostile}))
    assert "<script" not in page
    Reader(page)


def test_shows_what_there_is(tmp_path: Path) -> None:
    # Nothing ran, nothing was measured, no baselines: still a page that says so.
    bare = report(rounds=[], devices=[], undefended=(), no_attack=())
    assert "<svg" not in render_page(bare)
    failed = report(rounds=rounds(None, None, accepted=0, stage_seconds={}, bytes_up=0, bytes_down=0))
    page = render_page(failed)
    assert "sent / device" not in page
    assert "\u2013" in page
    write_page(bare, tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").read_text() == render_page(bare)


def test_rounds_without_masks_are_called_that() -> None:
    page = render_page(report(demo_scenario(masking=False)))
    assert "WITHOUT masks" in page


def test_a_rule_with_parameters_goes_by_its_name() -> None:
    page = render_page(report(msgspec.structs.replace(demo_scenario(), rule=MultiKrum(f=2))))
    assert ", multi krum across groups, " in page


def test_long_tables_are_folded() -> None:
    assert render_page(report()).count("<details open>") == 4
    assert render_page(report(demo_scenario(devices=61))).count("<details open>") == 3


def test_shows_every_devices_reputation_and_who_was_expelled_when() -> None:
    devices = [
        DeviceRecord(
            name=f"pi-{n}",
            malicious=n < 6,
            state="quarantined" if n < 6 else "trusted",
            reputation=0.0 if n < 6 else 1.0,
            quarantined_at=4 if n < 5 else None,
            reason="its updates point away",
            reputations=[0.5, None, *[0.0 if n < 6 else 1.0] * 8],
        )
        for n in range(30)
    ]
    scored = report(devices=devices, rounds=rounds(*[0.9] * 10, attested=30, honest_rejected=3), attack_success=0.25)
    page = render_page(scored)
    Reader(page)
    assert page.count('<svg role="img" aria-label="') == 5
    assert "In the end, in the median: honest devices 1.00, malicious devices 0.00." in page
    assert "malicious expelled 83.3%, honest expelled 0.0%, honest refused in the round 10.0%" in page
    assert "of 6 malicious" in page and "of the answers it wants" in page and "its updates point away" in page
    assert "Reputation</h2>" not in render_page(report())


@pytest.mark.parametrize(("masking", "words"), [(True, "masked groups"), ("simulated", "masks simulated")])
def test_says_whether_masks_are_real(masking: bool | str, words: str) -> None:
    scenario = msgspec.structs.replace(demo_scenario(), masking=masking, transport="direct")
    assert words in render_page(report(scenario))
