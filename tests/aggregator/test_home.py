"""The server's home: made once, checked whenever it is opened, and without the operator's secret."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.aggregator.fleet import Fleet, make_homes

from covey_aggregator.cli import cli
from covey_aggregator.home import (
    DELEGATION_FILE,
    KEY_FILE,
    OPERATOR_FILE,
    POLICY_FILE,
    SETTINGS_FILE,
    BrokerSettings,
    init_server,
    open_server,
)
from covey_aggregator.operator import init_operator
from covey_protocol.errors import ConfigError

SETTINGS = "fleet: meadow\n"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_running_init_again_overwrites_nothing(tmp_path: Path) -> None:
    operator, home = make_homes(tmp_path)
    (home.path / SETTINGS_FILE).write_text("fleet: meadow\nlog_level: debug\n")
    before = contents(home.path)
    again = init_server(home.path, operator, BrokerSettings(host="elsewhere"))
    assert contents(home.path) == before
    assert (again.settings.log_level, bytes(again.key)) == ("debug", bytes(home.key))


@pytest.mark.parametrize("file", [DELEGATION_FILE, POLICY_FILE, OPERATOR_FILE, SETTINGS_FILE])
def test_an_init_that_was_cut_off_is_taken_up(tmp_path: Path, file: str) -> None:
    operator, home = make_homes(tmp_path)
    (home.path / file).unlink()
    assert init_server(home.path, operator, BrokerSettings()).key == home.key


def test_a_home_of_another_operator_or_fleet_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    _, home = make_homes(tmp_path)
    before = contents(home.path)
    for number, fleet in enumerate(("meadow", "forest")):
        other = init_operator(tmp_path / f"other-{number}", fleet)
        with pytest.raises(ConfigError, match="belongs to fleet 'meadow' of another operator"):
            init_server(home.path, other, BrokerSettings())
    assert contents(home.path) == before


def test_keys_and_folders_are_private(tmp_path: Path) -> None:
    _, home = make_homes(tmp_path)
    assert (home.path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert all(path.stat().st_mode & 0o077 == 0 for path in [home.path, *home.path.iterdir()] if path.is_dir())
    assert bytes(home.key).hex() not in repr(home)
    assert repr(bytes(home.key)) not in repr(home)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (KEY_FILE, b"short"),
        (KEY_FILE, bytes(SigningKey(b"k" * 32))),
        (KEY_FILE, None),
        (OPERATOR_FILE, b"not hex"),
        (OPERATOR_FILE, b"ab" * 31),
        (OPERATOR_FILE, "é".encode()),
        (OPERATOR_FILE, None),
        (DELEGATION_FILE, b""),
        (DELEGATION_FILE, b"\xd2junk"),
        (DELEGATION_FILE, None),
        (POLICY_FILE, b""),
        (POLICY_FILE, b"\xd2junk"),
        (POLICY_FILE, None),
        (SETTINGS_FILE, b"fleet: 5\n"),
        (SETTINGS_FILE, b"fleet: 'A B'\n"),
        (SETTINGS_FILE, b"flet: meadow\n"),
        (SETTINGS_FILE, b"fleet: meadow\nbroker: {port: 0}\n"),
        (SETTINGS_FILE, b"fleet: meadow\nbroker: {prot: 1}\n"),
        (SETTINGS_FILE, b"fleet: [\n"),
    ],
)
def test_a_damaged_home_names_the_file(tmp_path: Path, file: str, content: bytes | None) -> None:
    _, home = make_homes(tmp_path)
    (home.path / file).unlink() if content is None else (home.path / file).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_server(home.path)
    assert str(home.path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [DELEGATION_FILE, POLICY_FILE])
def test_what_another_operator_signed_is_refused_by_name(tmp_path: Path, file: str) -> None:
    _, home = make_homes(tmp_path)
    _, other = make_homes(tmp_path / "other")
    (home.path / file).write_bytes((other.path / file).read_bytes())
    with pytest.raises(ConfigError, match=file):
        open_server(home.path)


def test_a_folder_that_is_no_home_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no server home; make one with `covey init"):
        open_server(tmp_path)


def test_devices_are_told_the_advertised_broker_and_its_authority(tmp_path: Path) -> None:
    _, home = make_homes(tmp_path, broker=BrokerSettings(host="10.0.0.1", port=8883))
    assert (home.broker_for_devices().host, home.broker_for_devices().ca) == ("10.0.0.1", "")
    (home.path / "ca.pem").write_text("PEM")
    (home.path / SETTINGS_FILE).write_text("fleet: meadow\nbroker: {advertise: broker.local, ca_file: ca.pem}\n")
    broker = open_server(home.path).broker_for_devices()
    assert (broker.host, broker.ca) == ("broker.local", "PEM")
    (home.path / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        open_server(home.path).broker_for_devices()


def test_no_operator_secret_is_in_any_file_of_a_server_home_that_has_worked(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 4)
    seed = bytes(fleet.operator.key)
    arguments = ["device", "add", "pi", "--count", "3", "--home", str(fleet.home.path)]
    cli(arguments, standalone_mode=False)
    fleet.start(rounds=1)
    fleet.finish()
    forms = [seed, seed.hex().encode(), seed.hex().upper().encode(), bytes(fleet.operator.key._signing_key)]
    forms += [base64.b64encode(bytes(shift) + seed)[4 * (shift > 0) : -4] for shift in range(3)]
    forms += [base64.urlsafe_b64encode(bytes(shift) + seed)[4 * (shift > 0) : -4] for shift in range(3)]
    files = contents(fleet.home.path)
    assert {"covey.db", "aggregator.key"} <= set(files)
    assert sum(name.startswith("bundles/pi-") for name in files) == 3
    for name, content in files.items():
        assert not [form for form in forms if form in content], name
    assert any(bytes(fleet.home.key) in content for content in files.values())  # the search does find a key
