"""covey_simulator.broker: it listens when it says so, dies with its user, and explains itself when it cannot."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from covey_agent.link_options import LinkOptions
from covey_agent.outbox import Outbox
from covey_agent.transport import LinkEvents, MqttLink
from covey_protocol.errors import StateError
from covey_simulator import broker as module
from covey_simulator.broker import BrokerError, Kind, find_mosquitto, mosquitto_config, start_broker
from covey_simulator.embedded_broker import main as embedded_main

KINDS: list[Kind] = ["mosquitto", "amqtt"]


def answers(port: int) -> bool:
    """Tell whether anything listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def alive(pid: int | None) -> bool:
    """Tell whether a process exists."""
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_it_carries_messages_and_is_gone_afterwards(tmp_path: Path, kind: Kind) -> None:
    heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
    with start_broker(tmp_path, prefer=kind) as broker:
        pid, port = broker.pid, broker.port
        assert (broker.kind, broker.host) == (kind, "127.0.0.1")
        options = LinkOptions(host=broker.host, port=port, client_id="one", protocol=broker.protocol)
        link = MqttLink(options, Outbox(":memory:"), LinkEvents(on_message=lambda *message: heard.put(message)))
        link.subscribe(["t/#"])
        link.start()
        assert link.wait_connected(10)
        link.publish("t/1", b"x")
        assert heard.get(timeout=10) == ("t/1", b"x")
        link.stop()
    assert not alive(pid)
    assert not answers(port)
    broker.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_leaves_nothing_behind(tmp_path: Path, kind: Kind) -> None:
    pids = []
    with pytest.raises(KeyError), start_broker(tmp_path, prefer=kind) as broker:
        pids.append(broker.pid)
        raise KeyError
    assert not alive(pids[0])


def test_it_starts_again_on_its_port(tmp_path: Path) -> None:
    with start_broker(tmp_path, prefer="mosquitto") as broker:
        first, port = broker.pid, broker.port
        with pytest.raises(StateError, match="started twice"):
            broker.start()
        broker.kill()
        assert not answers(port)
        broker.start()
        assert broker.port == port
        assert broker.pid != first
        assert answers(port)


def test_a_program_that_just_ends_takes_its_broker_along(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from covey_simulator.broker import start_broker\n"
        "broker = start_broker(Path(sys.argv[1]), prefer=sys.argv[2]); print(broker.pid)\n"
    )
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), kind], capture_output=True, text=True, check=True
        )
        assert not alive(int(done.stdout))


def test_the_embedded_broker_ends_with_a_killed_starter(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from covey_simulator.broker import start_broker\n"
        "broker = start_broker(Path(sys.argv[1]), prefer='amqtt'); print(broker.port, flush=True); time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert starter.stdout is not None
    port = int(starter.stdout.readline())
    held = socket.create_connection(("127.0.0.1", port))
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    held.settimeout(30)
    assert held.recv(1) == b"", "the broker closes its connections when it ends"


def test_a_broker_that_dies_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="Unknown configuration variable"):
        start_broker(tmp_path, prefer="mosquitto", config="nonsense here\n")


def test_a_lost_race_for_the_port_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        real, lost = module._free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(module, "_free_port", lambda: lost.pop() if lost else real())
        with start_broker(tmp_path, prefer="mosquitto") as broker:
            assert broker.port != taken.getsockname()[1]
            assert broker.pid is not None
    assert not lost


def test_a_taken_port_is_not_mistaken_for_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(module, "_free_port", lambda: taken.getsockname()[1])
        with pytest.raises(BrokerError, match="in use"):
            start_broker(tmp_path, prefer="mosquitto")


def test_mosquitto_is_found_where_debian_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = find_mosquitto()
    assert found is not None
    assert Path(found).parent.name == "sbin"


def test_without_mosquitto_the_embedded_one_steps_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with start_broker(tmp_path) as broker:
        assert broker.kind == "amqtt"
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        start_broker(tmp_path, prefer="mosquitto")


def test_every_limit_is_stated_and_only_loopback_listens() -> None:
    lines = mosquitto_config(1234).splitlines()
    assert "listener 1234 127.0.0.1" in lines
    stated = {line.split()[0] for line in lines}
    assert stated >= {
        "max_packet_size",
        "message_size_limit",
        "max_inflight_messages",
        "max_queued_messages",
        "max_connections",
        "set_tcp_nodelay",
        "persistence",
    }


def test_the_embedded_broker_explains_itself() -> None:
    assert "MQTT 3.1.1" in CliRunner().invoke(embedded_main, ["--help"]).output
