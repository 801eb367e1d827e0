"""``covey-agent doctor`` against real brokers: every misconfiguration is told apart, in words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tests.agent.enrolled import bundle_file, enrolled, provision
from tests.broker.authority import DAY, SERVER, Authority
from tests.broker.rig import FLEET, Peer, Raw, context, make_authority, peers, start_tls, start_variant
from tests.protocol.rig import SERVER as AGGREGATOR_KEY

from covey_agent import doctor
from covey_agent.cli import cli
from covey_agent.doctor import local, login
from covey_agent.doctor.findings import Finding
from covey_agent.home import STATUS_FILE, AgentHome, open_home
from covey_agent.profile import load_profile
from covey_aggregator.broker_files import broker_config_folder
from covey_protocol import topics
from covey_protocol.provisioning import Broker
from covey_protocol.signed_time import write_time
from covey_simulator.broker import RunningBroker

NOW = int(time.time())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls"), "aggregator", "pi-0", "pi-1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RunningBroker]:
    with start_tls(tmp_path_factory.mktemp("broker"), authority) as running:
        with peers() as held:
            held.append(Peer.by_certificate(running, authority, "aggregator"))
            word = write_time(NOW, fleet=FLEET, key=AGGREGATOR_KEY)
            held[0].link.publish(topics.pub(FLEET, topics.TIME), word, retain=True)
            assert held[0].link.drain(20)
        yield running


def reach(authority: Authority, broker: RunningBroker, name: str = "pi-0", **changes: Any) -> Broker:
    """Return the broker as a bundle names it; an empty name gives no certificate."""
    files = {"certificate": "crt", "key": "key"} if name else {}
    fields: dict[str, Any] = {key: (authority.folder / f"{name}.{end}").read_text() for key, end in files.items()}
    fields |= {"host": broker.host, "port": broker.port, "ca": authority.ca.read_text()}
    return Broker(**{**fields, **changes})


def device(folder: Path, place: Broker, **changes: Any) -> AgentHome:
    """Enrol a device with data."""
    np.savez(folder / "data.npz", x=np.zeros((4, 2), np.float32), y=np.arange(4))
    return enrolled(folder, "pi-0", data=str(folder / "data.npz"), broker=place, **changes)


def told(findings: list[Finding], check: str) -> str:
    """Return level and words of a check."""
    return "; ".join(f"{finding.level}: {finding.text}" for finding in findings if finding.check == check)


def failed(home: AgentHome, **options: Any) -> dict[str, str]:
    """Return what fails."""
    return {each.check: each.text for each in doctor.examine(home.path, **options) if each.level == "fail"}


def test_a_device_that_is_well_is_told_so(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    home = device(tmp_path, reach(authority, broker))
    done = CliRunner().invoke(cli, ["doctor", "--home", str(home.path), "--json"])
    report = json.loads(done.stdout)
    checks = {check["check"]: check["level"] for check in report["checks"]}
    assert (done.exit_code, report["healthy"]) == (0, True)
    well = ("home", "files", "identity", "delegation", "data", "connection", "tls", "login", "packets", "write")
    assert {name: checks[name] for name in (*well, "aggregator")} == dict.fromkeys((*well, "aggregator"), "ok")
    assert "others" not in checks and "read" not in checks
    words = CliRunner().invoke(cli, ["doctor", "--home", str(home.path)]).stdout
    assert "ok   login       as pi-0, MQTT 5" in words


def test_its_visit_leaves_nothing_and_says_nothing(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    home = device(tmp_path, reach(authority, broker))
    with peers() as held:
        held.append(Peer.by_certificate(broker, authority, "aggregator").hear(topics.up(FLEET, "+", "#")))
        held.append(Peer.by_certificate(broker, authority, "pi-0").hear(topics.down(FLEET, "pi-0", "+")))
        held[1].link.stop()  # the agent sleeps, and something waits for it
        held[0].say(topics.down(FLEET, "pi-0", topics.DEALT))
        assert not failed(home)
        held.append(Peer.by_certificate(broker, authority, "pi-0"))
        assert held[2].next() == topics.down(FLEET, "pi-0", topics.DEALT), "it waits still"
        assert held[0].until(topics.up(FLEET, "pi-0", "doctor")) == {topics.up(FLEET, "pi-0", "doctor")}


def test_it_leaves_no_session_where_there_was_none(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    authority.issue("pi-7")
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2), np.float32), y=np.arange(4))
    home = enrolled(tmp_path, "pi-7", data=str(tmp_path / "data.npz"), broker=reach(authority, broker, "pi-7"))
    assert told(doctor.examine(home.path), "login").startswith("ok")
    with Raw(broker, "pi-7", context(authority, "pi-7")) as after:
        present: list[bool] = []
        known = after.client.on_connect
        after.client.on_connect = lambda *args: (present.append(args[2].session_present), known(*args))  # type: ignore
        assert after.connect(clean_start=False) == "Success"
        assert present == [False]


def test_wrong_ca(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    other = Authority(tmp_path / "other", "Another CA")
    words = failed(device(tmp_path, reach(authority, broker, ca=other.ca.read_text())))
    assert "wrong CA" in words["tls"]
    assert set(words) == {"tls"}


def test_a_ca_of_the_same_name_is_the_wrong_one_too(
    tmp_path: Path, authority: Authority, broker: RunningBroker
) -> None:
    twin = Authority(tmp_path / "twin")
    assert "wrong CA" in failed(device(tmp_path, reach(authority, broker, ca=twin.ca.read_text())))["tls"]


def test_no_certificate_and_those_that_the_broker_refuses(
    tmp_path: Path, authority: Authority, broker: RunningBroker
) -> None:
    authority.issue("pi-0", file="old", end=-DAY / 2)
    authority.issue("pi-0", SERVER, file="served")
    other = Authority(tmp_path / "other", "Another CA")
    other.issue("pi-0")
    strange = reach(other, broker, ca=authority.ca.read_text())
    for index, (place, word) in enumerate(
        [
            (reach(authority, broker, ""), "asks for a certificate"),
            (reach(authority, broker, "old"), "has expired"),
            (reach(authority, broker, "served"), "not one for clients"),
            (strange, "does not know the CA"),
        ]
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert word in failed(device(folder, place))["tls"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Authority, RunningBroker]]]:
    """Brokers whose own certificates are wrong."""
    found: dict[str, tuple[Authority, RunningBroker]] = {}
    with contextlib.ExitStack() as stack:
        for name, options in {
            "elsewhere": {"hosts": ("elsewhere.example",)},
            "expired": {"end": -DAY / 2},
            "early": {"start": DAY},
        }.items():
            own = Authority(tmp_path_factory.mktemp(name))
            own.issue("broker", SERVER, **options)  # type: ignore[arg-type]
            own.issue("pi-0")
            found[name] = own, stack.enter_context(start_tls(tmp_path_factory.mktemp(f"{name}-broker"), own))
        yield found


def test_the_brokers_own_certificate_is_wrong(
    tmp_path: Path, odd: dict[str, tuple[Authority, RunningBroker]], monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {}
    for name, (own, running) in odd.items():
        (tmp_path / name).mkdir()
        homes[name] = device(tmp_path / name, reach(own, running), made=NOW - 100)
    assert "another name than '127.0.0.1'" in failed(homes["elsewhere"])["tls"]
    monkeypatch.setattr(doctor, "synchronised_time", lambda: NOW)
    assert "renew it on the server" in failed(homes["expired"])["tls"]
    monkeypatch.setattr(doctor, "synchronised_time", lambda: None)
    assert "is the clock ahead?" in failed(homes["expired"])["tls"]
    assert "behind, or the server's ahead" in failed(homes["early"])["tls"]
    # With a clock in the past, every certificate is one of the future.
    words = failed(homes["early"], wall=NOW - 400 * 86400)
    assert "the clock is off" in words["tls"]
    assert "has passed already" in words["clock"]


def test_a_clock_behind_what_the_aggregator_signed(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    home = device(tmp_path, reach(authority, broker))
    assert "it is off" in failed(home, wall=NOW - 3600)["clock"]
    late = told(doctor.examine(home.path, wall=NOW + 7200), "aggregator")
    assert late.startswith("warn") and "120 minutes ago" in late


def test_unreachable(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        home = device(tmp_path, reach(authority, broker, port=taken.getsockname()[1]))
        assert "nothing listens at" in failed(home)["connection"]
    settings = home.path / "agent.yaml"
    settings.write_text(yaml.safe_dump({"data": str(home.data_path), "broker": {"host": "no.such.host.invalid"}}))
    words = failed(open_home(home.path))
    assert "cannot be looked up" in words["name"]
    assert set(words) == {"name"}


def test_tls_where_there_is_none_and_none_where_there_is(
    tmp_path: Path,
    authority: Authority,
    broker: RunningBroker,
    mosquitto_session: RunningBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(login, "_SECONDS", 1.0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    plain = reach(authority, mosquitto_session)
    assert "TLS" in failed(device(tmp_path / "a", plain))["tls"]
    naked = Broker(host=broker.host, port=broker.port)
    assert "may speak TLS only" in failed(device(tmp_path / "b", naked))["login"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker with names and passwords."""
    folder = tmp_path_factory.mktemp("guarded")
    passwords = folder / "passwords"
    passwords.touch()
    for name in ("pi-0", "somebody"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), name, "right"], check=True, capture_output=True)
    values = {"password_file": str(passwords), "acl_file": str(broker_config_folder() / "acl")}
    with start_variant(folder, "mosquitto-passwords.conf", values) as running:
        yield running


