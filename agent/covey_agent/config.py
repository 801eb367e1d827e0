"""The agent's settings: ``agent.yaml`` in its home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from covey_agent.files import write_atomically
from covey_protocol.errors import ConfigError
from covey_protocol.messages import SESSION_SECONDS

FILE = "agent.yaml"


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overrides of what the provisioning bundle says about the broker."""

    host: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    username: str = ""
    password_file: str = ""
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    keepalive: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 60
    session_expiry: Annotated[int, msgspec.Meta(ge=0, le=30 * 86400)] = SESSION_SECONDS


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an owner may set on a device.

    Attributes:
        data: ``.npz`` file or folder with arrays x and y; relative paths start at the home.
        profile: Firmware profile, by name or path; empty takes the one from enrolment.
        threads: Threads for training; 0 takes the profile's.
        broker: Overrides for the connection.
        log_level: How much is logged.
    """

    data: str = "data"
    profile: str = ""
    threads: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    broker: BrokerSettings = BrokerSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load_config(path: Path) -> AgentConfig:
    """Read the settings; a missing file means the defaults.

    Raises:
        ConfigError: The file is not YAML or breaks the schema; the message names file and field.
    """
    if not path.exists():
        return AgentConfig()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    try:
        return msgspec.convert({} if content is None else content, AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_config(path: Path, config: AgentConfig) -> None:
    """Write settings for the owner to edit; whole or not at all, because half a file may read as other settings."""
    text = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
    write_atomically(path, f"# Settings of the Covey agent; see docs/configuration.md\n{text}".encode())
