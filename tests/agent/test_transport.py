"""covey_agent.transport against a real Mosquitto: nothing is lost, nothing kills the link.

QoS 1 allows a message to arrive twice after a broken connection, so tests that break one count distinct messages; tests
that break none count deliveries.
"""

from __future__ import annotations

import logging
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.links import SECONDS, Ears, make_link

from covey_agent.link_options import LinkEvents, publish_size
from covey_agent.outbox import Outbox
from covey_agent.transport import MqttLink
from covey_protocol.errors import LocalError, StateError
from covey_simulator.broker import RunningBroker, start_broker

Maker = Callable[..., MqttLink]

KEEPING = """\
listener {{port}} {{host}}
allow_anonymous true
persistence true
persistence_location {folder}/
max_queued_messages 10000
set_tcp_nodelay true
"""


@pytest.fixture
def link() -> Iterator[Maker]:
    """Make links that are stopped at the end."""
    made: list[MqttLink] = []

    def make(*args: Any, start: bool = True, **options: Any) -> MqttLink:
        made.append(make_link(*args, **options))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[RunningBroker]:
    """A Mosquitto that remembers sessions and messages over a restart."""
    folder = tmp_path / "keeper"
    folder.mkdir()
    config = KEEPING.format(folder=folder) + ("user root\n" if os.geteuid() == 0 else "")
    with start_broker(folder, prefer="mosquitto", config=config) as broker:
        yield broker


def listen(link: Maker, port: int, *topics: str, **options: Any) -> Ears:
    """Start a subscriber and wait for its subscriptions."""
    ears = Ears()
    made = link(port, "listener", ears, **options)
    made.subscribe(topics)
    assert made.wait_connected(SECONDS)
    return ears


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_each_message_arrives_once_and_leaves_the_outbox(mosquitto: RunningBroker, link: Maker, protocol: str) -> None:
    ears = listen(link, mosquitto.port, "t/#", protocol=protocol)
    sender = link(mosquitto.port, "sender", protocol=protocol)
    for number in range(300):
        sender.publish(f"t/{number}", str(number).encode())
    assert sender.drain(SECONDS)
    sender.publish("t/end", b"end")
    assert ears.until(b"end") == [*(str(number).encode() for number in range(300)), b"end"]
    status = sender.status
    assert (status.protocol, status.connects, status.messages_up) == (protocol, 1, 301)
    assert status.bytes_up == sum(publish_size(f"t/{n}", len(str(n))) for n in range(300)) + publish_size("t/end", 3)


def test_a_restarted_broker_gets_everything(keeper: RunningBroker, link: Maker, tmp_path: Path) -> None:
    ears = listen(link, keeper.port, "t/#")
    outbox = Outbox(tmp_path / "device.db")
    sender = link(keeper.port, "sender", Ears(), outbox, inflight=4)
    for number in range(400):
        sender.publish(f"t/{number}", str(number).encode())
        if number in (50, 200):
            assert sender.wait_connected(SECONDS)
            keeper.stop()
        if number in (100, 250):
            assert outbox.used()[0] >= 50, "what was published since the broker went"
            keeper.start()
    assert sender.drain(SECONDS)
    assert outbox.used() == (0, 0)
    sender.publish("t/end", b"end")
    counts = Counter(ears.until(b"end"))
    assert set(counts) == {str(number).encode() for number in range(400)} | {b"end"}
    again = sum(counts.values()) - len(counts)
    assert again <= 1 + 2 * (4 + 16), "only what was in flight, here or to the listener, may come twice"
    assert sender.status.connects == 3


def test_what_waited_for_the_first_connection_is_sent_once(
    mosquitto: RunningBroker, link: Maker, tmp_path: Path
) -> None:
    mosquitto.stop()
    outbox = Outbox(tmp_path / "device.db")
    before = link(mosquitto.port, "sender", outbox=outbox)
    for number in range(50):
        before.publish(f"t/{number}", str(number).encode())
    before.stop()
    outbox.close()
    mosquitto.start()
    ears = listen(link, mosquitto.port, "t/#")
    after = link(mosquitto.port, "sender", outbox=Outbox(tmp_path / "device.db"))
    after.publish("t/end", b"end")
    assert ears.until(b"end") == [*(str(number).encode() for number in range(50)), b"end"]


def test_what_a_transaction_enqueued_goes_out_at_the_kick(mosquitto: RunningBroker, link: Maker) -> None:
    ears = listen(link, mosquitto.port, "t")
    sender = link(mosquitto.port, "sender")
    with sender.outbox.transaction() as cursor:
        cursor.execute("CREATE TABLE ledger (spent INTEGER)")
        sender.outbox.put_in(cursor, "t", b"paid")
    sender.kick()
    assert ears.next() == ("t", b"paid")


