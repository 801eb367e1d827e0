"""covey_agent.config: every refusal names the file and the field."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from covey_agent.config import AgentConfig, BrokerSettings, load_config, write_config
from covey_protocol.errors import ConfigError


def load(folder: Path, text: str | bytes) -> AgentConfig:
    path = folder / "agent.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def test_a_missing_or_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "agent.yaml") == AgentConfig()
    assert load(tmp_path, "") == AgentConfig()
    assert load(tmp_path, "# nothing but words\n") == AgentConfig()
    defaults = AgentConfig()
    assert (defaults.data, defaults.profile, defaults.threads, defaults.log_level) == ("data", "", 0, "info")
    assert (defaults.broker.host, defaults.broker.port, defaults.broker.keepalive) == ("", 0, 60)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = AgentConfig(data="/srv/x.npz", threads=2, broker=BrokerSettings(host="h", port=1, protocol="3.1.1"))
    write_config(tmp_path / "agent.yaml", config)
    assert load_config(tmp_path / "agent.yaml") == config
    # An owner finds every setting there is.
    shown = yaml.safe_load((tmp_path / "agent.yaml").read_text())
    assert set(shown) == {field.name for field in msgspec.structs.fields(AgentConfig)}
    assert set(shown["broker"]) == {field.name for field in msgspec.structs.fields(BrokerSettings)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dta: x", "dta"),
        ("broker: {hots: x}", "hots"),
        ("data: 3", "$.data"),
        ("profile: [pi-4]", "$.profile"),
        ("threads: 65", "$.threads"),
        ("threads: -1", "$.threads"),
        ("threads: two", "$.threads"),
        ("log_level: loud", "$.log_level"),
        ("broker: {port: 65536}", "$.broker.port"),
        ("broker: {port: -1}", "$.broker.port"),
        ("broker: {protocol: '4'}", "$.broker.protocol"),
        ("broker: {keepalive: 4}", "$.broker.keepalive"),
        ("broker: {keepalive: 3601}", "$.broker.keepalive"),
        ("broker: {session_expiry: -1}", "$.broker.session_expiry"),
        ("broker: {session_expiry: 2592001}", "$.broker.session_expiry"),
        ("broker: {host: 1}", "$.broker.host"),
        ("broker: 127.0.0.1", "$.broker"),
        ("- data", "object"),
        ("just words", "object"),
    ],
)
def test_a_refusal_names_file_and_field(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "agent.yaml") in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", [b"a: [1", b"a: b: c", b"\xff\xfe\x00", b"!!python/object/apply:os.getpid []"])
def test_what_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match="not readable as YAML") as caught:
        load(tmp_path, text)
    assert str(tmp_path / "agent.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["false", "0", "[]", "''"])
def test_an_empty_value_that_is_no_map_is_not_taken_for_the_defaults(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.yaml"):
        load(tmp_path, text)


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"agent\.yaml"):
        load_config(tmp_path / "agent.yaml")
