"""covey_agent.connect: a running agent and a real Mosquitto."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.agent.enrolled import enrolled
from tests.agent.links import SECONDS, Ears, make_link
from tests.protocol.rig import FLEET, OPERATOR

from covey_agent.config import AgentConfig, BrokerSettings
from covey_agent.connect import RunningAgent, link_options
from covey_agent.home import AgentHome, open_home
from covey_agent.outbox import Outbox
from covey_agent.profile import load_profile
from covey_agent.status import read_status
from covey_protocol import identity, topics
from covey_protocol.envelope import Context, open_signed, parse
from covey_protocol.errors import ConfigError
from covey_protocol.messages import State
from covey_protocol.payload import read
from covey_protocol.provisioning import Broker
from covey_simulator.broker import RunningBroker

STATE = topics.up(FLEET, "pi-0", topics.STATE)
PI_4 = load_profile("pi-4")


def home_at(folder: Path, broker: RunningBroker, device: str = "pi-0") -> AgentHome:
    return enrolled(folder, device, broker=Broker(host=broker.host, port=broker.port))


@contextmanager
def listening(broker: RunningBroker) -> Iterator[Ears]:
    """Hear all devices' states, the retained ones first."""
    ears = Ears()
    link = make_link(broker.port, "listener", ears)
    link.subscribe([topics.up(FLEET, "+", topics.STATE)])
    link.start()
    assert link.wait_connected(SECONDS)
    try:
        yield ears
    finally:
        link.stop()


def verified(data: bytes, device: str = "pi-0") -> State:
    """Check a state as any peer can: by the operator's key alone."""
    state = read(State, parse(data).payload)
    who = identity.verify_chain(state.chain, operator_key=bytes(OPERATOR.verify_key), fleet=FLEET, device=device)
    open_signed(data, Context(fleet=FLEET, kind=topics.STATE, sender=device), who.key)
    return state


def next_state(ears: Ears) -> State:
    topic, payload = ears.next()
    assert topic == STATE
    return verified(payload)


def test_an_agent_says_that_it_is_there_and_leaves_cleanly(tmp_path: Path, mosquitto: RunningBroker) -> None:
    home = home_at(tmp_path, mosquitto)
    for counter in (1, 2):
        agent = RunningAgent(home)
        agent.start()
        with listening(mosquitto) as ears:
            state = next_state(ears)
            while state.status != "online":  # what was retained from the time before, perhaps
                state = next_state(ears)
            assert state.counter == counter
            agent.stop()
            online = state
            while state == online:  # both retained and live, perhaps: the ears opened while it was being published
                state = next_state(ears)
            assert (state.status, state.counter) == ("left", counter)
        with listening(mosquitto) as ears:
            assert next_state(ears) == state  # retained
    assert Outbox(home.database).used() == (0, 0)
    status = read_status(home.path / "status.json")
    assert status is not None
    assert (status["device"], status["refusals"]) == ("pi-0", {})


def test_a_killed_agent_is_reported_lost_and_a_stopped_one_as_having_left(
    tmp_path: Path, mosquitto: RunningBroker
) -> None:
    home = home_at(tmp_path, mosquitto)
    command = [str(Path(sys.executable).with_name("covey-agent")), "run", "--home", str(home.path)]
    with listening(mosquitto) as ears:
        ends = [(signal.SIGKILL, "lost"), (signal.SIGTERM, "left"), (signal.SIGINT, "left")]
        for counter, (number, last) in enumerate(ends, 1):
            process = subprocess.Popen(command, stderr=subprocess.PIPE)
            try:
                online = next_state(ears)
                process.send_signal(number)
                gone = online
                while gone == online:  # QoS 1 may repeat
                    gone = next_state(ears)
                _, log = process.communicate(timeout=SECONDS)
            finally:
                process.kill()
                process.wait()
            assert (online.status, online.counter) == ("online", counter)
            assert (gone.status, gone.counter) == (last, counter)
            assert process.returncode == (-signal.SIGKILL if last == "lost" else 0), log
            assert b"Traceback" not in log
            assert b"pi-0 of fleet meadow, broker 127.0.0.1" in log


def test_an_agent_outlives_its_broker(tmp_path: Path, mosquitto: RunningBroker) -> None:
    home = home_at(tmp_path, mosquitto)
    (home.path / "agent.yaml").write_text("broker: {keepalive: 5}")
    agent = RunningAgent(open_home(home.path))
    agent.link.options = dataclasses.replace(agent.link.options, backoff_base=0.02, backoff_cap=0.1)
    agent.start()
    try:
        with listening(mosquitto) as ears:
            assert next_state(ears).status == "online"
        mosquitto.kill()
        mosquitto.start()
        with listening(mosquitto) as ears:
            assert next_state(ears).status == "online"
    finally:
        agent.stop()


def test_a_broker_that_is_not_there_does_not_keep_an_agent_from_stopping(
    tmp_path: Path, mosquitto: RunningBroker
) -> None:
    home = home_at(tmp_path, mosquitto)
    mosquitto.stop()
    agent = RunningAgent(home)
    agent.start()
    agent.stop()
    assert not agent._thread.is_alive()


# Settings of the link


def options(home: AgentHome, **changes: Any) -> Any:
    changed = AgentConfig(broker=BrokerSettings(**changes))
    home = AgentHome(home.path, home.key, home.stored, home.delegation, home.policy, changed)
    return link_options(home, PI_4, ("topic", b"will"))


def test_the_bundles_broker_is_used_unless_the_owner_overrides_it(tmp_path: Path) -> None:
    broker = Broker(host="broker.example", port=1884, username="u", password="p")
    home = enrolled(tmp_path, broker=broker)
    plain = options(home)
    assert (plain.host, plain.port, plain.username, plain.password) == ("broker.example", 1884, "u", "p")
    assert (plain.client_id, plain.tls, plain.protocol, plain.keepalive) == ("pi-0", False, "auto", 60)
    assert (plain.will_topic, plain.will_payload) == ("topic", b"will")
    assert (plain.backoff_base, plain.backoff_cap) == (PI_4.backoff_base, PI_4.backoff_cap)
    (home.path / "secret").write_text("q\n")
    own = options(home, host="h", port=1, username="v", password_file="secret", protocol="3.1.1", session_expiry=7)
    assert (own.host, own.port, own.username, own.password, own.protocol) == ("h", 1, "v", "q", "3.1.1")
    assert own.session_expiry == 7
    assert "'p'" not in repr(plain)
    assert "'q'" not in repr(own)


def test_a_password_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing-secret"):
        options(enrolled(tmp_path), username="u", password_file="missing-secret")


def test_tls_files_are_laid_down_privately_and_kept_up_to_date(tmp_path: Path) -> None:
    home = enrolled(tmp_path, broker=Broker(host="h", port=8883, ca="CA", certificate="CERT", key="KEY"))
    for _ in range(2):
        found = options(home)
        assert found.tls
        assert [found.ca_file.read_text(), found.cert_file.read_text(), found.key_file.read_text()] == [
            "CA",
            "CERT",
            "KEY",
        ]
        assert found.key_file.stat().st_mode & 0o077 == 0
        found.ca_file.write_text("OLD")
    assert options(enrolled(tmp_path, "pi-1", broker=Broker(host="h", port=1, ca="CA"))).cert_file is None


def test_an_unknown_profile_stops_an_agent_before_it_opens_anything(tmp_path: Path) -> None:
    home = enrolled(tmp_path, profile="pi-99")
    with pytest.raises(ConfigError, match="pi-99"):
        RunningAgent(home)
    assert not home.database.exists()