def test_passwords_and_the_access_list(tmp_path: Path, guarded: RunningBroker) -> None:
    for number, (user, password) in enumerate([("pi-0", "wrong"), ("somebody", "right"), ("pi-0", "right")]):
        (tmp_path / str(number)).mkdir()
        place = Broker(host=guarded.host, port=guarded.port, username=user, password=password)
        home = device(tmp_path / str(number), place)
        words, findings = failed(home), doctor.examine(home.path)
        assert told(findings, "tls").startswith("warn: none")
        if password == "wrong":
            assert "no such name with this password" in words["login"]
            assert not any("wrong" in finding.text for finding in findings)
        elif user == "somebody":
            assert "denies this device its own topics" in words["write"]
            assert "must be 'pi-0'" in words["write"]
        else:
            assert words == {}
            assert "nothing that the aggregator retains" in told(findings, "aggregator")


def test_an_open_broker_is_told(tmp_path: Path, mosquitto: RunningBroker) -> None:
    with peers() as held:
        held.append(Peer(mosquitto, "other"))
        held[0].say(topics.up(FLEET, "pi-9", topics.STATE), retain=True)
        home = device(tmp_path, Broker(host=mosquitto.host, port=mosquitto.port))
        words = told(doctor.examine(home.path), "others")
    assert "write under other names" in words
    assert f"hears what is for others, such as {topics.up(FLEET, 'pi-9', topics.STATE)}" in words


