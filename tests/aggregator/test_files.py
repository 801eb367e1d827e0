"""Files that hold keys, and files for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from covey_aggregator.files import make_private_folder, read_private, read_yaml, replace, write_new, write_private
from covey_aggregator.home import BrokerSettings
from covey_protocol.errors import ConfigError


def test_a_key_is_for_its_owner_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"k" * 32)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="key: cannot be made"):
        write_private(path, b"x" * 32)
    assert read_private(path, 32) == b"k" * 32


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_private(path, b"k" * 32)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"run: chmod 600 {path}"):
        read_private(path, 32)


def test_a_key_of_another_size_or_none_is_named(tmp_path: Path) -> None:
    write_private(tmp_path / "short", b"k" * 31)
    with pytest.raises(ConfigError, match="short: holds 31 bytes where a key has 32"):
        read_private(tmp_path / "short", 32)
    with pytest.raises(ConfigError, match="gone: cannot be read"):
        read_private(tmp_path / "gone", 32)


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    make_private_folder(tmp_path / "a" / "b")


def test_a_file_for_people_is_written_once_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    write_new(path, "one")
    write_new(path, "two")
    assert path.read_text() == "one"
    replace(path, b"three")
    assert path.read_bytes() == b"three"
    assert [entry.name for entry in tmp_path.iterdir()] == ["settings"]


def test_a_private_file_is_private_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, modes = tmp_path / "bundle", []
    rename = Path.replace

    def watched(source: Path, target: Path) -> Path:
        modes.append(source.stat().st_mode & 0o777)
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", watched)
    (tmp_path / ".bundle.new").write_text("left over by a crash, readable by all")
    replace(path, b"secret", 0o600)
    assert (modes, path.stat().st_mode & 0o777, path.read_bytes()) == ([0o600], 0o600, b"secret")


def test_settings_that_break_their_schema_name_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "broker.yaml"
    path.write_text("port: 0\n")
    with pytest.raises(ConfigError, match=r"broker\.yaml: .*port"):
        read_yaml(path, BrokerSettings)
    path.write_text("")
    assert read_yaml(path, BrokerSettings) == BrokerSettings()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"broker\.yaml: "):
        read_yaml(path, BrokerSettings)
