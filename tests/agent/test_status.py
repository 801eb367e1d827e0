"""covey_agent.status: a small file that is whole or absent, written when something has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.agent.cuts import Cut, PowerCut, steps

from covey_agent.status import StatusFile, read_status


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_written_is_read_with_its_time(tmp_path: Path) -> None:
    StatusFile(tmp_path / "status.json").write(lambda: {"pid": 7, "tasks": {"digits": {"round": None}}})
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert status.pop("written") > 1_600_000_000
    assert status == {"pid": 7, "tasks": {"digits": {"round": None}}}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_it_is_written_at_most_once_a_second_and_only_when_it_has_changed(tmp_path: Path) -> None:
    clock, asked = Clock(), 0
    path = tmp_path / "status.json"
    status = StatusFile(path, clock)

    def snapshot(value: int) -> Any:
        def take() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return {"value": value}

        return take

    status.write(snapshot(1))
    clock.now = 0.9
    status.write(snapshot(2))
    assert (asked, json.loads(path.read_text())["value"]) == (1, 1)
    clock.now = 1.0
    status.write(snapshot(2))
    assert (asked, json.loads(path.read_text())["value"]) == (2, 2)
    path.unlink()
    clock.now = 5.0
    status.write(snapshot(2))
    assert not path.exists()
    clock.now = 9.0
    status.write(snapshot(3))
    assert json.loads(path.read_text())["value"] == 3


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    for step in range(steps(monkeypatch, lambda: StatusFile(path).write(lambda: {"value": 0}))):
        with Cut(monkeypatch, step, half=True), pytest.raises(PowerCut):
            StatusFile(path).write(lambda: {"value": 1})
        status = read_status(path)
        assert status is not None
        assert status["value"] == 0


def test_a_full_disk_costs_the_status_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    status = StatusFile(tmp_path / "status.json", clock)

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        status.write(lambda: {"value": 1})
    clock.now = 5.0
    status.write(lambda: {"value": 1})  # not taken for written
    assert (read_status(tmp_path / "status.json") or {})["value"] == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"7", b"\xff\xfe"])
def test_what_cannot_be_read_is_no_status(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path / "status.json") is None
