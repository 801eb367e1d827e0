"""Names and passwords: a real Mosquitto with the configuration that comes along keeps devices apart.

A granted subscription proves nothing under Mosquitto's access lists, so each test shows that a message does not arrive.
To do so without waiting for nothing, the same sender follows each forbidden message with one that is allowed: the
broker handles them in order, so when the second has arrived, the first never will.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.broker.rig import BASE, SECONDS, Peer, start_variant

from covey_aggregator.broker_files import broker_config_folder
from covey_simulator.broker import RunningBroker

USERS = ["aggregator", "alerts", "alice", "bob"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """The configuration as it comes; only port, paths and the account it runs as are the test's."""
    folder = tmp_path / "deployed"
    folder.mkdir()
    passwords = folder / "passwords"
    for index, user in enumerate(USERS):
        create = ["-c"] if index == 0 else []
        subprocess.run(
            ["mosquitto_passwd", *create, "-b", str(passwords), user, f"secret-{user}"], check=True, capture_output=True
        )
    values = {"password_file": str(passwords), "acl_file": str(broker_config_folder() / "acl")}
    with start_variant(folder, "mosquitto-passwords.conf", values) as running:
        yield running


@pytest.fixture(params=["5", "3.1.1"])
def enter(request: pytest.FixtureRequest, broker: RunningBroker) -> Iterator[Callable[[str], Peer]]:
    """Let users in, over both protocol versions, and out at the end."""
    peers: list[Peer] = []

    def connect(name: str) -> Peer:
        peers.append(Peer(broker, name, protocol=request.param, username=name, password=f"secret-{name}"))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.link.stop()


def test_a_device_writes_only_below_its_own_up(enter: Callable[[str], Peer]) -> None:
    aggregator = enter("aggregator").hear(f"{BASE}/dev/+/up/#")
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
    aggregator = enter("aggregator").hear(f"{BASE}/dev/+/up/#")
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
    pager = enter("alerts").hear(f"{BASE}/pub/alert", f"{BASE}/dev/#", f"{BASE}/pub/+/+")
    enter("aggregator").say(f"{BASE}/pub/alert", f"{BASE}/pub/revocations", f"{BASE}/pub/alert")
    assert [pager.next(), pager.next()] == [f"{BASE}/pub/alert"] * 2
    assert alice.next() == f"{BASE}/pub/revocations", "no alert came before"
    pager.say(f"{BASE}/pub/alert")
    enter("aggregator").say(f"{BASE}/pub/open/t")
    heard = {alice.next()}
    while f"{BASE}/pub/open/t" not in heard:
        heard.add(alice.next())
    assert f"{BASE}/pub/alert" not in heard


def test_retained_messages_of_others_stay_hidden(enter: Callable[[str], Peer]) -> None:
    aggregator = enter("aggregator")
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
    peer = Peer(broker, "alice", username="alice", password=password)
    deadline = time.monotonic() + SECONDS
    while not peer.link.status.last_error and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not peer.link.connected
    assert "Not authorized" in peer.link.status.last_error
    assert "secret" not in peer.link.status.last_error
    peer.link.stop()


def test_calling_oneself_by_anothers_client_id_pushes_nobody_out(
    enter: Callable[[str], Peer], broker: RunningBroker
) -> None:
    bob = enter("bob").hear(f"{BASE}/dev/bob/down/#")
    thief = Peer(broker, "bob", username="alice", password="secret-alice")
    thief.hear(f"{BASE}/dev/bob/down/#")
    enter("aggregator").say(f"{BASE}/dev/bob/down/roster")
    assert bob.next() == f"{BASE}/dev/bob/down/roster"
    assert thief.heard.empty()
    assert bob.link.status.connects == 1
    thief.link.stop()
