"""The aggregator's connection, with a real broker that comes and goes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.aggregator.live import PATIENCE, Tap

from covey_aggregator.home import BrokerSettings
from covey_aggregator.link import BrokerLink
from covey_protocol.errors import ConfigError
from covey_simulator.broker import RunningBroker, start_broker

PASSWORDS = """\
user root
listener {port} {host}
allow_anonymous false
password_file %s
log_dest stderr
log_type all
"""


class Ear(list[tuple[str, bytes]]):
    def __call__(self, topic: str, payload: bytes, acknowledge: Callable[[], object]) -> None:
        self.append((topic, payload))
        acknowledge()


def make_link(broker: RunningBroker, folder: Path, ear: Ear | None = None, **settings: object) -> BrokerLink:
    place = BrokerSettings(host=broker.host, port=broker.port, **settings)  # type: ignore[arg-type]
    return BrokerLink(place, folder, ["a/+/up/#"], ear if ear is not None else Ear())


@contextlib.asynccontextmanager
async def running(link: BrokerLink) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: object) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_messages_go_both_ways_in_order(mosquitto: RunningBroker, tmp_path: Path, protocol: str) -> None:
    ear = Ear()
    link = make_link(mosquitto, tmp_path, ear, protocol=protocol)

    async def scene(tap: Tap) -> None:
        for number in range(500):
            link.publish("out", b"%d" % number)
        link.publish("kept", b"state", retain=True)
        async with running(link):
            await until(lambda: len(tap.on("out")) == 500)
            tap.publish("a/pi/up/join", b"one")
            tap.publish("a/pi/down/x", b"not for us")
            tap.publish("a/pi/up/masked/abc", b"")
            await until(lambda: len(ear) == 2)

    with Tap(mosquitto) as tap:
        asyncio.run(scene(tap))
    assert tap.on("out") == [b"%d" % number for number in range(500)]
    assert ear == [("a/pi/up/join", b"one"), ("a/pi/up/masked/abc", b"")]
    with Tap(mosquitto, "kept") as later:
        later.publish("kept", b"now")
        assert later.on("kept")[0] == b"state"


def test_nothing_is_lost_when_the_broker_restarts(
    mosquitto: RunningBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "covey.aggregator.link")
    ear = Ear()
    link = make_link(mosquitto, tmp_path, ear)

    async def scene() -> None:
        async with running(link):
            await until(link.connected.is_set)
            mosquitto.kill()
            for number in range(300):
                link.publish(f"out/{number}", b"%d" % number, retain=True)
            await until(lambda: not link.connected.is_set())
            mosquitto.start()
            with Tap(mosquitto, "out/#") as tap:
                await until(lambda: len(tap.heard) >= 300)
                assert link.connections == 2
                assert dict(tap.heard) == {f"out/{number}": b"%d" % number for number in range(300)}
                tap.publish("a/pi/up/join", b"again")
                await until(lambda: ear == [("a/pi/up/join", b"again")])

    asyncio.run(scene())
    assert not link._outgoing
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said
    assert all(f"broker 127.0.0.1:{mosquitto.port}: " in line for line in said)
    assert not any("TaskGroup" in line for line in said)  # the cause, not how it came up


def test_what_was_not_acknowledged_is_sent_again_before_what_came_later(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    link = make_link(mosquitto, tmp_path)

    async def scene() -> None:
        async with running(link):
            await until(link.connected.is_set)
            mosquitto.kill()
            for number in range(10):
                link.publish("a/pi/up/x", b"%d" % number)  # the link hears itself: its session outlives the gap
            await until(lambda: not link.connected.is_set())
        queued = [item.payload for item in link._outgoing]
        assert queued == [b"%d" % number for number in range(10)]

    asyncio.run(scene())


def test_a_wrong_password_is_said_and_tried_again_and_a_right_one_connects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = tmp_path / "passwords"
    # mosquitto_passwd's format for "secret"; made here so that the tool is not needed.
    passwords.write_text(_password_line("aggregator", "secret"))
    passwords.chmod(0o644)
    with start_broker(tmp_path, prefer="mosquitto", config=PASSWORDS % passwords) as broker:
        (tmp_path / "word").write_text("wrong\n")
        link = make_link(broker, tmp_path, username="aggregator", password_file="word")

        async def scene() -> None:
            async with running(link):
                await until(lambda: any("ot authori" in record.message for record in caplog.records))
                assert link.connections == 0
                (tmp_path / "word").write_text("secret\n")
                await until(link.connected.is_set)

        asyncio.run(scene())
    assert "secret" not in caplog.text


def _password_line(name: str, password: str) -> str:
    salt = b"0123456789ab"
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"{name}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(derived).decode()}\n"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"username": "me", "password_file": "gone"}, "gone"),
        ({"ca_file": "gone.pem"}, "TLS files of"),
    ],
)
def test_a_file_that_is_missing_ends_the_link_with_its_name(
    mosquitto: RunningBroker, tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    link = make_link(mosquitto, tmp_path, **settings)
    with pytest.raises(ConfigError, match=name):
        asyncio.run(link.run())
