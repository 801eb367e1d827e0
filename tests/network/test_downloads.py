"""A large model over a line that is cut, through a broker that takes 128 KiB at once: no piece comes for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.aggregator.live import Agents, Live, enrol_agent, live_homes, live_task, until
from tests.network.packets import PublishEar
from tests.network.proxy import Proxy

from covey_agent.connect import RunningAgent
from covey_agent.home import PIECES, AgentHome
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import mlp
from covey_protocol import topics
from covey_protocol.chunks import PIECE_BYTES, PIECE_OVERHEAD, is_piece, piece_count
from covey_protocol.digest import content_digest
from covey_simulator.broker import RunningBroker, start_broker

CONFIG = """\
listener {port} {host}
allow_anonymous true
persistence false
max_packet_size 131072
message_size_limit 131072
max_queued_messages 10000
set_tcp_nodelay true
"""
INPUT, CLASSES = 64, 10


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    folder = tmp_path / "tight"
    folder.mkdir()
    with start_broker(folder, prefer="mosquitto", config=CONFIG) as broker:
        yield broker


@pytest.mark.parametrize("kilobytes", [1200, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_model_comes_and_an_update_goes_without_any_piece_for_nothing(
    broker: RunningBroker, tmp_path: Path, kilobytes: int
) -> None:
    bundle = build_bundle(mlp([INPUT], CLASSES, [kilobytes * 250 // (INPUT + CLASSES + 1)]), name="large")
    data = bundle.encode()
    (tmp_path / "large.bundle").write_bytes(data)
    name, count = content_digest(data), piece_count(len(data), PIECE_BYTES - PIECE_OVERHEAD)
    operator, home = live_homes(tmp_path, broker)
    names = ["pi-0", "pi-1", "pi-2", "pi-3", "victim"]
    with Proxy(broker.port) as proxy:
        down, up = PublishEar(), PublishEar()
        proxy.down.hear(down)
        proxy.up.hear(up)
        homes = {each: _enrol(tmp_path, operator, home, each, proxy if each == "victim" else broker) for each in names}
        victim = homes.pop("victim")

        def arrived() -> int:
            return sum(1 for digest, _ in down.pieces() if digest == name)

        with Live(home) as live, Agents(homes.values()):
            first = RunningAgent(victim)
            first.start()
            task = live_task(
                tmp_path, bundle=str(tmp_path / "large.bundle"), rounds=1, devices_min=5, settle=0.2, sleep=True
            )
            live.service.store.add_task(task)
            # The bundle is published to all; the victim's line carries it slowly and is cut.
            proxy.poor(rate=400_000)
            for part in (1, 2):
                until(lambda: arrived() >= part * count // 4, "a part of the model")  # noqa: B023
                proxy.cut()
            until(lambda: any((victim.path / PIECES).iterdir()), "pieces on disk")
            first.stop()
            assert first.link.status.connects >= 2
            kept = arrived()
            assert 0 < kept < count
            # What the broker still keeps for the session is gone with the broker; what the device has is not.
            broker.kill()
            broker.start()
            before = len(down.heard)
            second = RunningAgent(victim)
            second.start()
            try:
                until(lambda: arrived() >= kept + (count - kept) // 2, "more of the model")
                proxy.cut()
                until(lambda: _vector(up) >= 1, "the update")
                proxy.cut()
                live.until_ended()
            finally:
                second.stop()
            (record,) = live.service.store.rounds("digits")
            assert (record.accepted, record.attempt) == (5, 1)
        cuts = proxy.cuts
        pieces = {index: times for (digest, index), times in down.pieces().items() if digest == name}
        assert set(pieces) == set(range(count))
        extra = sum(times - 1 for times in pieces.values())
        assert extra <= 2 * cuts, f"{extra} pieces came again after {cuts} cuts: {pieces}"
        again = [each for each in down.heard[before:] if each.topic == topics.down("meadow", "victim", topics.BLOB)]
        assert 0 < len(again) <= count - kept + 2 * cuts, "the second agent asked for the rest and no more"
        vector = {index: times for (digest, index), times in up.pieces().items()}
        assert sum(times - 1 for times in vector.values()) <= 2 * cuts
        assert not any((victim.path / PIECES).iterdir())


def _enrol(folder: Path, operator: object, home: object, name: str, place: object) -> AgentHome:
    made = enrol_agent(folder, operator, home, name, port=place.port)  # type: ignore[arg-type, attr-defined]
    rng = np.random.default_rng(7)
    np.savez(folder / f"{name}.npz", x=rng.normal(size=(24, INPUT)).astype(np.float32), y=np.arange(24) % CLASSES)
    return made


def _vector(ear: PublishEar) -> int:
    return len([each for each in ear.heard if f"/up/{topics.MASKED}/" in each.topic and is_piece(each.payload)])
