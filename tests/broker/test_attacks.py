"""Mutual TLS: a real Mosquitto with the configuration of a home, under attack.

A granted subscription proves nothing under Mosquitto's access lists, so each test shows that a message does not arrive.
To do so without waiting for nothing, the same sender follows each forbidden message with one that is allowed: the
broker handles them in order, so when the second has arrived, the first never will.

One broker serves all tests; each has devices of its own, so that no session or retained message of one meets another.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.broker.authority import DAY, SERVER, Authority
from tests.broker.rig import BASE, SECONDS, Peer, Raw, context, make_authority, peers, start_tls

from covey_simulator.broker import RunningBroker

AGGREGATOR_HEARS = f"{BASE}/dev/+/up/#"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls"), "aggregator", "alerts")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RunningBroker]:
    with start_tls(tmp_path_factory.mktemp("broker"), authority) as running:
        yield running


class Fleet:
    """Peers of one test, by certificates that are made on first use."""

    def __init__(self, broker: RunningBroker, authority: Authority, held: list[Peer]) -> None:
        self.broker, self.authority, self._held = broker, authority, held

    def enter(self, name: str, client_id: str = "") -> Peer:
        """Connect by the certificate of a name, perhaps calling oneself something else."""
        if not (self.authority.folder / f"{name}.crt").exists():
            self.authority.issue(name)
        options = {"client_id": client_id} if client_id else {}
        peer = Peer.by_certificate(self.broker, self.authority, name, **options)
        self._held.append(peer)
        return peer


@pytest.fixture
def fleet(broker: RunningBroker, authority: Authority) -> Iterator[Fleet]:
    with peers() as held:
        yield Fleet(broker, authority, held)


# Who comes in


def refused(broker: RunningBroker, tls: ssl.SSLContext, session: ssl.SSLSession | None = None) -> str:
    """Knock at the broker and return why it does not let us in, or nothing if it seems to.

    With TLS 1.3 that is said after the handshake. Nothing is sent before: it would be in the way of the answer.
    """
    try:
        with (
            socket.create_connection((broker.host, broker.port), SECONDS) as plain,
            tls.wrap_socket(plain, server_hostname=broker.host, session=session) as sock,
        ):
            sock.settimeout(0.3)
            sock.recv(1)
    except ssl.SSLError as error:
        return error.reason or str(error)
    except TimeoutError:
        return ""
    raise AssertionError("the broker said something before it was asked")


def test_without_a_certificate_nobody_comes_in(broker: RunningBroker, authority: Authority) -> None:
    assert "CERTIFICATE_REQUIRED" in refused(broker, context(authority))


def test_a_certificate_of_another_authority_opens_nothing(
    broker: RunningBroker, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "Another CA")
    other.issue("aggregator")
    assert "UNKNOWN_CA" in refused(broker, context(other, "aggregator", trusts=authority))


def test_an_authority_of_the_same_name_opens_nothing(
    broker: RunningBroker, authority: Authority, tmp_path: Path
) -> None:
    twin = Authority(tmp_path, "Covey test CA")
    twin.issue("aggregator")
    assert refused(broker, context(twin, "aggregator", trusts=authority)) in (
        "TLSV1_ALERT_DECRYPT_ERROR",
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_BAD_CERTIFICATE",
    )


def test_a_certificate_for_servers_opens_nothing(broker: RunningBroker, authority: Authority) -> None:
    authority.issue("aggregator", SERVER, file="as-server")
    assert "UNSUPPORTED_CERTIFICATE" in refused(broker, context(authority, "as-server"))


def test_certificates_out_of_date_open_nothing(broker: RunningBroker, authority: Authority) -> None:
    authority.issue("late", end=-DAY / 2)
    authority.issue("early", start=DAY)
    assert "CERTIFICATE_EXPIRED" in refused(broker, context(authority, "late"))
    assert "BAD_CERTIFICATE" in refused(broker, context(authority, "early"))


def test_a_revoked_certificate_opens_nothing_once_the_broker_has_heard_of_it(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls", "thief", "keeper", "aggregator")
    tls = context(authority, "thief")
    # A broker of its own: 2.0.11 forgets max_qos, max_connections and max_topic_alias at SIGHUP, which others test.
    with start_tls(tmp_path / "broker", authority) as broker, peers() as held:
        with Raw(broker, "thief", tls) as before:
            assert before.connect() == "Success"
            session = before.client._sock.session  # type: ignore[union-attr]
        authority.revoke("thief")
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGHUP)
        deadline, said = time.monotonic() + SECONDS, ""
        while "REVOKED" not in said:
            assert time.monotonic() < deadline, said
            said = refused(broker, tls)  # nothing for as long as the signal has not arrived
        # Nor does it get in by the session of an earlier connection, which would skip the certificate.
        assert session is not None
        assert "REVOKED" in refused(broker, tls, session)
        # The others are let in as before, and are whom their certificates name as before.
        assert "CERTIFICATE_REQUIRED" in refused(broker, context(authority))
        held.append(Peer.by_certificate(broker, authority, "aggregator", client_id="other").hear(AGGREGATOR_HEARS))
        held.append(Peer.by_certificate(broker, authority, "keeper", client_id="aggregator"))
        held[1].say(f"{BASE}/pub/open/t", f"{BASE}/dev/other/up/join", f"{BASE}/dev/keeper/up/join")
        assert len(held[1].refused) == 2
        assert held[0].next() == f"{BASE}/dev/keeper/up/join"
        assert held[0].link.status.connects == 1


def test_the_links_say_why_they_are_not_let_in(fleet: Fleet, tmp_path: Path) -> None:
    fleet.authority.issue("aggregator", SERVER, file="served")
    peer = fleet.enter("served", client_id="aggregator")
    deadline = time.monotonic() + SECONDS
    while not peer.link.status.last_error:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not peer.link.connected


# Who one is


def test_a_client_is_whom_its_certificate_names_whatever_it_calls_itself(fleet: Fleet) -> None:
    bob = fleet.enter("bob").hear(f"{BASE}/dev/bob/down/#")
    with Raw(fleet.broker, "bob", context(fleet.authority, "alerts")) as thief:
        thief.client.username_pw_set("aggregator", "guessed")
        assert thief.connect() == "Success"
        thief.client.subscribe(f"{BASE}/dev/bob/down/#", qos=1)
        thief.granted.get(timeout=SECONDS)
        thief.client.publish(f"{BASE}/dev/bob/down/roster", b"as the aggregator", qos=1)
        assert "Not authorized" in thief.acknowledged.get(timeout=SECONDS)
        aggregator = fleet.enter("aggregator")
        aggregator.say(f"{BASE}/dev/bob/down/end", f"{BASE}/pub/alert")
        assert bob.next() == f"{BASE}/dev/bob/down/end", "nothing of the thief's came before"
        thief.client.subscribe(f"{BASE}/pub/alert", qos=1)
        thief.granted.get(timeout=SECONDS)
        aggregator.say(f"{BASE}/pub/alert")
        assert thief.heard.get(timeout=SECONDS) == f"{BASE}/pub/alert", (
            "it hears what its certificate may, and that alone"
        )
    assert bob.link.status.connects == 1, "nobody took over its session"


# What one may say and hear


def test_a_device_writes_only_below_its_own_up(fleet: Fleet) -> None:
    aggregator = fleet.enter("aggregator").hear(AGGREGATOR_HEARS)
    bob = fleet.enter("writer-b").hear(f"{BASE}/dev/writer-b/down/#", f"{BASE}/pub/open/+")
    alice = fleet.enter("writer-a")
    alice.say(
        f"{BASE}/dev/writer-b/up/join",
        f"{BASE}/dev/writer-b/down/roster",
        f"{BASE}/dev/writer-a/down/roster",
        f"{BASE}/pub/open/t",
        f"{BASE}/pub/time",
        "elsewhere",
        f"{BASE}/dev/writer-a/up/join",
    )
    assert aggregator.next() == f"{BASE}/dev/writer-a/up/join"
    aggregator.say(f"{BASE}/dev/writer-b/down/end")
    assert bob.next() == f"{BASE}/dev/writer-b/down/end", "nothing of alice's came before"
    assert len(alice.refused) == 6
    assert all("Not authorized" in why for _, why in alice.refused)


def test_a_device_reads_only_its_own_down_and_pub_whatever_it_subscribes_to(fleet: Fleet) -> None:
    greedy = [f"{BASE}/dev/reader-b/down/#", f"{BASE}/dev/+/down/#", f"{BASE}/dev/reader-b/up/#", "#", "+/+/+/dev/+/#"]
    greedy += ["$SYS/#", "$SYS/broker/clients/connected", "$share/g/#"]
    bob = fleet.enter("reader-b").hear(f"{BASE}/dev/reader-b/down/#")
    alice = fleet.enter("reader-a").hear(*greedy, f"{BASE}/dev/reader-a/down/#", f"{BASE}/pub/#")
    aggregator = fleet.enter("aggregator").hear(AGGREGATOR_HEARS)
    bob.say(f"{BASE}/dev/reader-b/up/join")
    assert aggregator.next() == f"{BASE}/dev/reader-b/up/join", "it was there to be overheard"
    aggregator.say(
        f"{BASE}/dev/reader-b/down/roster", f"{BASE}/pub/alert", f"{BASE}/pub/open/t", f"{BASE}/dev/reader-a/down/end"
    )
    assert bob.next() == f"{BASE}/dev/reader-b/down/roster", "it was there to be overheard"
    heard = alice.until(f"{BASE}/dev/reader-a/down/end")
    assert heard == {f"{BASE}/pub/open/t", f"{BASE}/dev/reader-a/down/end"}


def test_nobody_can_poison_what_is_retained(fleet: Fleet) -> None:
    aggregator = fleet.enter("aggregator")
    aggregator.say(f"{BASE}/pub/open/poisoned", f"{BASE}/pub/revocations", retain=True)
    with Raw(fleet.broker, "poisoner", context(fleet.authority, "alerts")) as poisoner:
        assert poisoner.connect() == "Success"
        for topic in (f"{BASE}/pub/open/poisoned", f"{BASE}/pub/revocations", f"{BASE}/dev/victim/up/state"):
            for payload in (b"poison", b""):  # an empty one would delete
                poisoner.client.publish(topic, payload, qos=1, retain=True)
                assert "Not authorized" in poisoner.acknowledged.get(timeout=SECONDS)
    newcomer = fleet.enter("poison-b").hear(f"{BASE}/pub/open/poisoned")
    assert newcomer.heard.get(timeout=SECONDS) == (f"{BASE}/pub/open/poisoned", f"{BASE}/pub/open/poisoned".encode())
    newcomer.hear(f"{BASE}/pub/revocations")
    assert newcomer.next() == f"{BASE}/pub/revocations"
    for topic in (f"{BASE}/pub/open/poisoned", f"{BASE}/pub/revocations"):
        aggregator.link.publish(topic, b"", retain=True)
    assert aggregator.link.drain(SECONDS)


def test_a_will_is_held_to_the_same_list(fleet: Fleet) -> None:
    aggregator = fleet.enter("aggregator").hear(AGGREGATOR_HEARS)
    fleet.authority.issue("dying")
    for topic in (f"{BASE}/dev/victim/up/state", f"{BASE}/dev/dying/up/state"):
        with Raw(fleet.broker, "dying", context(fleet.authority, "dying")) as dying:
            dying.client.will_set(topic, b"lost", qos=1)
            assert dying.connect() in ("Success", "Not authorized")
            dying.client._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
            dying.gone.get(timeout=SECONDS)
    assert aggregator.next() == f"{BASE}/dev/dying/up/state", "and not the will for another"


# How much


def test_who_sends_too_large_a_packet_is_cut_off_and_nothing_of_it_arrives(fleet: Fleet) -> None:
    aggregator = fleet.enter("aggregator").hear(AGGREGATOR_HEARS)
    fleet.authority.issue("large")
    with Raw(fleet.broker, "large", context(fleet.authority, "large")) as large:
        assert large.connect() == "Success"
        large.client.publish(f"{BASE}/dev/large/up/masked", bytes(2 << 20), qos=1)
        large.gone.get(timeout=SECONDS)
        assert large.acknowledged.empty()
    fleet.enter("large").say(f"{BASE}/dev/large/up/join")
    assert aggregator.next() == f"{BASE}/dev/large/up/join"


def test_qos_2_is_refused(fleet: Fleet) -> None:
    fleet.authority.issue("pedant")
    with Raw(fleet.broker, "pedant", context(fleet.authority, "pedant")) as pedant:
        assert pedant.connect() == "Success"
        pedant.client.publish(f"{BASE}/dev/pedant/up/join", b"twice", qos=2)
        assert pedant.gone.get(timeout=SECONDS) == "QoS not supported"


def test_a_flood_from_one_leaves_the_others_their_turn(fleet: Fleet) -> None:
    aggregator = fleet.enter("aggregator").hear(AGGREGATOR_HEARS)
    fleet.authority.issue("flooder")
    quiet = fleet.enter("quiet")
    assert quiet.link.wait_connected(SECONDS)
    with Raw(fleet.broker, "flooder", context(fleet.authority, "flooder")) as flooder:
        assert flooder.connect() == "Success"
        for _ in range(2000):
            flooder.client.publish(f"{BASE}/dev/flooder/up/join", bytes(512), qos=1)
        quiet.say(*(f"{BASE}/dev/quiet/up/{kind}" for kind in ("join", "shares", "masked")))
        heard = [aggregator.next() for _ in range(2003)]
    others = [topic for topic in heard if "quiet" in topic]
    assert others == [f"{BASE}/dev/quiet/up/{kind}" for kind in ("join", "shares", "masked")], "all of it, in order"
