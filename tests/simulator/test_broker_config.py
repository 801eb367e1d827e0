"""broker_config: a real Mosquitto with the deployed files keeps devices apart.

A granted subscription proves nothing under Mosquitto's access lists, so each test shows that a message does not arrive.
To do so without waiting for nothing, the same sender follows each forbidden message with one that is allowed: the
broker handles them in order, so when the second has arrived, the first never will.
"""

from __future__ import annotations

import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covey_agent.link_options import LinkOptions
from covey_agent.outbox import Outbox
from covey_agent.transport import LinkEvents, MqttLink
from covey_simulator.broker import RunningBroker, start_broker

FOLDER = Path(__file__).parents[2] / "broker_config"
BASE = "covey/v1/f"
USERS = ["covey-aggregator", "covey-alerts", "alice", "bob"]
SECONDS = 20


class Peer:
    """A user with a link and what it has heard."""

    def __init__(self, broker: RunningBroker, name: str, protocol: str, password: str | None = None) -> None:
        """Connect as ``name``."""
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refused: list[tuple[str, str]] = []
        options = LinkOptions(
            host=broker.host,
            port=broker.port,
            client_id=name,
            username=name,
            password=password or f"secret-{name}",
            protocol="5" if protocol == "5" else "3.1.1",
        )
        events = LinkEvents(
            on_message=lambda topic, payload: self.heard.put((topic, payload)),
            on_undeliverable=lambda topic, _size, why: self.refused.append((topic, why)),
        )
        self.link = MqttLink(options, Outbox(":memory:"), events)
        self.link.start()

    def hear(self, *topics: str) -> Peer:
        """Subscribe, and wait for the broker's word."""
        self.link.subscribe(topics)
        assert self.link.wait_connected(SECONDS), self.link.status.last_error
        return self

    def say(self, *topics: str, retain: bool = False) -> None:
        """Publish the topic's own name under each topic, in this order."""
        for topic in topics:
            self.link.publish(topic, topic.encode(), retain=retain)
        assert self.link.drain(SECONDS)

    def next(self) -> str:
        """Return the topic of the next message."""
        return self.heard.get(timeout=SECONDS)[0]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """The deployed configuration; only port, paths and the account it runs as are the test's."""
    folder = tmp_path / "deployed"
    folder.mkdir()
    passwords = folder / "passwords"
    for index, user in enumerate(USERS):
        create = ["-c"] if index == 0 else []
        subprocess.run(
            ["mosquitto_passwd", *create, "-b", str(passwords), user, f"secret-{user}"], check=True, capture_output=True
        )
    config = (FOLDER / "mosquitto.conf").read_text()
    for ours, theirs in [
        ("listener 1883 127.0.0.1", "listener {port} {host}"),
        ("password_file passwords", f"password_file {passwords}"),
        ("acl_file acl", f"acl_file {FOLDER / 'acl'}"),
        ("# persistence_location /var/lib/mosquitto/", f"persistence_location {folder}/"),
    ]:
        assert config.count(f"\n{ours}\n") == 1, ours
        config = config.replace(f"\n{ours}\n", f"\n{theirs}\n")
    if os.geteuid() == 0:  # or it would become a user who cannot read the test's folder
        config += "user root\n"
    with start_broker(folder, prefer="mosquitto", config=config) as running:
        yield running


@pytest.fixture(params=["5", "3.1.1"])
def enter(request: pytest.FixtureRequest, broker: RunningBroker) -> Iterator[Callable[[str], Peer]]:
    """Let users in, over both protocol versions, and out at the end."""
    peers: list[Peer] = []

    def connect(name: str) -> Peer:
        peers.append(Peer(broker, name, request.param))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.link.stop()


