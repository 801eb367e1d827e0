"""The operator's home."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from nacl.signing import SigningKey

from covey_aggregator.operator import KEY_FILE, POLICY_FILE, SETTINGS_FILE, init_operator, open_operator
from covey_protocol import identity
from covey_protocol.errors import ConfigError, SignatureError
from covey_protocol.policy import Policy, verify_policy
from covey_protocol.provisioning import Broker


def test_a_new_home_holds_a_private_key_and_the_default_policy(tmp_path: Path) -> None:
    home = init_operator(tmp_path / "op", "meadow")
    assert (home.path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert home.policy == Policy()
    assert open_operator(home.path).public_key == home.public_key
    assert bytes(home.key).hex() not in repr(home)


def test_running_init_again_changes_nothing(tmp_path: Path) -> None:
    init_operator(tmp_path, "meadow")
    (tmp_path / POLICY_FILE).write_text("n_min: 8\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert init_operator(tmp_path, "meadow").policy.n_min == 8
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_init_that_was_cut_off_is_taken_up(tmp_path: Path) -> None:
    key = init_operator(tmp_path, "meadow").public_key
    (tmp_path / SETTINGS_FILE).unlink()
    (tmp_path / POLICY_FILE).unlink()
    assert init_operator(tmp_path, "meadow").public_key == key


def test_a_home_belongs_to_one_fleet(tmp_path: Path) -> None:
    init_operator(tmp_path, "meadow")
    with pytest.raises(ConfigError, match="is the operator home of fleet 'meadow', not 'forest'"):
        init_operator(tmp_path, "forest")


@pytest.mark.parametrize("fleet", ["", "Meadow", "a/b", "a+b", "#", "-a", "a" * 64])
def test_a_fleet_that_cannot_stand_in_a_topic_leaves_no_home(tmp_path: Path, fleet: str) -> None:
    with pytest.raises(ConfigError, match="fleet"):
        init_operator(tmp_path / "op", fleet)
    assert not (tmp_path / "op").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (KEY_FILE, b"short"),
        (KEY_FILE, None),
        (POLICY_FILE, b"n_min: 2\n"),
        (POLICY_FILE, b"n_min: [\n"),
        (POLICY_FILE, None),
        (SETTINGS_FILE, b"fleet: 3\n"),
        (SETTINGS_FILE, b"fleet: 'A B'\n"),
        (SETTINGS_FILE, b"fleet: meadow\nflet: x\n"),
        (SETTINGS_FILE, None),
    ],
)
def test_a_damaged_home_names_the_file(tmp_path: Path, file: str, content: bytes | None) -> None:
    init_operator(tmp_path, "meadow")
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match="no operator home" if (file, content) == (SETTINGS_FILE, None) else file):
        open_operator(tmp_path)


def test_what_it_signs_holds_under_its_public_key_alone(tmp_path: Path) -> None:
    home = init_operator(tmp_path, "meadow")
    (home.path / POLICY_FILE).write_text(yaml.safe_dump({"n_min": 6}))
    home = open_operator(tmp_path)
    server = bytes(SigningKey.generate().verify_key)
    delegation = home.delegate(server)
    assert identity.verify_delegation(delegation, operator_key=home.public_key, fleet="meadow").aggregator_key == server
    assert verify_policy(home.signed_policy(), operator_key=home.public_key, fleet="meadow").n_min == 6
    with pytest.raises(SignatureError):
        verify_policy(home.signed_policy(), operator_key=server, fleet="meadow")


@pytest.mark.parametrize(("seconds", "expires"), [(0, False), (3600, True)])
def test_a_provisioning_bundle_holds_together_until_it_expires(tmp_path: Path, seconds: int, expires: bool) -> None:
    home = init_operator(tmp_path, "meadow")
    delegation = home.delegate(bytes(SigningKey.generate().verify_key))
    broker = Broker(host="broker", port=1883)
    bundle = home.provision("pi", profile="pi-4", seconds=seconds, delegation=delegation, broker=broker)
    assert abs(bundle.made - time.time()) < 60  # no device that is enrolled with it lives before
    bundle.check()
    late = 2**33
    token = identity.read_token
    if expires:
        with pytest.raises(SignatureError, match="token of 'pi' expired"):
            token(bundle.token, operator_key=home.public_key, fleet="meadow", device="pi", now=late)
    else:
        token(bundle.token, operator_key=home.public_key, fleet="meadow", device="pi", now=late)
    again = home.provision("pi", profile="pi-4", seconds=0, delegation=delegation, broker=broker)
    assert again.token_secret != bundle.token_secret
    with pytest.raises(ConfigError, match="device"):
        home.provision("no/name", profile="pi-4", seconds=0, delegation=delegation, broker=broker)


def test_a_misspelt_floor_is_refused_and_named(tmp_path: Path) -> None:
    """A floor that was meant and does not hold is worse than none."""
    home = init_operator(tmp_path / "op", "meadow")
    (home.path / POLICY_FILE).write_text("exposuremax: 3\n")
    with pytest.raises(ConfigError, match=r"policy\.yaml: unknown field 'exposuremax'"):
        open_operator(home.path)


@pytest.mark.parametrize("name", ["aggregator", "operator"])
def test_no_device_may_have_a_name_that_signs_as_something_else(tmp_path: Path, name: str) -> None:
    home = init_operator(tmp_path / "op", "meadow")
    broker = Broker(host="127.0.0.1", port=1883)
    with pytest.raises(ConfigError, match="reserved"):
        home.provision(name, profile="pi-4", seconds=60, delegation=home.delegate(bytes(32)), broker=broker)