@pytest.mark.parametrize(("size", "level"), [(2000, "fail"), (20_000, "warn")])
def test_small_packets(tmp_path: Path, size: int, level: str) -> None:
    from covey_simulator.broker import mosquitto_config, start_broker  # noqa: PLC0415

    config = mosquitto_config(0).replace("listener 0 127.0.0.1", "listener {port} {host}")
    config = config.replace("max_packet_size 1048576", f"max_packet_size {size}")
    with start_broker(tmp_path, prefer="mosquitto", config=config) as small:
        home = device(tmp_path, Broker(host=small.host, port=small.port))
        assert told(doctor.examine(home.path), "packets").startswith(f"{level}: the broker takes packets of {size}")


def test_a_running_agent_is_not_pushed_out(tmp_path: Path, authority: Authority, broker: RunningBroker) -> None:
    home = device(tmp_path, reach(authority, broker))
    (home.path / STATUS_FILE).write_text(json.dumps({"pid": os.getpid()}))
    with peers() as held:
        held.append(Peer.by_certificate(broker, authority, "pi-0"))
        assert held[0].link.wait_connected(20)
        assert told(doctor.examine(home.path), "login").startswith("skip: the agent runs")
        assert held[0].link.status.connects == 1
        assert told(doctor.examine(home.path, take_over=True), "login").startswith("ok")


