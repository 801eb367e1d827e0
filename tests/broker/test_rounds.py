"""Whole rounds over every configuration that comes along: real broker, real aggregator, enrolled agents."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.aggregator.live import Agents, Live, enrol_agent, live_homes, live_task
from tests.broker.authority import SERVER, Authority
from tests.broker.rig import BASE, FLEET, Peer, make_authority, peers, start_tls, start_variant

from covey_aggregator.broker_files import broker_config_folder
from covey_protocol import topics
from covey_protocol.provisioning import Broker
from covey_simulator.broker import RunningBroker

NAMES = ["pi-0", "pi-1", "pi-2", "pi-3", "pi-4"]


def by_certificate(authority: Authority, name: str, broker: RunningBroker) -> Broker:
    """Return the broker as the bundle of a device with a certificate names it."""
    certificate, key = (authority.folder / f"{name}.crt").read_text(), (authority.folder / f"{name}.key").read_text()
    ca = authority.ca.read_text()
    return Broker(host=broker.host, port=broker.port, ca=ca, certificate=certificate, key=key)


def tls_settings(authority: Authority) -> dict[str, str]:
    """Return what the aggregator's settings say of its certificate."""
    folder = authority.folder
    return {
        "ca_file": str(authority.ca),
        "cert_file": str(folder / "aggregator.crt"),
        "key_file": str(folder / "aggregator.key"),
    }


def learn(folder: Path, central: RunningBroker, settings: dict[str, str], reach: dict[str, Broker]) -> None:
    """Let five devices learn for a round; the aggregator sits at one broker, the devices wherever they were told."""
    operator, home = live_homes(folder, central, **settings)
    homes = [enrol_agent(folder, operator, home, name, reach[name]) for name in NAMES]
    with Live(home) as live, Agents(homes) as agents:
        live.call(lambda: live.service.store.add_task(live_task(folder, rounds=1)))
        live.until_ended()
        assert live.status() == "done"
        (record,) = live.call(lambda: live.service.store.rounds("digits"))
        assert record.accepted == len(NAMES)
        assert all(agent.link.status.undeliverable == 0 for agent in agents.running.values())
        assert all(agent.link.status.protocol == "5" for agent in agents.running.values())


