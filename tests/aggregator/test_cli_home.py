"""``covey init``, ``renew`` and ``device add``: certificates, a broker that uses them, logins; nothing overwritten."""

from __future__ import annotations

import json
import os
import queue
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
import yaml
from cryptography import x509
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.aggregator.console import Run
from tests.aggregator.live import until

from covey_aggregator import passphrase
from covey_aggregator.home import DATABASE_FILE, DELEGATION_FILE, SETTINGS_FILE, open_server
from covey_aggregator.operator import KEY_FILE, open_operator
from covey_aggregator.requests import Reply, reply_text
from covey_aggregator.store import Store
from covey_aggregator.tls import DAY
from covey_protocol import identity, provisioning
from covey_protocol.revocation import Revocation, sign_list
from covey_simulator.broker import RunningBroker, start_broker


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bundle(path: Path) -> provisioning.Provisioning:
    return provisioning.decode(path.read_text())


@pytest.fixture
def tls(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with certificates, in the working directory."""
    monkeypatch.chdir(tmp_path)
    done = run("init", "home", "--operator", "op", "--fleet", "meadow", "--tls", "--broker", "127.0.0.1:8884")
    assert done.code == 0, done.err
    return tmp_path / "home"


def test_one_command_makes_both_homes_and_again_changes_nothing(tmp_path: Path, run: Run) -> None:
    arguments = ("init", tmp_path / "home", "--operator", tmp_path / "op", "--fleet", "meadow", "--tls")
    done = run(*arguments)
    assert (done.code, "public key" in done.out, "covey serve" in done.out) == (0, True, True)
    before = files(tmp_path)
    assert run(*arguments, "--broker", "elsewhere:1").code == 0
    assert files(tmp_path) == before
    assert open_server(tmp_path / "home").operator_key == open_operator(tmp_path / "op").public_key


def test_the_operators_home_is_remembered(tls: Path, run: Run) -> None:
    before = files(tls)
    assert run("init", "home").code == 0
    assert files(tls) == before


def test_a_passphrase_is_asked_for_by_everything_that_signs(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passphrase, "MODERATE", passphrase.Cost(1, 8192))
    monkeypatch.chdir(tmp_path)
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    for path in (secret, wrong):
        path.touch(0o600)
        path.write_text(f"{path.name} words\n")
    done = run("init", "home", "--operator", "op", "--fleet", "meadow", "--passphrase-file", secret)
    assert (done.code, "no passphrase" in done.err) == (0, False)
    signing = [
        ("device", "add", "pi", "--home", "home"),
        ("device", "revoke", "pi", "--home", "home", "--reason", "x"),
        ("renew", "home"),
        ("init", "home2", "--operator", "op"),
    ]
    for command in signing:
        assert "the passphrase is wrong" in run(*command, "--passphrase-file", wrong).line
        assert "has a passphrase: run this on a terminal, or give --passphrase-file" in run(*command).line
        assert run(*command, "--passphrase-file", secret).code == 0
        with monkeypatch.context() as patch:
            patch.setenv("COVEY_PASSPHRASE_FILE", str(secret))
            assert run(*command).code == 0
    assert run("init", "home").code == 0  # nothing is signed, and nobody is asked
    assert "public key" in run("operator", "init", "op", "--fleet", "meadow").out
    for name, content in files(tmp_path).items():
        assert name == "secret" or b"secret words" not in content, name


def test_a_passphrase_is_changed_and_taken_away_without_a_terminal(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passphrase, "MODERATE", passphrase.Cost(1, 8192))
    new = tmp_path / "new"
    new.touch(0o600)
    new.write_text("new words\n")
    op = tmp_path / "op"
    assert "no passphrase" in run("operator", "init", op, "--fleet", "meadow").err
    assert run("operator", "passphrase", op).code == 2
    assert "under the new passphrase" in run("operator", "passphrase", op, "--new-passphrase-file", new).out
    assert len((op / KEY_FILE).read_bytes()) > 32
    assert "has a passphrase" in run("operator", "passphrase", op, "--none").line
    assert "WARNING: no passphrase" in run("operator", "passphrase", op, "--none", "--passphrase-file", new).err
    assert len((op / KEY_FILE).read_bytes()) == 32


def test_renew_signs_a_year_more_and_takes_a_changed_policy(tmp_path: Path, run: Run) -> None:
    home, op = tmp_path / "home", tmp_path / "op"
    run("init", home, "--operator", op, "--fleet", "meadow")
    first = open_server(home)
    (op / "policy.yaml").write_text("exposure_max: 50\n")
    out = run("renew", home).out
    assert ("policy 2 is signed and in place" in out, "until" in out) == (True, True)
    second = open_server(home)
    assert first.word is not None
    assert second.word is not None
    assert second.word.version > first.word.version
    assert (second.policy.exposure_max, second.policy.version) == (50, 2)
    run("renew", home)
    third = open_server(home)
    assert third.word is not None
    assert third.word.version > second.word.version  # within one second, too
    assert third.signed_policy == second.signed_policy


def test_init_again_renews_a_delegation_in_its_last_third(tmp_path: Path, run: Run) -> None:
    home, op = tmp_path / "home", tmp_path / "op"
    run("init", home, "--operator", op, "--fleet", "meadow")
    server, now = open_server(home), int(time.time())
    old = identity.issue_delegation(
        open_operator(op).key, "meadow", bytes(server.key.verify_key), now - 300 * DAY, now + 65 * DAY
    )
    (home / DELEGATION_FILE).write_bytes(old)
    run("init", home, "--operator", op)
    word = open_server(home).word
    assert word is not None
    assert word.not_after > now + 364 * DAY


def test_the_aggregators_key_is_changed_by_an_operator_at_hand(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    run("init", home, "--operator", tmp_path / "op", "--fleet", "meadow")
    old = open_server(home)
    assert run("renew", home, "--new-key").code == 0
    new = open_server(home)
    assert bytes(new.key) != bytes(old.key)
    assert open_operator(tmp_path / "op").delegated() == new.word


def test_everything_in_a_home_with_tls_is_for_its_owner(tls: Path) -> None:
    settings = yaml.safe_load((tls / SETTINGS_FILE).read_text())["broker"]
    assert (settings["ca_file"], settings["cert_file"], settings["key_file"]) == (
        *("tls/ca.crt", "tls/aggregator.crt", "tls/aggregator.key"),
    )
    assert tls.stat().st_mode & 0o077 == 0
    for folder in ("tls", "broker", "broker/data", "bundles"):
        assert (tls / folder).stat().st_mode & 0o077 == 0
    assert {path.name for path in (tls / "broker").iterdir()} == {
        *("mosquitto.conf", "acl", "data", "covey-broker.service"),
    }
    unit = (tls / "broker" / "covey-broker.service").read_text()
    assert f"mosquitto -c {tls}/broker/mosquitto.conf" in unit
    assert "/srv/covey" not in unit


def test_a_home_that_had_no_tls_is_told_what_to_write(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    run("init", home, "--operator", tmp_path / "op", "--fleet", "meadow")
    before = (home / SETTINGS_FILE).read_text()
    out = run("init", home, "--tls").out
    assert "ca_file: tls/ca.crt" in out
    assert (home / SETTINGS_FILE).read_text() == before
    run("device", "add", "pi", "--home", home)
    assert bundle(home / "bundles" / "pi.bundle").broker.certificate == ""  # not while the settings say no TLS


def test_each_bundle_has_a_certificate_of_its_own_and_tells_when_it_ends(tls: Path, run: Run) -> None:
    run("device", "add", "pi", "--count", 2, "--home", tls)
    now, serials = int(time.time()), set()
    for name in ("pi-01", "pi-02"):
        broker = bundle(tls / "bundles" / f"{name}.bundle").broker
        made = x509.load_pem_x509_certificate(broker.certificate.encode())
        assert made.subject.rfc4514_string() == f"CN={name}"
        assert broker.certificate_not_after == int(made.not_valid_after_utc.timestamp())
        assert 399 * DAY < broker.certificate_not_after - now <= 400 * DAY
        assert broker.ca == (tls / "tls" / "ca.crt").read_text()
        serials.add(made.serial_number)
        assert not any(broker.key.encode() in content for content in files(tls / "tls").values())
    assert len(serials) == 2


def lets_in(broker: RunningBroker, ca: Path, certificate: Path, key: Path) -> bool:
    """Whether a client with this certificate is connected."""
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, "any", protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False
    )
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(certificate, key)
    client.tls_set_context(context)
    seen: queue.Queue[bool] = queue.Queue()
    client.on_connect = lambda *arguments: seen.put(not arguments[3].is_failure)
    client.on_disconnect = lambda *_: seen.put(False)
    try:
        client.connect(broker.host, broker.port)
        client.loop_start()
        return seen.get(timeout=20)
    except OSError:  # TLS 1.3 may say it at once or with the first bytes
        return False
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.fixture
def broker(tls: Path) -> Iterator[RunningBroker]:
    """A Mosquitto on the configuration that a home holds, on a port that is free."""
    lines = (tls / "broker" / "mosquitto.conf").read_text().splitlines()
    (listener,) = (line for line in lines if line.startswith("listener "))
    assert listener == "listener 8884 127.0.0.1"
    with start_broker(
        tls.parent, prefer="mosquitto", config="\n".join(lines).replace(listener, "listener {port} {host}")
    ) as running:
        yield running


def unpack(folder: Path, path: Path) -> tuple[Path, Path, Path]:
    """Lay out what a bundle says of TLS, as an agent does."""
    found = bundle(path).broker
    parts = (folder / f"{path.stem}.ca", folder / f"{path.stem}.crt", folder / f"{path.stem}.key")
    for part, text in zip(parts, (found.ca, found.certificate, found.key), strict=True):
        part.write_text(text)
    return parts


def test_a_broker_started_on_what_init_wrote_lets_in_who_has_a_certificate(
    tls: Path, run: Run, broker: RunningBroker, tmp_path: Path
) -> None:
    run("device", "add", "pi", "--count", 2, "--home", tls)
    one, other = (unpack(tmp_path, tls / "bundles" / f"pi-0{number}.bundle") for number in (1, 2))
    folder = tls / "tls"
    assert lets_in(broker, folder / "ca.crt", folder / "aggregator.crt", folder / "aggregator.key")
    assert lets_in(broker, *one)
    done = run("device", "revoke", "pi-01", "--home", tls, "--reason", "x")
    assert "the broker refuses pi-01 once it has loaded" in done.out
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGHUP)
    until(lambda: not lets_in(broker, *one), "the broker's refusal")
    assert lets_in(broker, *other)
    run("init", "elsewhere", "--operator", "op", "--tls")
    run("device", "add", "pi-03", "--home", "elsewhere", "--out", tmp_path)
    _, *stranger = unpack(tmp_path, tmp_path / "pi-03.bundle")
    assert not lets_in(broker, folder / "ca.crt", *stranger)  # another home's CA


def test_names_and_passwords_for_a_broker_that_is_there_already(tmp_path: Path, run: Run) -> None:
    home, password, logins = tmp_path / "home", tmp_path / "password", tmp_path / "logins.csv"
    password.write_text("geheim\n")
    logins.write_text('pi-01,one,"a, b"\n\npi-02,two,c\n')
    arguments = ("init", home, "--operator", tmp_path / "op", "--fleet", "meadow", "--mqtt-user", "server")
    assert "go together" in run(*arguments).line
    assert run(*arguments, "--mqtt-password-file", password).code == 0
    settings = open_server(home).settings.broker
    assert (settings.username, settings.password_file) == ("server", str(password))
    add = ("device", "add", "pi", "--count", 2, "--home", home)
    assert run(*add, "--mqtt-user", "shared", "--mqtt-password-file", password).code == 0
    assert bundle(home / "bundles" / "pi-02.bundle").broker.password == "geheim"
    assert run(*add, "--mqtt-logins", logins).code == 0
    found = [bundle(home / "bundles" / f"pi-0{number}.bundle").broker for number in (1, 2)]
    assert [(each.username, each.password) for each in found] == [("one", "a, b"), ("two", "c")]
    assert "geheim" not in repr(found)


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        ("--mqtt-user x", "", "give --mqtt-user with --mqtt-password-file"),
        ("--mqtt-password-file list", "x", "give --mqtt-user with --mqtt-password-file"),
        ("--mqtt-user x --mqtt-password-file list --mqtt-logins list", "x", "give --mqtt-user with"),
        ("--mqtt-user x --mqtt-password-file list", "\n", "name or password of pi is empty or too long"),
        ("--mqtt-user x --mqtt-password-file gone", "", "gone: cannot be read"),
        ("--mqtt-logins list", "pi,one", "list: line 1 does not have"),
        ("--mqtt-logins list", "po,one,two", "list: has no line for pi"),
        ("--mqtt-logins list", "pi,,two", "name or password of pi is empty or too long"),
        ("--mqtt-logins list", "pi,one," + "x" * 256, "name or password of pi is empty or too long"),
    ],
)
def test_logins_that_cannot_be_used_are_refused(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, content: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run("init", "home", "--operator", "op", "--fleet", "meadow")
    Path("list").write_text(content)
    assert said in run("device", "add", "pi", "--home", "home", *arguments.split()).line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("new", "give --operator OPHOME; or --fleet and --operator-key"),
        ("new --operator-key 00", "needs --fleet"),
        ("new --operator-key 00 --fleet meadow", "not 64 hexadecimal digits"),
        ("new --operator-key zz --fleet meadow", "not 64 hexadecimal digits"),
        ("new --operator op --operator-key 00 --fleet meadow", "takes the place of --operator"),
        ("new --operator op --fleet forest", "is the operator home of fleet 'meadow', not 'forest'"),
        ("new --operator nowhere", "nowhere: no operator home"),
        ("new --operator nowhere --fleet Meadow", "fleet 'Meadow'"),
        ("home --fleet meadow --operator-key " + "00" * 32, "belongs to fleet 'meadow' of another operator"),
        ("new --operator op --broker :1883", "--broker ':1883'"),
    ],
)
def test_what_makes_no_home(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run("init", "home", "--operator", "op", "--fleet", "meadow")
    assert said in run("init", *arguments.split()).line
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "nowhere").exists()


def test_a_device_is_not_invited_by_another_fleets_operator(tmp_path: Path, run: Run) -> None:
    run("init", tmp_path / "home", "--operator", tmp_path / "op", "--fleet", "meadow")
    run("operator", "init", tmp_path / "other", "--fleet", "forest")
    for command in (
        ("device", "add", "pi", "--home", tmp_path / "home"),
        ("renew", tmp_path / "home"),
    ):
        assert "not the operator of" in run(*command, "--operator", tmp_path / "other").line


def test_a_request_is_named_in_json_where_the_operator_is_elsewhere(tmp_path: Path, run: Run) -> None:
    run("init", tmp_path / "home", "--operator", tmp_path / "op", "--fleet", "meadow", "--tls")
    (tmp_path / "op").rename(tmp_path / "away")
    path = Path(json.loads(run("device", "add", "pi", "--home", tmp_path / "home", "--json").out)["request"])
    assert path.exists()
    done = run("operator", "sign", tmp_path / "away", path)
    assert done.code == 0
    broker = bundle(tmp_path / "away" / "bundles" / "pi.bundle").broker
    assert "BEGIN CERTIFICATE" in broker.certificate
    assert Store(tmp_path / "home" / DATABASE_FILE).certificate_end("pi") == broker.certificate_not_after


def test_what_an_owner_changes_in_the_brokers_files_stays(tls: Path, run: Run) -> None:
    (tls / "broker" / "acl").write_text("# mine\n")
    assert run("init", "home", "--tls").code == 0
    assert (tls / "broker" / "acl").read_text() == "# mine\n"


def test_whoever_comes_on_the_list_comes_on_the_brokers_too(tls: Path, run: Run) -> None:
    """Also when the revocation was asked for by another server, or the list comes back to one that was put back."""
    run("device", "add", "pi", "--home", tls)
    operator, store = open_operator(Path("op")), Store(tls / DATABASE_FILE)
    (token,) = store.tokens()
    head, body = sign_list([Revocation(token=token, key=b"", device="pi", reason="lost")], 1, operator.key, "meadow")
    reply = Reply(fleet="meadow", operator_key=operator.public_key, head=head, body=body)
    Path("list.reply").write_text(reply_text(reply))
    assert run("accept", "home", "list.reply").code == 0
    (entry,) = x509.load_pem_x509_crl((tls / "tls" / "crl.pem").read_bytes())
    found = x509.load_pem_x509_certificate(bundle(tls / "bundles" / "pi.bundle").broker.certificate.encode())
    assert entry.serial_number == found.serial_number
