"""Brokers on the configurations that come with Covey, and users of them."""

from __future__ import annotations

import contextlib
import os
import queue
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.broker.authority import SERVER, Authority

from covey_agent.link_options import LinkOptions
from covey_agent.outbox import Outbox
from covey_agent.transport import LinkEvents, MqttLink
from covey_aggregator.broker_files import configuration, tls_files
from covey_simulator.broker import RunningBroker, start_broker

FLEET = "meadow"
BASE = f"covey/v1/{FLEET}"
SECONDS = 20


def make_authority(folder: Path, *names: str) -> Authority:
    """Make a CA with the certificate of a broker, and one each for some clients."""
    authority = Authority(folder)
    authority.issue("broker", SERVER)
    for name in names:
        authority.issue(name)
    return authority


def for_tests(text: str) -> str:
    """Let a configuration's broker choose its port, and run as us: it could not read a test's folder otherwise."""
    lines = ["listener {port} {host}" if line.startswith("listener ") else line for line in text.splitlines()]
    return "\n".join("user root" if line.startswith("user ") and os.geteuid() == 0 else line for line in lines)


def start_tls(folder: Path, authority: Authority, *, rules: str = "") -> RunningBroker:
    """Start a broker with mutual TLS on the configuration as homes have it; ``rules`` are added to its access list."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    files = tls_files(folder, authority.folder, port=8883, account=os.geteuid())
    for path, text in files.items():
        path.write_text(text + rules if path.name == "acl" else text)
    return start_broker(folder, prefer="mosquitto", config=for_tests((folder / "mosquitto.conf").read_text()))


def start_variant(folder: Path, name: str, values: dict[str, str]) -> RunningBroker:
    """Start a broker on another of the configurations."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    text = configuration(name, {"persistence_location": f"{folder / 'data'}/", **values})
    return start_broker(folder, prefer="mosquitto", config=for_tests(text))


class Peer:
    """A user with the agent's own link, and what it has heard."""

    def __init__(self, broker: RunningBroker, name: str, *, protocol: str = "5", **options: Any) -> None:
        """Connect; ``options`` are those of the link."""
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refused: list[tuple[str, str]] = []
        events = LinkEvents(
            on_message=lambda topic, payload: self.heard.put((topic, payload)),
            on_undeliverable=lambda topic, _size, why: self.refused.append((topic, why)),
        )
        settings: dict[str, Any] = {"host": broker.host, "port": broker.port, "client_id": name, "backoff_base": 0.1}
        self.link = MqttLink(LinkOptions(**{**settings, "protocol": protocol, **options}), Outbox(":memory:"), events)
        self.link.start()

    @staticmethod
    def by_certificate(broker: RunningBroker, authority: Authority, name: str, **options: Any) -> Peer:
        """Connect with a certificate of a name."""
        return Peer(broker, name, **tls_options(authority, name), **options)

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

    def until(self, last: str) -> set[str]:
        """Return the topics of all messages up to one."""
        heard = {self.next()}
        while last not in heard:
            heard.add(self.next())
        return heard


def tls_options(authority: Authority, name: str) -> dict[str, Any]:
    """Return what a link is told to show a certificate of a name."""
    folder = authority.folder
    files = {"cert_file": folder / f"{name}.crt", "key_file": folder / f"{name}.key"}
    return {"tls": True, "ca_file": authority.ca, **files}


class Raw:
    """A client that does what it is told, however wrong: bare paho, no link of ours around it.

    Attributes:
        reason: Why the broker let it go, or nothing.
        refusals: What the broker answered to what it published, where that was no success.
    """

    def __init__(self, broker: RunningBroker, client_id: str, context: ssl.SSLContext | None = None) -> None:
        self.connected: queue.Queue[str] = queue.Queue()
        self.gone: queue.Queue[str] = queue.Queue()
        self.acknowledged: queue.Queue[str] = queue.Queue()
        self.granted: queue.Queue[list[str]] = queue.Queue()
        self.heard: queue.Queue[str] = queue.Queue()
        self._broker = broker
        five = MQTTProtocolVersion.MQTTv5
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=five, reconnect_on_failure=False
        )
        if context is not None:
            self.client.tls_set_context(context)
        self.client.on_connect = lambda *args: self.connected.put(str(args[3]))
        self.client.on_disconnect = lambda *args: self.gone.put(str(args[3]))
        self.client.on_publish = lambda *args: self.acknowledged.put(str(args[3]))
        self.client.on_subscribe = lambda *args: self.granted.put([str(code) for code in args[3]])
        self.client.on_message = lambda _client, _data, message: self.heard.put(message.topic)

    def connect(self, **options: Any) -> str:
        """Connect and return what the broker answers; errors of TLS come as they are."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        self.client.connect(self._broker.host, self._broker.port, properties=properties, **options)
        self.client.loop_start()
        return self.connected.get(timeout=SECONDS)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def context(authority: Authority, name: str = "", *, trusts: Authority | None = None) -> ssl.SSLContext:
    """Return a TLS context with a name's certificate, or none; ``trusts`` is the CA it checks the broker against."""
    made = ssl.create_default_context(cafile=str((trusts or authority).ca))
    if name:
        made.load_cert_chain(authority.folder / f"{name}.crt", authority.folder / f"{name}.key")
    return made


@contextlib.contextmanager
def peers() -> Iterator[list[Peer]]:
    """Hold peers and let all of them go at the end."""
    held: list[Peer] = []
    try:
        yield held
    finally:
        for peer in held:
            peer.link.stop()
