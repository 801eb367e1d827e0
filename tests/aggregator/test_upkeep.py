"""What the aggregator renews by itself, and what it asks people for."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest
from tests.aggregator.console import Run

from covey_aggregator.home import DELEGATION_FILE, open_server
from covey_aggregator.tls import DAY, Certificate
from covey_aggregator.upkeep import keep_up, look_after


@pytest.fixture
def home(tmp_path: Path, run: Run) -> Path:
    run("init", tmp_path / "home", "--operator", tmp_path / "op", "--fleet", "meadow", "--tls")
    return tmp_path / "home"


def ends(home: Path, file: str) -> int:
    return Certificate.read((home / "tls" / file).read_bytes(), file).not_after


def test_certificates_are_renewed_in_time_and_once(home: Path) -> None:
    now = int(time.time())
    assert look_after(home, now) == []
    later = now + 270 * DAY
    said = look_after(home, later)
    assert ("broker.crt is renewed; the broker has to load it: kill -HUP" in said[0], "aggregator.crt" in said[1]) == (
        *(True, True),
    )
    assert {ends(home, file) for file in ("broker.crt", "aggregator.crt")} == {later + 400 * DAY}
    assert [line for line in look_after(home, later) if "crt" in line] == []


def test_a_delegation_that_ends_is_asked_for(home: Path) -> None:
    word = open_server(home).word
    assert word is not None
    assert not [line for line in look_after(home, word.not_after - 125 * DAY) if "delegation" in line]
    (line,) = (line for line in look_after(home, word.not_after - 100 * DAY) if "delegation" in line)
    assert f"delegation ends on {time.strftime('%Y-%m-%d', time.gmtime(word.not_after))}" in line
    assert f"covey renew {home}" in line
    assert any("delegation ended on" in line for line in look_after(home, word.not_after))


def test_damage_is_logged_and_looked_at_again(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = (home / DELEGATION_FILE).read_bytes()
    (home / DELEGATION_FILE).write_bytes(b"junk")

    async def run() -> None:
        task = asyncio.create_task(keep_up(home, lambda: time.time() + 270 * DAY, pause=0.01))
        while "delegation.cbor" not in caplog.text:
            await asyncio.sleep(0.01)
        (home / DELEGATION_FILE).write_bytes(good)
        while "broker.crt is renewed" not in caplog.text:
            await asyncio.sleep(0.01)
        task.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
