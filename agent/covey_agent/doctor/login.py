"""Logging in at the broker, what it lets this device say and hear, and whether there is an aggregator behind it.

The doctor comes as the device itself, so a running agent would be pushed out: it is asked for before. Nothing is
acknowledged, so what waits in the device's session waits for the agent; nothing is published that means anything: the
probes go to a topic of a kind that no message has, and are empty.
"""

from __future__ import annotations

import dataclasses
import queue
import ssl
import time
from typing import Any, NamedTuple

from paho.mqtt.client import topic_matches_sub
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from covey_agent.doctor.findings import Finding, fail, ok, skip, warn
from covey_agent.doctor.local import day
from covey_agent.home import AgentHome
from covey_agent.link_options import LinkOptions
from covey_agent.paho_client import build_client, connect_client
from covey_agent.profile import FirmwareProfile
from covey_protocol import topics
from covey_protocol.errors import CoveyError
from covey_protocol.signed_time import read_time

PROBE = "doctor"  # a kind that no message has
STALE_SECONDS = 1800  # the aggregator signs the time every ten minutes
_SECONDS = 10.0
_LEAST_PACKET = 4096

_CONNACK = {
    "Not authorized": (
        "the broker does not let this device in: it knows no such name with this password, or gives the name no rights"
    ),
    "Bad user name or password": "the broker does not know this name with this password: see `broker` in agent.yaml",
    "Client identifier not valid": "the broker does not take the client id: it has to be the device's name, and free",
    "Banned": "the broker has banned this device",
    "Server busy": "the broker is overloaded, or has as many connections as it takes",
    "Quota exceeded": "the broker has as many connections as it takes",
}


class _Answer(NamedTuple):
    reason: str
    failed: bool
    properties: Any = None
    session: bool = False


