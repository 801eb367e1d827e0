"""Five devices behind mutual TLS, from nothing: three commands on the server, and one on each device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from tests.aggregator.console import Run
from tests.aggregator.live import CLASSES, FEATURES, SAMPLES, Agents, Live, live_task

from covey_agent.home import AgentHome, enrol
from covey_agent.profile import profile_folder
from covey_aggregator.home import SETTINGS_FILE, open_server
from covey_simulator.broker import RunningBroker, start_broker


def broker_of(home: Path) -> RunningBroker:
    """Start the broker that ``covey init`` has laid out, on a port that is free, and tell the settings."""
    lines = (home / "broker" / "mosquitto.conf").read_text().splitlines()
    text = "\n".join("listener {port} {host}" if line.startswith("listener ") else line for line in lines)
    broker = start_broker(home.parent, prefer="mosquitto", config=text)
    settings = yaml.safe_load((home / SETTINGS_FILE).read_text())
    settings["broker"]["port"] = broker.port
    (home / SETTINGS_FILE).write_text(yaml.safe_dump(settings))
    return broker


def enrolled(bundle: Path, folder: Path) -> AgentHome:
    """Do what ``covey-agent enrol`` does, with data of the device's own and a profile that reconnects quickly."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(list(bundle.stem.encode()))
    x, y = rng.normal(size=(SAMPLES, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, SAMPLES)
    np.savez(folder / "data.npz", x=x, y=y)
    profile = yaml.safe_load((profile_folder() / "pi-4.yaml").read_text())
    quick = {**profile, "name": "quick", "backoff_base": 0.05, "backoff_cap": 0.3}
    (folder / "quick.yaml").write_text(yaml.safe_dump(quick))
    settings = {"data": str(folder / "data.npz"), "profile": str(folder / "quick.yaml"), "threads": 1}
    (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
    return enrol(bundle, folder)


def test_from_nothing_to_a_round(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    assert run("init", home, "--operator", tmp_path / "op", "--fleet", "meadow", "--tls").code == 0
    with broker_of(home):
        assert run("device", "add", "pi", "--count", 5, "--home", home).code == 0
        bundles = sorted((home / "bundles").iterdir())
        agents = [enrolled(bundle, tmp_path / "agents" / bundle.stem) for bundle in bundles]
        assert not any(bundle.exists() for bundle in bundles)
        with Live(open_server(home)) as live, Agents(agents):
            live.call(lambda: live.service.store.add_task(live_task(tmp_path, rounds=1)))
            live.until_ended()
            (record,) = live.call(lambda: live.service.store.rounds("digits"))
            assert record.accepted == 5
            revoked = run("device", "revoke", "pi-03", "--home", home, "--reason", "left on a train")
            assert "the broker refuses pi-03" in revoked.out
    done = run("device", "forget", "pi-03", "--home", home)
    assert (done.code, "pi-03 is forgotten" in done.out, "what still names it: table" in done.out) == (0, True, False)
