"""The aggregator's process with a real broker and real agents: garbage, restarts, jobs that end too late."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, NO_SKETCHES, Device, make_homes, make_task
from tests.aggregator.live import Agents, Clock, Live, Tap, enrol_agent, live_homes, live_task, until

import covey_aggregator.coordinator
import covey_aggregator.service
from covey_aggregator.budgets import BudgetSettings
from covey_aggregator.combine import Combined, combine
from covey_aggregator.home import SETTINGS_FILE, ServerHome, open_server
from covey_aggregator.operator import OperatorHome
from covey_aggregator.service import Service
from covey_aggregator.task import Attestation
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import softmax
from covey_protocol import envelope, topics
from covey_protocol.chunks import PIECE_OVERHEAD, Piece, piece_count, split
from covey_protocol.digest import content_digest
from covey_protocol.effects import Expect
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError
from covey_protocol.messages import Want, Windows
from covey_protocol.payload import write
from covey_simulator.broker import RunningBroker

SHORT = Windows(join=3, shares=3, masked=3, survivors=3, unmask=3)


def garbage(valid: bytes) -> list[bytes]:
    rng = random.Random(1)
    return [
        b"",
        b"\x00",
        b"\xd2",
        rng.randbytes(1),
        rng.randbytes(1000),
        b"\xd2" + rng.randbytes(1000),
        b"\x9f" * 5000,  # nested without end
        b"\xd2" + b"\x81" * 5000,
        rng.randbytes(900_000),
        b"\xd2" + rng.randbytes(900_000),
        valid[: len(valid) // 2],
        valid[:-1],
        valid + b"\x00",
        bytes([*valid[:-5], valid[-5] ^ 1, *valid[-4:]]),
        next(split(rng.randbytes(5000), 1000)).encode(),
        Piece(bytes(32), 1 << 40, 256, 7, bytes(256)).encode(),
    ]


def places(device: str) -> list[str]:
    kinds = [*sorted(topics.UP_KINDS), "nonsense", "state/x", "masked/abc", "masked/ABC", "a/b/c", ""]
    return [f"covey/v1/{FLEET}/dev/{device}/up/{kind}" for kind in kinds]


def unlimited(operator: OperatorHome, home: ServerHome) -> tuple[OperatorHome, ServerHome]:
    """Take all budgets away, so that everything that arrives is read."""
    budgets = BudgetSettings(messages_per_second=0, bytes_per_second=0, newcomers_per_second=0)
    return operator, dataclasses.replace(home, settings=msgspec.structs.replace(home.settings, budgets=budgets))


def test_garbage_on_every_topic_is_counted_said_once_and_stops_nothing(
    mosquitto: RunningBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "covey.aggregator")
    operator, home = unlimited(*live_homes(tmp_path, mosquitto))
    names = ["pi-0", "pi-1", "pi-2", "pi-3"]
    with Tap(mosquitto, f"covey/v1/{FLEET}/pub/#") as tap, Live(home, clock=Clock()) as live:

        def flood() -> None:
            for data in garbage(Device("stranger", operator, home).state()):
                for device in ("pi-0", "stranger", "Bad Name"):
                    for topic in places(device):
                        tap.client.publish(topic, data, qos=0)
                tap.publish("covey/v1/forest/dev/pi-0/up/join", data)

        live.service.store.add_task(live_task(tmp_path, rounds=3, settle=0.0))
        flood()
        with Agents(enrol_agent(tmp_path, operator, home, name) for name in names):
            until(lambda: len(live.call(lambda: live.service.store.rounds("digits"))) >= 1, "a round")
            flood()
            live.until_ended()
        assert live.status() == "done"
        counts = live.call(lambda: Counter(live.service.refusals.counts))
        assert {"topic", "unsigned", "malformed", "unknown-device", "unannounced"} <= set(counts)
        assert all(record.accepted == 4 for record in live.service.store.rounds("digits"))
        assert {row.name for row in live.service.store.devices()} == set(names)
    said = [record for record in caplog.records if record.name == "covey.aggregator"]
    lines = [(topics.kind_of(str(record.args[0])), record.args[1].cause) for record in said]  # type: ignore[index, union-attr]
    assert len(set(lines)) == len(lines)
    assert sum(counts.values()) > 10 * len(lines)
    assert all(len(record.getMessage()) < 600 for record in said)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a task and a known device that nobody has connected."""
    folder = tmp_path_factory.mktemp("idle")
    operator, home = unlimited(*make_homes(folder))
    service = Service(home)
    service.store.add_task(make_task(folder))
    service.on_message(topics.up(FLEET, "pi-0", topics.STATE), Device("pi-0", operator, home).state())
    service.coordinator.tick(0)
    yield service
    service.store.close()


