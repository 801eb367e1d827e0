"""covey_agent.wire and the link's choices, packet by packet, against a broker that follows a script."""

from __future__ import annotations

import logging
import random
import socket

import pytest
from tests.agent.links import SECONDS, Ears, make_link
from tests.agent.scripted import (
    CONNACK,
    CONNECT,
    PACKET_LIMIT,
    PUBACK,
    PUBLISH,
    RECEIVE_MAXIMUM,
    SUBACK,
    SUBSCRIBE,
    Packet,
    Peer,
    scripted,
)


def take(peer: Peer, count: int, *, answer: bytes | None = b"") -> list[Packet]:
    """Read this many PUBLISH packets and acknowledge each, with a reason if one is given."""
    packets = []
    for _ in range(count):
        packets.append(peer.expect(PUBLISH))
        if answer is not None:
            peer.send(PUBACK, packets[-1].mid + answer)
    return packets


def test_unacknowledged_messages_are_repeated_by_paho_and_by_nobody_else() -> None:
    def first(peer: Peer) -> object:
        peer.accept()
        return take(peer, 3, answer=None)

    def second(peer: Peer) -> object:
        peer.accept(present=True)
        packets = take(peer, 5)
        return packets + peer.until_gone()

    with scripted(first, second) as (port, results):
        link = make_link(port, "d1", inflight=3)
        for number in range(5):
            link.publish(f"t/{number}", b"x")
        link.start()
        lost = results.get(timeout=SECONDS)
        assert link.drain(SECONDS)
        link.stop()
        got = results.get(timeout=SECONDS)
    assert isinstance(lost, list)
    assert isinstance(got, list)
    assert [packet.topic for packet in got if packet.kind == PUBLISH] == [f"t/{number}" for number in range(5)]
    assert [(each.topic, each.mid) for each in got[:3]] == [(each.topic, each.mid) for each in lost]
    assert [each.flags & 8 for each in got[:5]] == [8, 8, 8, 0, 0], "DUP marks the repeated ones"


def test_the_receive_maximum_bounds_what_is_in_flight() -> None:
    def script(peer: Peer) -> object:
        peer.accept(properties=RECEIVE_MAXIMUM + (2).to_bytes(2))
        early = take(peer, 2, answer=None)
        peer._sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.read()
        peer._sock.settimeout(SECONDS)
        peer._file = peer._sock.makefile("rb")
        for packet in early:
            peer.send(PUBACK, packet.mid)
        return take(peer, 3)

    with scripted(script) as (port, results):
        link = make_link(port, "d1", inflight=16)
        for number in range(5):
            link.publish(f"t/{number}", b"x")
        link.start()
        rest = results.get(timeout=SECONDS)
        link.stop()
    assert isinstance(rest, list), rest
    assert [packet.topic for packet in rest] == ["t/2", "t/3", "t/4"]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        (PACKET_LIMIT + (100).to_bytes(4), ["t/0", "t/2"]),
        (RECEIVE_MAXIMUM + (1).to_bytes(2), ["t/0", "t/1", "t/2"]),
    ],
)
def test_tighter_limits_after_a_reconnection_are_kept(properties: bytes, expected: list[str]) -> None:
    def first(peer: Peer) -> object:
        peer.accept()
        return take(peer, 3, answer=None)

    def second(peer: Peer) -> object:
        peer.accept(present=True, properties=properties)
        return take(peer, len(expected))

    ears = Ears()
    with scripted(first, second) as (port, results):
        link = make_link(port, "d1", ears)
        for number in range(3):
            link.publish(f"t/{number}", b"x" * (200 if number == 1 else 1))
        link.start()
        results.get(timeout=SECONDS)
        got = results.get(timeout=SECONDS)
        link.stop()
    assert isinstance(got, list), got
    assert [packet.topic for packet in got] == expected
    if len(expected) == 2:
        assert ears.lost.get(timeout=SECONDS) == ("t/1", 200, "exceeds 100")


def test_a_limit_that_is_gone_is_forgotten() -> None:
    def first(peer: Peer) -> object:
        return peer.accept(properties=PACKET_LIMIT + (400).to_bytes(4))

    def second(peer: Peer) -> object:
        peer.accept()
        return peer.until_gone()

    ears = Ears()
    with scripted(first, second) as (port, _):
        link = make_link(port, "d1", ears)
        link.start()
        for _ in range(2):
            ears.sessions.get(timeout=SECONDS)
        assert link.max_payload == link.options.max_payload
        link.stop()


def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not() -> None:
    def script(peer: Peer) -> object:
        peer.accept()
        packets = take(peer, 1, answer=b"\x97")  # quota exceeded
        packets += take(peer, 1, answer=b"\x87")  # not authorized
        packets += take(peer, 1)
        packets += take(peer, 1)
        return packets

    ears = Ears()
    with scripted(script) as (port, results):
        link = make_link(port, "d1", ears, inflight=1)
        for number in range(3):
            link.publish(f"t/{number}", b"x")
        link.start()
        got = results.get(timeout=SECONDS)
        link.stop()
    assert isinstance(got, list), got
    # The first comes again before what stood behind it; then that is refused for good.
    assert [packet.topic for packet in got] == ["t/0", "t/0", "t/1", "t/2"]
    assert ears.lost.get(timeout=SECONDS) == ("t/0", 1, "the broker answered: Not authorized")