# Without a network


@pytest.fixture
def alone(tmp_path: Path) -> AgentHome:
    """A device whose broker is not there."""
    return device(tmp_path, Broker(host="127.0.0.1", port=9))


def test_tokens_and_delegations_that_have_expired(tmp_path: Path) -> None:
    place = Broker(host="127.0.0.1", port=9)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2), np.float32), y=np.arange(4))
    home = enrolled(tmp_path, "pi-0", data=str(tmp_path / "data.npz"), broker=place, not_after=1000, made=NOW)
    findings = doctor.examine(home.path)
    assert told(findings, "token").startswith("warn: token of 'pi-0' expired")
    assert told(findings, "delegation").startswith("ok")
    bundle = bundle_file(tmp_path, provision("pi-1", not_after=1000))
    words = told(doctor.examine(tmp_path / "none", bundle=bundle, wall=NOW), "bundle")
    assert words.startswith("fail: its token has expired") and "covey device add" in words
    assert told(doctor.examine(tmp_path / "none", bundle=bundle, wall=500), "bundle").startswith("ok: for pi-1")
    text = bundle.read_text()
    bundle.write_text(text[:100] + "A" + text[101:])
    assert told(doctor.examine(tmp_path / "none", bundle=bundle), "bundle").startswith("fail")


def test_a_home_that_is_none_or_is_open_to_others(tmp_path: Path, alone: AgentHome) -> None:
    assert "not enrolled" in told(doctor.examine(tmp_path / "none"), "home")
    (alone.path / "device.key").chmod(0o644)
    assert "device.key can be read by others" in failed(alone)["files"]
    (alone.path / "device.key").write_bytes(bytes(32))
    assert set(failed(alone)) == {"home"}


def test_data_that_cannot_be_trained_on(alone: AgentHome) -> None:
    path = alone.data_path
    np.savez(path, x=np.zeros((4, 2), np.float32), y=np.arange(3))
    assert "one label a sample" in failed(alone)["data"]
    np.savez(path, x=np.zeros((4, 2), np.float32))
    assert "has no array" in failed(alone)["data"]
    path.write_bytes(b"no archive")
    assert "cannot be read" in failed(alone)["data"]
    path.unlink()
    assert "no .npz file" in failed(alone)["data"]


def test_a_damaged_database(alone: AgentHome) -> None:
    alone.database.write_bytes(b"x" * 5000)
    assert "move it away" in failed(alone)["database"]


def test_a_full_disk(tmp_path: Path, alone: AgentHome) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        shutil.copytree(alone.path, place / "home")
        findings = doctor.examine(place / "home")
        assert "in memory" in told(findings, "disk"), "identity would be gone with the power"
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert "the disk is full" in told(doctor.examine(place / "home"), "disk")
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def test_little_room_and_little_memory(alone: AgentHome) -> None:
    profile = load_profile("pi-4")
    (words,) = [
        f for f in local.check_disk(alone, profile, lambda _: 20 << 20) if f.level == "warn" and "MiB" in f.text
    ]
    assert words.text.startswith("20 MiB free")
    (memory,) = local.check_memory(msgspec.structs.replace(profile, memory_mb=1 << 24))
    assert memory.level == "warn"


def test_help_has_examples() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("covey-agent"), "doctor", "--help"], capture_output=True, text=True, check=True
    )
    assert "Examples:" in done.stdout and "--take-over" in done.stdout