def test_qos_0_is_sent_and_forgotten(mosquitto: RunningBroker, link: Maker) -> None:
    ears = listen(link, mosquitto.port, "t")
    sender = link(mosquitto.port, "sender")
    for number in range(100):
        sender.publish("t", str(number).encode(), qos=0)
    assert ears.until(b"99") == [str(number).encode() for number in range(100)]
    assert sender.drain(SECONDS)


@pytest.mark.parametrize(("clean", "protocol"), [(False, "5"), (False, "3.1.1"), (True, "5")])
def test_the_will_appears_when_a_device_is_killed_only(
    mosquitto: RunningBroker, link: Maker, clean: bool, protocol: str
) -> None:
    ears = listen(link, mosquitto.port, "d/up/#")
    script = (
        "import sys; from covey_agent.link_options import LinkOptions; from covey_agent.outbox import Outbox\n"
        "from covey_agent.transport import MqttLink\n"
        "link = MqttLink(LinkOptions(host='127.0.0.1', port=int(sys.argv[1]), client_id='d', will_topic='d/up/state',\n"
        "    will_payload=b'lost', protocol=sys.argv[2]), Outbox(':memory:'))\n"
        "link.start(); link.publish('d/up/state', b'here', retain=True)\n"
        "assert link.drain(20); print('up', flush=True)\n"
        "sys.stdin.read(); link.publish('d/up/state', b'gone', retain=True); link.drain(20); link.stop()\n"
    )
    command = [sys.executable, "-c", script, str(mosquitto.port), protocol]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as device:
        assert device.stdout is not None
        assert device.stdin is not None
        assert device.stdout.readline() == b"up\n"
        assert ears.next() == ("d/up/state", b"here")
        if clean:
            device.stdin.close()
        else:
            device.send_signal(signal.SIGKILL)
        assert device.wait(SECONDS) == (0 if clean else -9)
    left = b"gone" if clean else b"lost"
    assert ears.next() == ("d/up/state", left)
    later = Ears()
    link(mosquitto.port, "later", later).subscribe(["d/up/state"])
    assert later.next() == ("d/up/state", left), "it is retained, and a clean end sends no will after it"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_session_delivers_what_came_while_away(mosquitto: RunningBroker, link: Maker, protocol: str) -> None:
    first = link(mosquitto.port, "sleeper", protocol=protocol)
    first.subscribe(["t/#"])
    assert first.wait_connected(SECONDS)
    first.stop()
    sender = link(mosquitto.port, "sender")
    for number in range(50):
        sender.publish(f"t/{number}", str(number).encode())
    assert sender.drain(SECONDS)
    ears = Ears()
    link(mosquitto.port, "sleeper", ears, protocol=protocol)  # another process, in effect: it never subscribed
    assert ears.sessions.get(timeout=SECONDS) is True
    assert ears.until(b"49") == [str(number).encode() for number in range(50)]


def test_a_session_can_be_given_up(mosquitto: RunningBroker, link: Maker) -> None:
    for _ in range(2):
        ears = Ears()
        each = link(mosquitto.port, "guest", ears, session_expiry=0)
        assert ears.sessions.get(timeout=SECONDS) is False
        each.stop()


def test_subscriptions_survive_a_broker_that_forgot_them(mosquitto: RunningBroker, link: Maker) -> None:
    ears = Ears()
    listener = link(mosquitto.port, "listener", ears)
    listener.subscribe([f"t/{number}/+" for number in range(20)])
    assert listener.wait_connected(SECONDS)
    mosquitto.stop()
    assert ears.ends.get(timeout=SECONDS)
    assert not listener.connected
    mosquitto.start()
    assert listener.wait_connected(SECONDS)
    assert [ears.sessions.get(timeout=SECONDS) for _ in range(2)] == [False, False]
    sender = link(mosquitto.port, "sender")
    sender.publish("t/0/x", b"0")
    sender.publish("t/19/x", b"19")
    assert [ears.next()[1] for _ in range(2)] == [b"0", b"19"]


def test_unsubscribed_topics_fall_silent(mosquitto: RunningBroker, link: Maker) -> None:
    ears = Ears()
    one = link(mosquitto.port, "one", ears)
    one.subscribe(["a", "b"])
    assert one.wait_connected(SECONDS)
    one.publish("a", b"1")
    assert ears.next() == ("a", b"1")
    one.unsubscribe(["a"])
    one.publish("a", b"2")
    one.publish("b", b"3")
    assert ears.next() == ("b", b"3")