def test_a_device_writes_only_below_its_own_up(enter: Callable[[str], Peer]) -> None:
    aggregator = enter("covey-aggregator").hear(f"{BASE}/dev/+/up/#")
    bob = enter("bob").hear(f"{BASE}/dev/bob/down/#", f"{BASE}/pub/#")
    alice = enter("alice")
    alice.say(
        f"{BASE}/dev/bob/up/join",
        f"{BASE}/dev/bob/down/roster",
        f"{BASE}/dev/alice/down/roster",
        f"{BASE}/pub/open/t",
        "elsewhere",
        f"{BASE}/dev/alice/up/join",
    )
    assert aggregator.next() == f"{BASE}/dev/alice/up/join"
    aggregator.say(f"{BASE}/dev/bob/down/end")
    assert bob.next() == f"{BASE}/dev/bob/down/end", "nothing of alice's came before"
    if alice.link.status.protocol == "5":
        assert len(alice.refused) == 5
        assert all("Not authorized" in why for _, why in alice.refused)


def test_a_device_reads_only_its_own_down_and_pub(enter: Callable[[str], Peer]) -> None:
    greedy = [f"{BASE}/dev/bob/down/#", f"{BASE}/dev/+/down/#", f"{BASE}/dev/bob/up/#", "#"]
    alice = enter("alice").hear(*greedy, f"{BASE}/dev/alice/down/#", f"{BASE}/pub/#")
    bob = enter("bob").hear(f"{BASE}/dev/bob/down/#")
    aggregator = enter("covey-aggregator").hear(f"{BASE}/dev/+/up/#")
    bob.say(f"{BASE}/dev/bob/up/join")
    assert aggregator.next() == f"{BASE}/dev/bob/up/join", "it was there to be overheard"
    aggregator.say(f"{BASE}/dev/bob/down/roster", f"{BASE}/pub/open/t", f"{BASE}/dev/alice/down/roster")
    assert bob.next() == f"{BASE}/dev/bob/down/roster", "it was there to be overheard"
    heard = {alice.next()}
    while f"{BASE}/dev/alice/down/roster" not in heard:
        heard.add(alice.next())  # overlapping subscriptions may deliver one message more than once
    assert heard == {f"{BASE}/pub/open/t", f"{BASE}/dev/alice/down/roster"}


def test_alerts_are_for_those_who_listen_for_them_and_not_for_devices(enter: Callable[[str], Peer]) -> None:
    alice = enter("alice").hear(f"{BASE}/pub/#", f"{BASE}/pub/alert", f"{BASE}/pub/+")
    pager = enter("covey-alerts").hear(f"{BASE}/pub/alert", f"{BASE}/dev/#", f"{BASE}/pub/+/+")
    enter("covey-aggregator").say(f"{BASE}/pub/alert", f"{BASE}/pub/revocations", f"{BASE}/pub/alert")
    assert [pager.next(), pager.next()] == [f"{BASE}/pub/alert"] * 2
    assert alice.next() == f"{BASE}/pub/revocations", "no alert came before"
    pager.say(f"{BASE}/pub/alert")
    enter("covey-aggregator").say(f"{BASE}/pub/open/t")
    heard = {alice.next()}
    while f"{BASE}/pub/open/t" not in heard:
        heard.add(alice.next())
    assert f"{BASE}/pub/alert" not in heard


def test_retained_messages_of_others_stay_hidden(enter: Callable[[str], Peer]) -> None:
    aggregator = enter("covey-aggregator")
    aggregator.say(f"{BASE}/dev/bob/down/release", f"{BASE}/dev/alice/down/release", retain=True)
    alice = enter("alice").hear(f"{BASE}/dev/bob/down/release")
    alice.hear(f"{BASE}/dev/alice/down/release")
    assert alice.next() == f"{BASE}/dev/alice/down/release"
    bob = enter("bob").hear(f"{BASE}/dev/bob/down/release")
    assert bob.next() == f"{BASE}/dev/bob/down/release"
    for name in ("alice", "bob"):
        aggregator.link.publish(f"{BASE}/dev/{name}/down/release", b"", retain=True)
    assert aggregator.link.drain(SECONDS)


@pytest.mark.parametrize("password", ["wrong", "secret-bob"])
def test_a_wrong_password_gets_nobody_in(broker: RunningBroker, password: str) -> None:
    peer = Peer(broker, "alice", "5", password)
    assert not peer.link.wait_connected(1.0)
    assert "Not authorized" in peer.link.status.last_error
    assert "secret" not in peer.link.status.last_error
    peer.link.stop()