PARTS = st.sampled_from(
    ["covey", "v1", FLEET, "dev", "pi-0", "up", "down", "pub", *sorted(topics.UP_KINDS), "", "x", "é"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    topic=st.one_of(
        st.lists(PARTS, max_size=9).map("/".join),
        st.sampled_from([topics.up(FLEET, "pi-0", kind) for kind in sorted(topics.UP_KINDS)]),
        st.text(max_size=50),
    ),
    payload=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda data: b"\xd2" + data),
        st.binary(max_size=300).map(lambda data: Piece(content_digest(data), len(data), 256, 0, data[:256]).encode()),
    ),
)
def test_nothing_that_arrives_raises(idle: Service, topic: str, payload: bytes) -> None:
    before = (idle.coordinator.phase, idle.store.devices())
    idle.on_message(topic, payload)
    assert (idle.coordinator.phase, idle.store.devices()) == before


@pytest.mark.parametrize("place", ["forest/dev/pi-1/up/state", f"{FLEET}/dev/pi-1/up/join", f"{FLEET}/pub/open/state"])
def test_a_good_message_in_another_place_means_nothing(tmp_path: Path, place: str) -> None:
    operator, home = make_homes(tmp_path)
    service, state = Service(home), Device("pi-1", operator, home).state()
    service.on_message(f"covey/v1/{place}", state)
    assert service.store.devices() == []
    assert sum(service.refusals.counts.values()) == 1
    service.on_message(topics.up(FLEET, "pi-1", topics.STATE), state)
    assert [row.name for row in service.store.devices()] == ["pi-1"]


def test_what_was_expected_in_a_round_is_forgotten_with_it(tmp_path: Path) -> None:
    _, home = make_homes(tmp_path)
    service = Service(home)
    service._round = object()  # type: ignore[assignment]
    service._transfers.expect(Expect("pi-0", bytes(32), 100), 0)
    service._carry([])  # no round is open any more
    assert service._transfers.stalled(1e9) == []


def test_a_task_survives_a_restart_of_the_broker(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(5)]
    with Live(home) as live, Agents(enrol_agent(tmp_path, operator, home, name) for name in names):
        task = live_task(tmp_path, rounds=6, devices_min=5, settle=0.1, windows=SHORT, attempts=1000)
        live.service.store.add_task(task)
        until(lambda: len(live.call(lambda: live.service.store.rounds("digits"))) >= 2, "two rounds")
        mosquitto.kill()
        mosquitto.start()
        live.until_ended()
        records = [record for record in live.service.store.rounds("digits") if record.accepted]
        assert (live.status(), live.service.link.connections) == ("done", 2)
        assert [record.round for record in records] == [1, 2, 3, 4, 5, 6]


def test_a_task_survives_a_restart_of_the_aggregator(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(4)]
    with Agents(enrol_agent(tmp_path, operator, home, name) for name in names) as agents:
        with Live(home) as live:
            live.service.store.add_task(live_task(tmp_path, rounds=8, settle=0.1, windows=SHORT, attempts=1000))
            until(lambda: len(live.call(lambda: live.service.store.rounds("digits"))) >= 2, "two rounds")
        with Live(open_server(home.path)) as live:
            live.until_ended()
            records = [record for record in live.service.store.rounds("digits") if record.accepted]
            assert live.status() == "done"
            assert [record.round for record in records] == list(range(1, 9))
            places_ = [(record.round, record.attempt) for record in live.service.store.rounds("digits")]
            assert len(set(places_)) == len(places_)
        refused = Counter[str]()
        for agent in agents.running.values():
            refused.update(agent.agent.refusals.counts)
        assert "second-set" not in refused  # the new aggregator never used a model twice


class Wanting:
    """A device that asks for the bundle of a task that waits for more devices."""

    def __init__(self, tap: Tap, live: Live, device: Device) -> None:
        self.tap, self.live, self.device = tap, live, device
        tap.publish(topics.up(FLEET, device.name, topics.STATE), device.state())
        until(lambda: live.call(lambda: live.service.coordinator.registry.knows(device.name)), "enrolment")
        self.down = topics.down(FLEET, device.name, topics.BLOB)

    def ask(self, digest: bytes, have: bytes = b"", key: SigningKey | None = None, name: str = "") -> None:
        name = name or self.device.name
        context = Context(fleet=FLEET, kind=topics.WANT, sender=name)
        data = envelope.sign(write(Want(digest=digest, have=have)), context, key or self.device.key)
        self.tap.publish(topics.up(FLEET, name, topics.WANT), data)

    def counted(self, cause: str) -> int:
        return int(self.live.call(lambda: self.live.service.refusals.counts[cause]))