def test_mutual_tls(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls", "aggregator", *NAMES)
    with start_tls(tmp_path / "broker", authority) as broker:
        reach = {name: by_certificate(authority, name, broker) for name in NAMES}
        learn(tmp_path, broker, tls_settings(authority), reach)


def test_names_and_passwords(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    passwords = tmp_path / "broker" / "passwords"
    passwords.touch()
    for name in ("aggregator", *NAMES):
        command = ["mosquitto_passwd", "-b", str(passwords), name, f"word of {name}"]
        subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "password").write_text("word of aggregator\n")
    values = {"password_file": str(passwords), "acl_file": str(broker_config_folder() / "acl")}
    with start_variant(tmp_path / "broker", "mosquitto-passwords.conf", values) as broker:
        reach = {
            name: Broker(host=broker.host, port=broker.port, username=name, password=f"word of {name}")
            for name in NAMES
        }
        settings = {"username": "aggregator", "password_file": str(tmp_path / "password")}
        learn(tmp_path, broker, settings, reach)


def rights_for(names: list[str]) -> dict[str, Any]:
    """Return dynamic-security.json with a role and a client for each device, as the one that is in it has."""
    content: dict[str, Any] = json.loads((broker_config_folder() / "dynamic-security.json").read_text())
    group = content["groups"][0]
    (role,) = [each for each in content["roles"] if each["rolename"] == "device-pi-kitchen"]
    (client,) = [each for each in content["clients"] if each["username"] == "pi-kitchen"]
    for name in names:
        content["roles"].append(json.loads(json.dumps(role).replace("pi-kitchen", name)))
        content["clients"].append(json.loads(json.dumps(client).replace("pi-kitchen", name)))
        group["clients"].append({"username": name})
    return content


def dynsec(folder: Path, authority: Authority) -> RunningBroker:
    """Start a broker with the dynamic security plugin."""
    folder.mkdir()
    (folder / "rights.json").write_text(json.dumps(rights_for(NAMES)))
    tls = authority.folder
    values = {"cafile": "ca.crt", "certfile": "broker.crt", "keyfile": "broker.key", "crlfile": "crl.pem"}
    paths = {option: str(tls / file) for option, file in values.items()}
    return start_variant(
        folder, "mosquitto-dynsec.conf", {**paths, "plugin_opt_config_file": str(folder / "rights.json")}
    )


def test_dynamic_security(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls", "aggregator", "stranger", *NAMES)
    with dynsec(tmp_path / "broker", authority) as broker:
        greedy = Peer.by_certificate(broker, authority, "pi-4")
        greedy.link.subscribe([topics.down(FLEET, "pi-0", "+"), f"covey/v1/{FLEET}/#"])
        reach = {name: by_certificate(authority, name, broker) for name in NAMES}
        assert greedy.link.wait_connected(0.5) is False, "the plugin refuses such subscriptions"
        greedy.say(topics.up(FLEET, "pi-0", "join"), topics.pub(FLEET, topics.OPEN, "t"))
        assert len(greedy.refused) == 2
        greedy.link.stop()
        stranger = Peer.by_certificate(broker, authority, "stranger")
        stranger.say(topics.up(FLEET, "stranger", "join"))
        assert stranger.refused, "a certificate alone gives no rights here"
        stranger.link.stop()
        learn(tmp_path, broker, tls_settings(authority), reach)
        assert greedy.heard.empty()


def site(folder: Path, authority: Authority, centre: RunningBroker) -> RunningBroker:
    """Start a site's broker with a bridge to the central one."""
    tls = authority.folder
    values = {
        "cafile": str(authority.ca),
        "certfile": str(tls / "site-broker.crt"),
        "keyfile": str(tls / "site-broker.key"),
        "crlfile": str(tls / "crl.pem"),
        "acl_file": str(broker_config_folder() / "acl"),
        "address": f"{centre.host}:{centre.port}",
        "restart_timeout": "1",
        "bridge_cafile": str(authority.ca),
        "bridge_certfile": str(tls / "site-north.crt"),
        "bridge_keyfile": str(tls / "site-north.key"),
    }
    return start_variant(folder, "mosquitto-site.conf", values)


def test_a_site_of_its_own(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls", "aggregator", "site-north", *NAMES)
    authority.issue("site-broker", SERVER)
    rules = (broker_config_folder() / "acl-site").read_text()
    with (
        start_tls(tmp_path / "centre", authority, rules=rules) as centre,
        site(tmp_path / "site", authority, centre) as local,
    ):
        reach = {name: by_certificate(authority, name, local) for name in NAMES}
        learn(tmp_path, centre, tls_settings(authority), reach)


def test_what_crosses_between_a_site_and_the_centre(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls", "aggregator", "site-north", "pi-0", "pi-1")
    authority.issue("site-broker", SERVER)
    rules = (broker_config_folder() / "acl-site").read_text()
    with (
        start_tls(tmp_path / "centre", authority, rules=rules) as centre,
        site(tmp_path / "site", authority, centre) as local,
        peers() as held,
    ):
        aggregator = Peer.by_certificate(centre, authority, "aggregator").hear(f"{BASE}/dev/+/up/#")
        device = Peer.by_certificate(local, authority, "pi-0").hear(f"{BASE}/dev/pi-0/down/+", f"{BASE}/pub/+")
        other = Peer.by_certificate(local, authority, "pi-1")
        held += [aggregator, device, other]
        aggregator.say(f"{BASE}/pub/revocations", retain=True)
        assert device.next() == f"{BASE}/pub/revocations"
        late = other.hear(f"{BASE}/pub/revocations")
        assert late.next() == f"{BASE}/pub/revocations", "the site's broker has retained it as well"
        # What the site's list forbids stays at the site; alerts stay at the centre.
        other.say(f"{BASE}/dev/pi-0/up/join", f"{BASE}/pub/open/t", f"{BASE}/dev/pi-1/up/join")
        assert aggregator.next() == f"{BASE}/dev/pi-1/up/join"
        aggregator.say(f"{BASE}/pub/alert", f"{BASE}/dev/pi-0/down/roster")
        assert device.next() == f"{BASE}/dev/pi-0/down/roster"
        # While the centre is away, words wait at the site.
        centre.stop()
        device.say(f"{BASE}/dev/pi-0/up/shares")
        centre.start()
        assert aggregator.next() == f"{BASE}/dev/pi-0/up/shares"
