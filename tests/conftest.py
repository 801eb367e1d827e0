"""Fixtures that several areas share: a real Mosquitto on a free port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_simulator.broker import RunningBroker, find_mosquitto, start_broker


def _mosquitto(folder: Path) -> RunningBroker:
    # A test without its broker proves nothing, so a missing one is a failure and never a skip.
    if find_mosquitto() is None:
        pytest.fail("these tests need a real Mosquitto: apt-get install mosquitto", pytrace=False)
    return start_broker(folder, prefer="mosquitto")


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    """A Mosquitto of this test's own."""
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    with _mosquitto(folder) as broker:
        yield broker


@pytest.fixture(scope="session")
def mosquitto_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A Mosquitto that all tests of the session share: use topics of your own and leave nothing retained."""
    with _mosquitto(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker
