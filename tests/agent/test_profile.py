"""covey_agent.profile: the profiles that come along load, and nothing that breaks the schema does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from covey_agent import profile as module
from covey_agent.profile import FirmwareProfile, load_profile, profile_folder, profile_names
from covey_protocol.errors import ConfigError

SHIPPED = ["container", "jetson-orin-nano", "pi-3", "pi-4", "pi-5", "pi-zero-2w", "x86-gateway"]


def write(folder: Path, **changes: object) -> Path:
    """Write a profile of one's own: pi-4 with some fields changed, or left out where None."""
    fields = yaml.safe_load((profile_folder() / "pi-4.yaml").read_text()) | {"name": "mine"} | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in fields.items() if value is not None}))
    return path


def test_seven_profiles_come_along() -> None:
    assert profile_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_each_loads_under_its_own_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile == load_profile(profile_folder() / f"{name}.yaml")


def test_the_smallest_device_is_told_to_save() -> None:
    small = load_profile("pi-zero-2w")
    assert (small.power, small.sleep, small.threads) == ("battery", True, 1)
    assert small.daily_bytes > 0
    assert small.model_bytes_max < load_profile("pi-3").model_bytes_max


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path, windows=["22:00-06:00", "12:00-12:30"], daily_bytes=None, sleep=None)
    assert load_profile(path) == load_profile(str(path))
    profile = load_profile(path)
    assert (profile.name, profile.daily_bytes, profile.sleep) == ("mine", 0, False)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bogus": 1}, "unknown field `bogus`"),
        ({"threads": None}, "missing required field `threads`"),
        ({"threads": 0}, r"`int` >= 1 - at `\$.threads`"),
        ({"threads": "2"}, r"Expected `int`, got `str` - at `\$.threads`"),
        ({"threads": True}, r"Expected `int`, got `bool` - at `\$.threads`"),
        ({"name": "../etc"}, r"at `\$.name`"),
        ({"power": "solar"}, r"at `\$.power`"),
        ({"chunk_bytes": 1 << 20}, r"at `\$.chunk_bytes`"),
        ({"sleep": "yes please"}, r"at `\$.sleep`"),
        ({"poll_seconds": float("nan")}, r"at `\$.poll_seconds`"),
        ({"windows": ["01:00-05:00", "24:00-25:00"]}, r"at `\$.windows\[1\]`"),
        ({"windows": ["01:00-01:00"]}, "01:00-01:00 is empty"),
        ({"backoff_base": 500}, "backoff_base 500 exceeds backoff_cap"),
        ({"memory_mb": 64}, "exceeds memory_mb 64"),
        ({"daily_bytes": 100}, "daily_bytes 100 is less than chunk_bytes"),
    ],
)
def test_broken_files_are_refused_by_file_and_field(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=complaint) as error:
        load_profile(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("data", [b"", b"- a", b"a: [", b"\xff\xfe\x00", b"!!python/object:os.system {}"])
def test_what_is_no_profile_at_all(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_profile(path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "threads: 1\n")
    with pytest.raises(ConfigError, match="threads is given twice"):
        load_profile(path)


def test_oversized_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (module.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_profile(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_profile(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["pi-9", "", "..", "PI-4"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown; there are container, jetson-orin-nano"):
        load_profile(name)


def test_names_are_found_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "covey_agent"
    (package / "profiles").mkdir(parents=True)
    (package / "profiles" / "pi-4.yaml").write_bytes((profile_folder() / "pi-4.yaml").read_bytes())
    monkeypatch.setattr(module, "__file__", str(package / "profile.py"))
    assert profile_names() == ["pi-4"]
    assert load_profile("pi-4").name == "pi-4"
    (package / "profiles").rename(package / "elsewhere")
    with pytest.raises(ConfigError, match="none came with the package"):
        load_profile("pi-4")


def test_windows(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, windows=["22:00-06:00", "12:00-12:30"]))
    opened = {minute for minute in range(1440) if profile.window_open(minute)}
    assert opened == {*range(22 * 60, 1440), *range(6 * 60), *range(720, 750)}


def test_no_windows_means_always() -> None:
    profile: FirmwareProfile = load_profile("pi-4")
    assert all(profile.window_open(minute) for minute in range(0, 1440, 60))