def test_an_oversized_message_is_refused_here_and_the_link_lives(tmp_path: Path, link: Maker) -> None:
    config = "listener {port} {host}\nallow_anonymous true\nmax_packet_size 2000\n"
    with start_broker(tmp_path, prefer="mosquitto", config=config) as broker:
        ears = Ears()
        one = link(broker.port, "one", ears, start=False)
        one.publish("t", b"x" * 5000)  # the limit is not known yet
        one.publish("t", b"first")
        one.subscribe(["t"])
        one.start()
        assert ears.lost.get(timeout=SECONDS) == ("t", 5000, "exceeds 2000")
        assert one.wait_connected(SECONDS)
        assert 1000 < one.max_payload < 2000
        largest = 2000 - publish_size("t", 0)
        with pytest.raises(LocalError, match=rf"{largest + 1} bytes for t exceed") as error:
            one.publish("t", b"x" * (largest + 1))
        assert error.value.cause == "too-large"
        one.publish("t", b"y" * largest)
        assert one.drain(SECONDS)
        assert ears.until(b"y" * largest)[-1:] == [b"y" * largest]
        assert (one.status.connects, one.status.undeliverable, one.connected) == (1, 1, True)


def test_our_own_ceiling_holds_where_the_broker_states_none(mosquitto: RunningBroker, link: Maker) -> None:
    one = link(mosquitto.port, "one", protocol="3.1.1", max_payload=100)
    assert one.wait_connected(SECONDS)
    assert one.max_payload == 100
    one.publish("t", b"x" * 100)
    with pytest.raises(LocalError, match="101 bytes for t exceed the 100"):
        one.publish("t", b"x" * 101)


def test_the_embedded_broker_is_spoken_to_in_3_1_1(tmp_path: Path, link: Maker) -> None:
    with start_broker(tmp_path, prefer="amqtt") as broker:
        ears = Ears()
        one = link(broker.port, "one", ears, connect_timeout=1.0, will_topic="d/state", will_payload=b"lost")
        one.subscribe(["t/#"])
        for number in range(100):
            one.publish(f"t/{number}", str(number).encode())
        assert one.wait_connected(SECONDS)
        assert one.status.protocol == "3.1.1"
        one.publish("t/end", b"end")
        assert one.drain(SECONDS)
        assert ears.until(b"end")
        one.stop()


def test_exceptions_in_callbacks_are_logged_once_and_change_nothing(
    mosquitto: RunningBroker, link: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    calls: queue.Queue[object] = queue.Queue()

    def fail(*args: object) -> None:
        calls.put(args)
        raise ZeroDivisionError("in a callback")

    ears = Ears()
    ears.events = LinkEvents(on_message=fail, on_connect=fail, on_disconnect=fail, on_undeliverable=fail)
    with caplog.at_level(logging.ERROR, "covey.agent.transport"):
        one = link(mosquitto.port, "one", ears)
        one.subscribe(["t"])
        for _ in range(20):
            one.publish("t", b"x")
        for _ in range(21):
            calls.get(timeout=SECONDS)
        assert one.drain(SECONDS)
        assert (one.connected, one.status.connects) == (True, 1)
        one.stop()
    raised = [record.getMessage() for record in caplog.records if record.exc_info]
    assert Counter(name.split()[1] for name in raised) == {"on_connect": 1, "on_message": 1, "on_disconnect": 1}
    assert all(r.exc_info[0] is ZeroDivisionError for r in caplog.records if r.exc_info)


def test_a_failing_outbox_breaks_a_connection_but_not_the_link(
    mosquitto: RunningBroker, link: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = listen(link, mosquitto.port, "t")
    sender = link(mosquitto.port, "sender", start=False)
    real, failures = sender.outbox.pending, [LocalError("disk"), LocalError("disk again")]

    def pending(**arguments: int) -> object:
        if failures:
            raise failures.pop()
        return real(**arguments)

    monkeypatch.setattr(sender.outbox, "pending", pending)
    sender.publish("t", b"x")
    sender.start()
    assert sender.drain(SECONDS)
    assert ears.next() == ("t", b"x")
    assert sender.status.connects == 3


def test_start_and_stop_never_wait_for_a_broker(link: Maker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    one = link(port, "one", backoff_base=3000.0, backoff_cap=3000.0)
    with pytest.raises(StateError, match="started twice"):
        one.start()
    one.publish("t", b"kept")
    assert not one.wait_connected(0.05)
    assert not one.drain(0.05)
    one.stop()
    one.stop()
    assert one.outbox.used() == (1, 4)


def test_a_stopped_link_can_start_again(mosquitto: RunningBroker, link: Maker) -> None:
    ears = Ears()
    one = link(mosquitto.port, "one", ears)
    one.subscribe(["t"])
    assert one.wait_connected(SECONDS)
    one.stop()
    assert ears.ends.get(timeout=SECONDS)
    assert not one.connected
    one.publish("t", b"between")
    one.start()
    assert ears.next() == ("t", b"between")


def test_descriptors_above_1023_work(mosquitto: RunningBroker, link: Maker) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.dup(0) for _ in range(1100)]
    try:
        one = link(mosquitto.port, "one")
        one.publish("t", b"x")
        assert one.drain(SECONDS)
        one.stop()
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