class Login:
    """One visit to the broker as the device.

    Args:
        home: The device.
        profile: Its profile.
        options: The link's settings.
        context: Its TLS context, or None.
    """

    def __init__(
        self, home: AgentHome, profile: FirmwareProfile, options: LinkOptions, context: ssl.SSLContext | None
    ) -> None:
        self._home, self._profile = home, profile
        # No will, and room for all that waits in the session beside what the doctor asks for.
        self._options = dataclasses.replace(options, will_topic=None, will_payload=b"", inflight=1000)
        self._context = context
        self._answers: queue.Queue[_Answer] = queue.Queue()
        self._heard: list[tuple[str, bytes]] = []

    def visit(self, *, wall: int, aggregator_key: bytes) -> list[Finding]:
        """Log in, probe, leave; the findings in order."""
        five = self._options.protocol != "3.1.1"
        findings, answer = self._connect(MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311)
        if answer is not None and answer.reason == "Unsupported protocol version" and self._options.protocol == "auto":
            five = False
            findings, answer = self._connect(MQTTProtocolVersion.MQTTv311)
        if answer is None or answer.failed:
            return findings
        try:
            return [
                *findings,
                *self._limits(answer),
                *self._rights(five),
                *self._aggregator(wall, aggregator_key),
            ]
        except queue.Empty:
            return [*findings, fail("rights", "the broker stopped answering, or cut the connection")]
        finally:
            self._leave(five, answer.session)

    def _connect(self, protocol: MQTTProtocolVersion) -> tuple[list[Finding], _Answer | None]:
        client = self._client = build_client(self._options, protocol, self._context)
        client.on_socket_register_write = None
        client.manual_ack_set(True)
        client.on_connect = lambda _c, _u, flags, reason, properties: self._answers.put(
            _Answer(str(reason), reason.is_failure, properties, flags.session_present)
        )
        client.on_publish = lambda _c, _u, _mid, reason, _p: self._answers.put(_Answer(str(reason), reason.is_failure))
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: self._answers.put(
            _Answer(str(reasons[0]), reasons[0].is_failure)
        )
        client.on_unsubscribe = lambda _c, _u, _mid, _reasons, _p: self._answers.put(_Answer("", False))
        client.on_message = lambda _c, _u, message: self._heard.append((message.topic, bytes(message.payload)))
        try:
            connect_client(client, self._options)
        except OSError as error:
            return [fail("login", f"the connection breaks: {error}")], None
        client.loop_start()
        try:
            answer = self._answers.get(timeout=_SECONDS)
        except queue.Empty:
            client.loop_stop()
            text = "the broker closes the connection, or says nothing: it may speak TLS only on this port"
            return [fail("login", text)], None
        if answer.failed:
            client.loop_stop()
            return [fail("login", _CONNACK.get(answer.reason, f"the broker refuses: {answer.reason}"))], answer
        version = "5" if protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"
        return [ok("login", f"as {self._home.device}, MQTT {version}")], answer

    def _limits(self, answer: _Answer) -> list[Finding]:
        limit = int(getattr(answer.properties, "MaximumPacketSize", 0))
        found = []
        if limit and limit < _LEAST_PACKET:
            found.append(
                fail("packets", f"the broker takes packets of {limit} bytes only; Covey needs {_LEAST_PACKET}")
            )
        elif limit and limit < self._profile.chunk_bytes + 1024:
            text = f"the broker takes packets of {limit} bytes; pieces of {self._profile.chunk_bytes} are cut smaller"
            found.append(warn("packets", text))
        else:
            found.append(ok("packets", f"pieces of {self._profile.chunk_bytes} bytes fit"))
        if getattr(answer.properties, "RetainAvailable", 1) == 0:
            found.append(fail("retain", "the broker keeps no retained messages; Covey needs them"))
        if getattr(answer.properties, "MaximumQoS", 2) == 0:
            found.append(fail("qos", "the broker does not do QoS 1; Covey needs it"))
        return found

    def _rights(self, five: bool) -> list[Finding]:
        """Probe the access list: what is ours must work, what is others' must not."""
        fleet, device = self._home.fleet, self._home.device
        own = [topics.down(fleet, device, "+"), *(topics.pub(fleet, kind) for kind in self._single())]
        own += [topics.pub(fleet, topics.OPEN, "+")]
        strange = [topics.up(fleet, "+", topics.STATE), topics.down(fleet, "+", "+")]
        denied = [topic for topic in own if self._subscribe(topic).failed]
        for topic in strange:
            self._subscribe(topic)
        written = self._publish(topics.up(fleet, device, PROBE))
        foreign = self._publish(topics.up(fleet, f"{device[:50]}-not", PROBE))
        self._publish(topics.up(fleet, device, PROBE))  # answered after whatever was retained has come
        for topic in strange:  # and hear that it is done: leaving with an answer on its way would lose our goodbye
            self._client.unsubscribe(topic)
            self._answers.get(timeout=_SECONDS)
        found = []
        if written.failed:
            text = (
                f"the access list denies this device its own topics ({written.reason}): {topics.up(fleet, device, '#')}"
            )
            found.append(
                fail("write", f"{text}; the name it logs in with, or its certificate's CN, must be {device!r}")
            )
        elif not five:
            found.append(skip("write", "MQTT 3.1.1 does not say whether a message is let through"))
        else:
            found.append(ok("write", "it may publish below its own up/"))
        if five and not foreign.failed:
            found.append(warn("others", "the broker lets this device write under other names: it has no access list"))
        others = {topic for topic, _ in self._heard if self._is_foreign(topic)}
        if others:
            found.append(
                warn("others", f"it hears what is for others, such as {min(others)}: the broker has no access list")
            )
        if denied:
            found.append(fail("read", f"the access list denies: {', '.join(denied)}"))
        return found

    @staticmethod
    def _single() -> tuple[str, ...]:
        return (topics.REVOCATIONS, topics.DELEGATION, topics.POLICY, topics.TIME)

    def _is_foreign(self, topic: str) -> bool:
        fleet, device = self._home.fleet, self._home.device
        own = (topics.up(fleet, device, "+"), topics.down(fleet, device, "+"))
        under = topic_matches_sub(f"{topics.ROOT}/{fleet}/dev/#", topic)
        return under and not any(topic_matches_sub(each, topic) for each in own)

    def _aggregator(self, wall: int, key: bytes) -> list[Finding]:
        """Look at what the aggregator has retained; a subscription that was granted proves nothing."""
        fleet = self._home.fleet
        published = {topic: data for topic, data in self._heard if topic.startswith(topics.pub(fleet, ""))}
        if not published:
            text = "nothing that the aggregator retains was heard: it has never been on this broker, or the access list"
            return [warn("aggregator", f"{text} keeps {topics.pub(fleet, '#')} from this device")]
        word = published.get(topics.pub(fleet, topics.TIME))
        if word is None:
            return [warn("aggregator", "it has been on this broker, but its signed time was not heard")]
        try:
            at = read_time(word, fleet=fleet, aggregator_key=key)
        except CoveyError as error:
            return [warn("aggregator", f"its signed time is not by the aggregator that this device follows: {error}")]
        if at - wall > 300:
            return [
                fail(
                    "clock",
                    f"the aggregator's signed time is {day(at)}, this device's clock says {day(wall)}: it is off",
                )
            ]
        if wall - at > STALE_SECONDS:
            text = f"its last signed time is {day(at)}, {(wall - at) // 60} minutes ago by this clock"
            return [warn("aggregator", f"{text}: it does not run, or the clock here is ahead")]
        return [ok("aggregator", f"it signed the time {max(0, wall - at)} s ago")]

    def _subscribe(self, topic: str) -> _Answer:
        self._client.subscribe(topic, qos=1)
        return self._answers.get(timeout=_SECONDS)

    def _publish(self, topic: str) -> _Answer:
        self._client.publish(topic, b"", qos=1)
        return self._answers.get(timeout=_SECONDS)

    def _leave(self, five: bool, had_session: bool) -> None:
        """Go, and leave no session behind that was not there."""
        if five and not had_session:
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
            self._client.disconnect(properties=properties)
        else:
            self._client.disconnect()
        deadline = time.monotonic() + 1.0
        while self._client.is_connected() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._client.loop_stop()
