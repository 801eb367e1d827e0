"""Alerts from a real service: on a real broker, signed, and at a real webhook, within moments of their cause."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import yaml
from nacl.signing import SigningKey
from tests.aggregator.fleet import Device, signed_state
from tests.aggregator.live import Live, Tap, live_homes, until
from tests.aggregator.test_registry import endorsed_again
from tests.aggregator.test_webhooks import Receiver

from covey_aggregator.audit import AuditLog, check
from covey_aggregator.home import SETTINGS_FILE, open_server
from covey_protocol import envelope, topics
from covey_protocol.envelope import Context
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Alert
from covey_protocol.payload import read
from covey_simulator.broker import RunningBroker


def test_a_second_key_for_a_token_is_told_at_once(tmp_path: Path, mosquitto: RunningBroker) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    receiver = Receiver()
    try:
        settings = msgspec.to_builtins(home.settings)
        settings["alerts"]["webhooks"] = [{"url": receiver.url}]
        (home.path / SETTINGS_FILE).write_text(yaml.safe_dump(settings))
        home = open_server(home.path)
        device, other = Device("pi", operator, home), SigningKey.generate()
        place = topics.pub(home.fleet, topics.ALERT)
        up = topics.up(home.fleet, "pi", topics.STATE)
        with Tap(mosquitto) as tap, Live(home) as live:
            tap.publish(up, device.state())
            until(lambda: live.call(lambda: live.service.coordinator.registry.knows("pi")), "enrolment")
            washed = signed_state("pi", other, endorsed_again(device, other), 5)
            for _ in range(3):
                tap.publish(up, washed)
            until(lambda: bool(tap.on(place)) and bool(receiver.heard), "the alert")
            (row,) = live.call(live.service.store.devices)
            assert row.key == bytes(device.key.verify_key)  # the record stays with the first key
            assert check(AuditLog(live.service.store).entries()).entries == 1
        (data,) = tap.on(place)
        context = Context(fleet=home.fleet, kind=topics.ALERT, sender=AGGREGATOR)
        alert = read(Alert, envelope.open_signed(data, context, bytes(home.key.verify_key)))
        assert (alert.number, alert.alert, alert.device) == (1, "second-key", "pi")
        (heard,) = [json.loads(body) for _, _, body in receiver.heard]
        assert (heard["id"], heard["kind"], heard["text"]) == (1, "second-key", alert.text)
    finally:
        receiver.stop()