def test_what_is_in_hand_is_not_sent_again_with_what_was_refused_for_now() -> None:
    def script(peer: Peer) -> object:
        peer.accept()
        first = take(peer, 3, answer=None)
        peer.send(PUBACK, first[0].mid + b"\x97")  # quota exceeded
        packets = take(peer, 2)
        for packet in first[1:]:
            peer.send(PUBACK, packet.mid)
        return packets + peer.until_gone()

    with scripted(script) as (port, results):
        link = make_link(port, "d1", inflight=3)
        for number in range(4):
            link.publish(f"t/{number}", b"x")
        link.start()
        assert link.drain(SECONDS)
        link.stop()
        got = results.get(timeout=SECONDS)
    assert isinstance(got, list), got
    assert [packet.topic for packet in got if packet.kind == PUBLISH] == ["t/0", "t/3"]


def test_counted_bytes_are_those_on_the_wire() -> None:
    def script(peer: Peer) -> object:
        peer.accept()
        return sum(packet.size for packet in take(peer, 3))

    with scripted(script) as (port, results):
        link = make_link(port, "d1")
        for size in (0, 100, 20_000):
            link.publish("some/topic", bytes(size))
        link.start()
        wire = results.get(timeout=SECONDS)
        assert link.drain(SECONDS)
        counted = link.status.bytes_up
        link.stop()
    assert isinstance(wire, int), wire
    assert wire <= counted <= wire + 3 * 3, "the length field is counted as four bytes"


@pytest.mark.parametrize("outcome", ["refused 3.1.1's way", "refused MQTT 5's way", "closed", "silence"])
def test_a_broker_without_mqtt_5_is_met_in_3_1_1(outcome: str) -> None:
    def first(peer: Peer) -> object:
        packet = peer.expect(CONNECT)
        if outcome == "refused 3.1.1's way":
            peer.send(CONNACK, b"\x00\x01")
        elif outcome == "refused MQTT 5's way":
            peer.send(CONNACK, b"\x00\x84\x00")
        elif outcome == "silence":
            peer.until_gone()
        return packet.level

    def second(peer: Peer) -> object:
        return peer.accept(), take(peer, 1)

    with scripted(first, second) as (port, results):
        link = make_link(port, "d1", connect_timeout=0.3, backoff_base=600.0, backoff_cap=600.0)
        link.publish("t", b"x")
        link.start()
        assert results.get(timeout=SECONDS) == 5
        second_answer = results.get(timeout=SECONDS)
        assert link.drain(SECONDS)
        assert link.status.protocol == "3.1.1"
        link.stop()
    assert isinstance(second_answer, tuple), second_answer
    assert second_answer[0].level == 4
    assert second_answer[0].body[7] & 2 == 0, "clean session would wipe what came while we were away"


def test_a_broker_that_was_only_starting_is_asked_for_mqtt_5_again() -> None:
    def close(peer: Peer) -> object:
        return peer.expect(CONNECT).level

    with scripted(close, close, lambda peer: peer.accept().level) as (port, results):
        link = make_link(port, "d1")
        link.start()
        assert [results.get(timeout=SECONDS) for _ in range(3)] == [5, 4, 5]
        link.stop()


def test_what_worked_once_is_kept_through_closed_connections() -> None:
    def close(peer: Peer) -> object:
        return peer.expect(CONNECT).level

    with scripted(lambda peer: peer.accept().level, close, close, close) as (port, results):
        link = make_link(port, "d1")
        link.start()
        assert [results.get(timeout=SECONDS) for _ in range(4)] == [5, 5, 5, 5]
        link.stop()


@pytest.mark.parametrize(("fixed", "level"), [("5", 5), ("3.1.1", 4)])
def test_a_protocol_that_is_set_is_never_left(fixed: str, level: int) -> None:
    def close(peer: Peer) -> object:
        return peer.expect(CONNECT).level

    with scripted(close, close, close) as (port, results):
        link = make_link(port, "d1", protocol=fixed)
        link.start()
        assert [results.get(timeout=SECONDS) for _ in range(3)] == [level] * 3
        link.stop()


def test_a_refused_subscription_is_reported_and_not_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    def script(peer: Peer) -> object:
        peer.accept()
        asked = peer.expect(SUBSCRIBE)
        peer.send(SUBACK, asked.mid + b"\x00" + b"\x01\x87")
        return [packet.kind for packet in peer.until_gone()]

    with caplog.at_level(logging.ERROR, "covey.agent.transport"), scripted(script) as (port, results):
        link = make_link(port, "d1")
        link.subscribe(["a", "b"])
        link.start()
        assert not link.wait_connected(1.5), "b is wanted and not granted"
        link.stop()
        assert SUBSCRIBE not in results.get(timeout=SECONDS)  # type: ignore[operator]
    assert "refuses the subscription to b: Not authorized" in caplog.text


def test_connection_attempts_are_reported_once_and_spread_by_jitter(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[float, float]] = []

    class Recorder(random.Random):
        def uniform(self, a: float, b: float) -> float:
            asked.append((a, b))
            return 0.0 if len(asked) < 8 else 0.05

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    ears = Ears()
    with caplog.at_level(logging.WARNING, "covey.agent.transport"):
        link = make_link(port, "d1", ears, backoff_base=1.0, backoff_cap=20.0, rng=Recorder())
        link.start()
        while len(asked) < 8:
            link.wait_connected(0.02)
        link.stop()
    assert asked[:8] == [(0.0, top) for top in (1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0)]
    assert len([record for record in caplog.records if "cannot connect to 127.0.0.1" in record.getMessage()]) == 1
