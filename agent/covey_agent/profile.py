"""Firmware profiles: what a class of device can bear, read from YAML and checked before anything relies on it.

A profile is found by its name among those that come with the package, or by the path of a file of one's own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from covey_protocol.errors import ConfigError

MAX_FILE_BYTES = 64 << 10

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Window = Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]


class FirmwareProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one class of device.

    ``daily_bytes`` counts both directions (0: no limit). ``windows`` are local times of day in which the device may
    train and transfer, none meaning always; one may cross midnight. ``sleep`` says that the device suspends between
    the stages of a round. ``thermal_ceiling_c`` is where training pauses (0: no sensor is asked).
    """

    name: Name
    memory_mb: Annotated[int, msgspec.Meta(ge=64)]
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)]
    batch_size_max: Count
    model_bytes_max: Bytes
    upload_bytes_max: Bytes
    chunk_bytes: Annotated[int, msgspec.Meta(ge=16384, le=128 << 10)]
    daily_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    thermal_ceiling_c: Annotated[float, msgspec.Meta(ge=0, le=125)] = 0.0
    power: Literal["battery", "mains"]
    windows: list[Window] = []
    poll_seconds: Seconds
    backoff_base: Seconds
    backoff_cap: Seconds
    sleep: bool = False

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            ValueError: Naming both fields.
        """
        if self.backoff_base > self.backoff_cap:
            raise ValueError(f"backoff_base {self.backoff_base:g} exceeds backoff_cap {self.backoff_cap:g}")
        if self.model_bytes_max > self.memory_mb << 20:
            raise ValueError(f"model_bytes_max {self.model_bytes_max} exceeds memory_mb {self.memory_mb}")
        if 0 < self.daily_bytes < self.chunk_bytes:
            raise ValueError(f"daily_bytes {self.daily_bytes} is less than chunk_bytes {self.chunk_bytes}")
        for window in self.windows:
            if window[:5] == window[6:]:
                raise ValueError(f"windows: {window} is empty; leave windows out for always")

    def window_open(self, minute: int) -> bool:
        """Tell whether a minute of the local day (0 to 1439) lies in a window."""
        if not self.windows:
            return True
        for window in self.windows:
            start, end = _minutes(window[:5]), _minutes(window[6:])
            inside = start <= minute < end if start < end else minute >= start or minute < end
            if inside:
                return True
        return False


def profile_folder() -> Path:
    """Return the folder of the profiles that come with Covey.

    Raises:
        ConfigError: The installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    # Inside a wheel they lie in the package, in a checkout at the repository's root.
    for folder in (here / "profiles", here.parents[1] / "firmware_profiles"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"firmware profiles: none came with the package at {here}")


def profile_names() -> list[str]:
    """Return the names that ``load_profile`` knows."""
    return sorted(path.stem for path in profile_folder().glob("*.yaml"))


def load_profile(path_or_name: Path | str) -> FirmwareProfile:
    """Read a profile.

    Args:
        path_or_name: A known name such as ``pi-4``, or a path (anything with a separator or a YAML suffix).

    Raises:
        ConfigError: No such profile, or a file that breaks the schema; the message names file and field.
    """
    text = str(path_or_name)
    if isinstance(path_or_name, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return _read(Path(path_or_name))
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", text) or text not in profile_names():
        raise ConfigError(f"firmware profile {text!r}: unknown; there are {', '.join(profile_names())}")
    return _read(profile_folder() / f"{text}.yaml")


def _read(path: Path) -> FirmwareProfile:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"firmware profile {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"firmware profile {path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.convert(yaml.load(data, _OnceLoader), FirmwareProfile)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"firmware profile {path}: not YAML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"firmware profile {path}: {error}") from error


def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


class _OnceLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))
