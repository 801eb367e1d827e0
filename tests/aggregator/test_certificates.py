"""A device's TLS certificate is renewed over the air, and an older one lets it in when the broker refuses the new."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Fleet, make_homes, provision
from tests.aggregator.live import Agents, Live, until
from tests.broker.rig import for_tests

from covey_agent.home import AgentHome, enrol, open_home
from covey_agent.profile import profile_folder
from covey_aggregator.broker_files import tls_files
from covey_aggregator.certificates import DAY
from covey_aggregator.home import DATABASE_FILE, BrokerSettings, ServerHome, open_server
from covey_aggregator.operator import OperatorHome
from covey_aggregator.store import Store
from covey_aggregator.tls_home import TlsHome, make_tls
from covey_protocol import provisioning, topics
from covey_protocol.effects import Deliver
from covey_protocol.errors import PeerError, RefusedError, StaleError
from covey_protocol.provisioning import Broker
from covey_protocol.renewal import read_certificate, write_renew
from covey_simulator.broker import RunningBroker, start_broker

ONE = "pi-1"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path, 2)
    fleet.wall = float(int(time.time()))
    make_tls(fleet.home.path, FLEET, ["127.0.0.1"], int(fleet.wall))
    return fleet


def ask(fleet: Fleet, public_key: bytes, name: str = ONE, key: SigningKey | None = None) -> Any:
    data = write_renew(public_key, fleet=FLEET, device=name, key=key or fleet.devices[name].key)
    return fleet.coordinator.receive(topics.parse(topics.up(FLEET, name, topics.RENEW)), data, fleet.now)


def answer(fleet: Fleet, effects: Any) -> Any:
    [delivered] = [effect for effect in effects if isinstance(effect, Deliver)]
    key = bytes(fleet.home.key.verify_key)
    return read_certificate(delivered.data, fleet=FLEET, device=delivered.device, aggregator_key=key)


def public_key() -> bytes:
    return bytes(SigningKey.generate().verify_key)


def test_a_known_device_is_given_one_certificate_a_day_and_the_same_when_it_asks_again(fleet: Fleet) -> None:
    first = public_key()
    issued = answer(fleet, ask(fleet, first))
    assert (issued.public_key, issued.made) == (first, int(fleet.wall + fleet.now))
    assert 399 * DAY < issued.not_after - issued.made <= 400 * DAY
    with pytest.raises(StaleError):
        ask(fleet, first)
    fleet.now += 61
    assert answer(fleet, ask(fleet, first)) == issued  # the answer was lost
    fleet.now += 61
    with pytest.raises(RefusedError, match="a new certificate today"):
        ask(fleet, public_key())
    fleet.coordinator.commit()
    fleet.restart()
    with pytest.raises(RefusedError, match="a new certificate today"):
        ask(fleet, public_key())
    fleet.now += DAY
    assert answer(fleet, ask(fleet, public_key())) != issued
    assert len(fleet.store.rows("SELECT * FROM certificates WHERE device = ?", ONE)) == 2


def test_strangers_others_and_the_revoked_are_given_none(fleet: Fleet) -> None:
    with pytest.raises(StaleError):
        ask(fleet, public_key(), "pi-9", SigningKey.generate())
    with pytest.raises(PeerError):
        ask(fleet, public_key(), ONE, fleet.devices["pi-0"].key)
    fleet.revoke(ONE)
    with pytest.raises(StaleError):
        ask(fleet, public_key())
    assert fleet.store.rows("SELECT * FROM certificates") == []


def test_a_home_without_a_ca_has_none_to_give(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 2)
    with pytest.raises(RefusedError, match="no CA is in this home"):
        ask(fleet, public_key())


# --- a real broker with mutual TLS --------------------------------------------------------------------------------


@dataclass
class Secured:
    """Homes and a broker that asks for certificates; one device whose certificate has 100 days left."""

    operator: OperatorHome
    home: ServerHome
    broker: RunningBroker
    device: AgentHome
    folder: Path

    def revoke(self, *, newest: bool) -> None:
        """Put the device's oldest or newest certificate on the broker's list."""
        store = Store(self.home.path / DATABASE_FILE)
        rows = store.rows("SELECT serial FROM certificates WHERE device = ? ORDER BY not_after", ONE)
        serial = rows[-1 if newest else 0][0]
        store.change("UPDATE certificates SET revoked = 1 WHERE serial = ?", serial)
        TlsHome(self.home.path, store).write_list(int(time.time()))
        store.commit()
        store.close()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    operator, home = make_homes(tmp_path)
    now = int(time.time())
    make_tls(home.path, FLEET, ["127.0.0.1"], now)
    folder = tmp_path / "broker"
    (folder / "data").mkdir(parents=True)
    for path, text in tls_files(folder, home.path / "tls", port=8883, account=os.geteuid()).items():
        path.write_text(text)
    config = for_tests((folder / "mosquitto.conf").read_text())
    with start_broker(folder, prefer="mosquitto", config=config) as broker:
        settings = BrokerSettings(
            host="127.0.0.1",
            port=broker.port,
            ca_file="tls/ca.crt",
            cert_file="tls/aggregator.crt",
            key_file="tls/aggregator.key",
        )
        text = (home.path / "covey.yaml").read_text()
        (home.path / "covey.yaml").write_text(
            re.sub(r"(?s)broker:.*?(?=^\w)", "", text, flags=re.MULTILINE)
            + yaml.safe_dump({"broker": {name: getattr(settings, name) for name in settings.__struct_fields__}})
        )
        home = open_server(home.path)
        store = Store(home.path / DATABASE_FILE)
        tls = TlsHome(home.path, store)
        certificate, key = tls.issue_with_key(ONE, now - 300 * DAY)
        store.commit()
        store.close()
        place = Broker(
            host="127.0.0.1",
            port=broker.port,
            ca=tls.ca,
            certificate=certificate.pem,
            key=key,
            certificate_not_after=certificate.not_after,
        )
        bundle = provision(operator, home, ONE)
        invitation = tmp_path / f"{ONE}.bundle"
        invitation.write_text(provisioning.encode(msgspec.structs.replace(bundle, broker=place, made=now)))
        device = enrol(invitation, tmp_path / ONE)
        profile = yaml.safe_load((profile_folder() / "pi-4.yaml").read_text())
        quick = tmp_path / "quick.yaml"
        quick.write_text(yaml.safe_dump({**profile, "name": "quick", "backoff_base": 0.05, "backoff_cap": 0.3}))
        (tmp_path / ONE / "agent.yaml").write_text(yaml.safe_dump({"profile": str(quick)}))
        yield Secured(operator, home, broker, open_home(device.path), tmp_path)


def test_a_certificate_that_ends_is_renewed_without_a_truck_roll(secured: Secured) -> None:
    before = secured.device.stored.broker.certificate_not_after
    with Live(secured.home), Agents([secured.device]) as agents:
        running = agents.running[ONE]
        until(lambda: (running.agent.snapshot()["certificate"] or 0) > before + 200 * DAY, "the renewal")
        # The old one is not good for anything any more; the device must come back with the new.
        secured.revoke(newest=False)
        connects = running.link.status.connects
        secured.broker.stop()
        secured.broker.start()
        until(lambda: running.link.status.connects > connects and running.link.connected, "a connection by the new one")
    with Agents([secured.device]) as agents:  # and after a restart
        until(lambda: agents.running[ONE].link.connected, "another")


def test_a_new_certificate_that_the_broker_refuses_does_not_lock_the_device_out(secured: Secured) -> None:
    before = secured.device.stored.broker.certificate_not_after
    with Live(secured.home), Agents([secured.device]) as agents:
        running = agents.running[ONE]
        until(lambda: (running.agent.snapshot()["certificate"] or 0) > before, "the renewal")
        secured.revoke(newest=True)
        connects = running.link.status.connects
        secured.broker.stop()
        secured.broker.start()
        until(lambda: running.link.status.connects > connects and running.link.connected, "a connection by the old one")
