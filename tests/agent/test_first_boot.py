"""covey_agent.first_boot: the bundle on the boot partition enrols its device once, wherever the power goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.agent.cuts import Cut, PowerCut, steps
from tests.agent.enrolled import bundle_file, provision
from tests.agent.test_home import TOKEN_SECRET, everything_in
from tests.protocol.rig import signing_key

from covey_agent.cli import cli
from covey_agent.first_boot import BOOT_FOLDERS, enrol_from_boot, find_bundle, open_or_enrol
from covey_agent.home import open_home
from covey_protocol.errors import ConfigError, CoveyError, SignatureError

NAME = "covey-pi-0.bundle"


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    folder = tmp_path / "boot"
    folder.mkdir()
    return folder


def test_the_usual_places_are_looked_in() -> None:
    assert [str(folder) for folder in BOOT_FOLDERS] == ["/boot/firmware", "/boot"]


def test_a_device_enrols_by_itself_at_its_first_start_and_never_again(tmp_path: Path, boot: Path) -> None:
    bundle_file(boot, name=NAME)
    (boot / "config.txt").write_text("arm_64bit=1")
    first = open_or_enrol(tmp_path / "home", [boot], now=None)
    assert first.device == "pi-0"
    assert [path.name for path in boot.iterdir()] == ["config.txt"]
    assert open_or_enrol(tmp_path / "home", [boot], now=None).key == first.key


def test_other_names_are_not_picked_up(tmp_path: Path, boot: Path) -> None:
    bundle_file(boot, name="pi-0.bundle")
    (boot / "covey-folder.bundle").mkdir()
    assert find_bundle([boot, tmp_path / "nowhere"]) is None
    with pytest.raises(ConfigError, match=r"not enrolled, and no bundle is at .*covey-\*\.bundle; run"):
        enrol_from_boot(tmp_path / "home", [boot], now=None)
    assert not (tmp_path / "home").exists()


def test_several_bundles_enrol_nobody_and_stay(tmp_path: Path, boot: Path) -> None:
    bundle_file(boot, name=NAME)
    bundle_file(boot, provision("pi-1"), name="covey-pi-1.bundle")
    with pytest.raises(ConfigError, match=r"several provisioning bundles: .*pi-0.*pi-1.*leave the one"):
        open_or_enrol(tmp_path / "home", [boot], now=None)
    assert len(list(boot.iterdir())) == 2
    assert not (tmp_path / "home").exists()


def test_one_folder_that_is_seen_twice_holds_one_bundle(tmp_path: Path, boot: Path) -> None:
    """As where /boot/firmware is a link to /boot."""
    bundle_file(boot, name=NAME)
    link = tmp_path / "firmware"
    link.symlink_to(boot)
    assert find_bundle([link, boot]) == link / NAME


@pytest.mark.parametrize(
    ("content", "now", "words"),
    [
        (provision(not_after=1000), 1001, "expired at Unix time 1000"),
        (provision(secret=signing_key("x"), token_secret=bytes(32)), None, "does not belong to its token"),
        (provision(token=provision(fleet="orchard").token), None, "does not verify"),
        (provision(operator_key=bytes(signing_key("impostor").verify_key)), None, "does not verify"),
    ],
    ids=["expired", "tampered", "another-fleet", "another-operator"],
)
def test_a_bundle_that_does_not_hold_is_refused_by_name_of_the_reason_and_kept(
    tmp_path: Path, boot: Path, content: object, now: int | None, words: str
) -> None:
    bundle_file(boot, content, name=NAME)  # type: ignore[arg-type]
    with pytest.raises(SignatureError, match=words):
        open_or_enrol(tmp_path / "home", [boot], now=now)
    assert (boot / NAME).exists()
    assert not (tmp_path / "home").exists()


def test_a_destroyed_bundle_says_that_a_token_counts_once(tmp_path: Path, boot: Path) -> None:
    (boot / NAME).write_bytes(bytes(900))
    with pytest.raises(ConfigError, match="was destroyed, as its first use does: a token counts once"):
        open_or_enrol(tmp_path / "home", [boot], now=None)


def test_another_devices_bundle_is_left_alone_by_an_enrolled_home(
    tmp_path: Path, boot: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle_file(boot, name=NAME)
    home = open_or_enrol(tmp_path / "home", [boot], now=None)
    other = bundle_file(boot, provision("pi-1"), name="covey-pi-1.bundle")
    (boot / "covey-damaged.bundle").write_text("garbage")
    assert open_or_enrol(tmp_path / "home", [boot], now=None).key == home.key
    assert other.exists()
    assert "covey-damaged.bundle: a bundle that cannot be read or removed" in caplog.text


@pytest.mark.parametrize("half", [False, True])
def test_power_cuts_anywhere_leave_one_key_and_in_the_end_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    rehearsal = tmp_path / "rehearsal"
    rehearsal.mkdir()
    text = bundle_file(rehearsal, name=NAME).read_text()
    count = steps(monkeypatch, lambda: open_or_enrol(tmp_path / "first", [rehearsal], now=None))
    assert count > 20
    for step in range(count):
        folder = tmp_path / f"{step}"
        boot, home = folder / "boot", folder / "home"
        boot.mkdir(parents=True)
        (boot / NAME).write_text(text)
        with Cut(monkeypatch, step, half=half), pytest.raises(PowerCut):
            open_or_enrol(home, [boot], now=None)
        key = (home / "device.key").read_bytes() if (home / "device.key").exists() else None
        again = open_or_enrol(home, [boot], now=None)  # the next start
        assert key in (None, bytes(again.key)), f"a second key after a cut at step {step}"
        assert not list(boot.iterdir())
        assert TOKEN_SECRET not in everything_in(folder)
        assert open_home(home).config == again.config


def test_a_cut_at_the_next_start_is_no_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: Path) -> None:
    text = bundle_file(boot, name=NAME).read_text()
    home = open_or_enrol(tmp_path / "home", [boot], now=None)
    (boot / NAME).write_text(text)  # as if it had been cut off before the bundle was destroyed
    count = steps(monkeypatch, lambda: open_or_enrol(home.path, [boot], now=None))
    for step in range(count):
        (boot / NAME).write_text(text)
        with Cut(monkeypatch, step, half=True), pytest.raises(PowerCut):
            open_or_enrol(home.path, [boot], now=None)
        assert open_or_enrol(home.path, [boot], now=None).key == home.key
        assert not list(boot.iterdir())


def test_the_command_takes_the_bundle_from_the_boot_partition(tmp_path: Path, boot: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(CoveyError, match="not enrolled, and no bundle is at"):
        CliRunner().invoke(cli, ["run", "--home", str(home), "--boot", str(boot)], catch_exceptions=False)
    bundle_file(boot, name=NAME)
    arguments = ["enrol", "--home", str(home)]
    answer = CliRunner().invoke(cli, arguments, catch_exceptions=False, env={"COVEY_AGENT_BOOT": str(boot)})
    assert answer.output.startswith("pi-0 is enrolled in fleet meadow")