def test_who_wants_a_blob_gets_the_missing_pieces_and_no_more(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto, max_packet_bytes=4096)
    large = build_bundle(softmax([300], 10), name="large")
    blob = large.encode()
    (tmp_path / "large.bundle").write_bytes(blob)
    size = 4096 - 1024 - PIECE_OVERHEAD
    count = piece_count(len(blob), size)
    assert count >= 4
    with Tap(mosquitto, f"covey/v1/{FLEET}/dev/#") as tap, Live(home) as live:
        wanting = Wanting(tap, live, Device("pi", operator, home))
        live.service.store.add_task(live_task(tmp_path, bundle=str(tmp_path / "large.bundle"), devices_min=9))
        until(lambda: live.call(lambda: live.service.coordinator.task is not None), "the task")
        everything = (1 << count) - 1
        have = (everything ^ 0b1010).to_bytes(-(-count // 8), "little")
        wanting.ask(content_digest(blob), have)
        until(lambda: len(tap.on(wanting.down)) >= 2, "the pieces")
        pieces = [Piece.decode(data) for data in tap.on(wanting.down)]
        assert [(piece.index, piece.digest) for piece in pieces] == [(1, large.digest), (3, large.digest)]
        assert all(len(data) <= 4096 - 1024 for data in tap.on(wanting.down))
        wanting.ask(content_digest(blob), have)  # at once again
        wanting.ask(bytes(32))
        wanting.ask(content_digest(blob), key=SigningKey.generate())
        wanting.ask(content_digest(blob), name="stranger")
        until(lambda: wanting.counted("unknown-device") >= 1, "refusals")
        assert [wanting.counted(cause) for cause in ("too-soon", "want", "signature")] == [1, 1, 1]
        assert len(tap.on(wanting.down)) == 2


def test_a_combination_that_ends_behind_its_stopped_task_touches_no_other(
    mosquitto: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    started, release = threading.Event(), threading.Event()
    calls: list[int] = []
    clock = Clock()

    def slow(*values: Any, **options: Any) -> Combined:
        calls.append(1)
        if len(calls) == 1:
            started.set()
            assert release.wait(60)
        return combine(*values, **options)

    monkeypatch.setattr(covey_aggregator.coordinator, "combine", slow)
    names = [f"pi-{number}" for number in range(4)]
    with (
        Live(home, clock=clock) as live,
        Agents(enrol_agent(tmp_path, operator, home, name) for name in names) as agents,
    ):
        live.service.store.add_task(live_task(tmp_path, settle=0.0))
        live.service.store.add_task(live_task(tmp_path, name="second", rounds=2, settle=0.0))
        assert started.wait(60)
        live.service.store.set_status("digits", "stopping", "stopped by the operator")
        clock.leap(2)
        until(lambda: live.status() == "stopped", "the stop")
        until(lambda: live.call(lambda: live.service.coordinator.run is not None), "the second task's round")
        release.set()
        live.until_ended("second")
        assert live.status("second") == "done"
        assert live.service.store.rounds("digits") == []
        first, second = (
            live.service.coordinator.models.load(bytes.fromhex(record.model))
            for record in live.service.store.rounds("second")
        )
        last = [update for _, weights, update in agents.seen if np.array_equal(weights, first)]
        assert len(last) == 4
        np.testing.assert_allclose(second - first, np.mean([_clip(update) for update in last], axis=0), atol=1e-3)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def _clip(update: Any) -> Any:
    return update * min(1.0, 0.2 / float(np.linalg.norm(update)))


def test_jobs_that_fail_end_the_group_or_the_task_and_not_the_service(
    mosquitto: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(4)]

    def broken(*_: object, **__: object) -> object:
        raise MemoryError("too little")

    with Live(home, clock=Clock()) as live, Agents(enrol_agent(tmp_path, operator, home, name) for name in names):
        for name, where, job, reason in (
            ("sketches", covey_aggregator.service, "make_sketches", "aborted"),
            ("sums", covey_aggregator.service, "_sum", "aborted"),
            ("combining", covey_aggregator.coordinator, "combine", "combining the groups failed"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, job, broken)
                attestation = Attestation() if name == "sketches" else NO_SKETCHES
                live.service.store.add_task(
                    live_task(tmp_path, name=name, rounds=1, attempts=1, settle=0.0, attestation=attestation)
                )
                live.until_ended(name)
            row = live.call(lambda name=name: live.service.store.task(name))  # type: ignore[misc]
            assert row is not None
            assert row.status == "failed"
            assert reason in row.reason
        events = [text for _, _, _, text in live.service.store.events()]
        assert all(any(f"the {job} failed: too little" in text for text in events) for job in ("sketches", "sum"))
        live.service.store.add_task(live_task(tmp_path, name="whole", rounds=1, settle=0.0))
        live.until_ended("whole")
        assert live.status("whole") == "done"


def test_a_password_file_that_is_missing_ends_the_service_with_one_error(tmp_path: Path) -> None:
    _, home = make_homes(tmp_path)
    (home.path / SETTINGS_FILE).write_text(f"fleet: {FLEET}\nbroker: {{username: me, password_file: gone}}\n")
    with pytest.raises(ConfigError, match="gone: cannot be read"):
        asyncio.run(Service(open_server(home.path), entropy=os.urandom).run())
