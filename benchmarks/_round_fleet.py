"""A fleet for one benchmark: a real Mosquitto, a real ``covey serve`` and real agents in several processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks._worker import memory
from covey_agent.home import enrol
from covey_aggregator.home import BUNDLES, DATABASE_FILE
from covey_aggregator.records import RoundRecord
from covey_aggregator.store import Store
from covey_modelkit.build import build_bundle
from covey_modelkit.presets import mlp
from covey_simulator.broker import start_broker

FEATURES, CLASSES = 64, 10
TASK = "bench"
HERE = Path(__file__).parent
_COMMAND_SECONDS = 300.0
_WINDOW = 120.0
_SETTLING = 30  # seconds at most


@dataclass(frozen=True)
class Usage:
    """Where the fleet stands: payload and headers of all devices, and processor seconds by part."""

    up: int
    down: int
    cpu: dict[str, float]


@dataclass(frozen=True)
class Terms:
    """What is measured."""

    devices: int
    parameters: int
    rounds: int
    group_size: int
    per_process: int
    memory: bool
    observe: bool = False  # so that nobody is left out of a round for what its random update looks like


class BenchFleet:
    """Everything from broker to devices; a context manager."""

    def __init__(self, folder: Path, terms: Terms) -> None:
        self._folder, self._terms = folder, terms
        self._home = folder / "home"
        self._stack = contextlib.ExitStack()
        self._agents: list[subprocess.Popen[str]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self.parameters = self.bundle_bytes = 0

    def __enter__(self) -> BenchFleet:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        folder, terms = self._folder, self._terms
        self.broker = self._stack.enter_context(start_broker(folder, prefer="mosquitto"))
        self._command("operator", "init", folder / "operator", "--fleet", "bench")
        address = f"{self.broker.host}:{self.broker.port}"
        self._command("init", self._home, "--operator", folder / "operator", "--broker", address)
        self._command("device", "add", "pi", "--count", terms.devices, "--home", self._home, "--profile", "container")
        np.savez(folder / "data.npz", x=np.zeros((8, FEATURES), np.float32), y=np.arange(8, dtype=np.int64))
        hidden = max(1, (terms.parameters - CLASSES) // (FEATURES + 1 + CLASSES))
        bundle = build_bundle(mlp([FEATURES], CLASSES, [hidden]), name="bench")
        self.parameters = bundle.dimension
        self.bundle_bytes = (folder / "model.bundle").write_bytes(bundle.encode())
        homes = [
            enrol(file, folder / "devices" / file.stem, data=str(folder / "data.npz")).path
            for file in sorted((self._home / BUNDLES).glob("*.bundle"))
        ]
        log = self._stack.enter_context((folder / "aggregator.log").open("wb"))
        words = [sys.executable, "-m", "covey_aggregator.cli", "serve", str(self._home)]
        self._server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        self._stack.callback(_end, self._server)
        self._stack.callback(self._stop_agents)
        for start in range(0, len(homes), terms.per_process):
            self._start_agents(homes[start : start + terms.per_process])

    def _start_agents(self, homes: list[Path]) -> None:
        words = [sys.executable, str(HERE / "_round_agents.py")]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._agents.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps({"homes": [str(home) for home in homes], "memory": self._terms.memory}) + "\n")
        process.stdin.flush()

    def _stop_agents(self) -> None:
        """Tell all before waiting for any."""
        for process in self._agents:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._agents:
            _end(process)

    def run(self, seconds: float) -> Iterator[tuple[RoundRecord, Usage]]:
        """Start the task and yield each round's record as it closes, with the fleet's usage until then.

        Raises:
            RuntimeError: The task failed, a part died, or the time is up.
        """
        self._start_task()
        deadline, seen = time.monotonic() + seconds, 0
        with contextlib.closing(Store(self._home / DATABASE_FILE)) as store:
            while True:
                row, records = store.task(TASK), store.rounds(TASK)
                for record in records[seen:]:
                    yield record, self.usage()
                seen = len(records)
                if row is not None and row.status == "done":
                    return
                if row is not None and row.status in ("failed", "stopped"):
                    raise RuntimeError(f"the task has {row.status}: {row.reason}")
                self._check(deadline)
                time.sleep(0.1)

    def usage(self) -> Usage:
        """Return what devices have sent and received, and what every part has computed."""
        answers = [self._ask(process) for process in self._agents]
        assert self._server is not None and self.broker.pid is not None
        cpu = {
            "agents": sum(_cpu(process.pid) for process in self._agents),
            "aggregator": _cpu(self._server.pid),
            "broker": _cpu(self.broker.pid),
        }
        return Usage(sum(answer["up"] for answer in answers), sum(answer["down"] for answer in answers), cpu)

    def settled(self) -> Usage:
        """Return the usage once nothing has moved for a second, so that what was on its way has arrived."""
        before = self.usage()
        for _ in range(_SETTLING):
            time.sleep(1.0)
            now = self.usage()
            if (now.up, now.down) == (before.up, before.down):
                break
            before = now
        return before

    def refusals(self) -> dict[str, int]:
        """Return how many messages the devices have refused, by cause."""
        total: dict[str, int] = {}
        for process in self._agents:
            for cause, count in self._ask(process)["refusals"].items():
                total[cause] = total.get(cause, 0) + count
        return total

    def server_memory(self) -> int:
        """Return the aggregator's peak resident memory in bytes."""
        assert self._server is not None
        return memory("VmHWM", str(self._server.pid))

    def _start_task(self) -> None:
        terms = self._terms
        task = {
            "name": TASK,
            "bundle": str((self._folder / "model.bundle").absolute()),
            "rounds": terms.rounds,
            "clip": 1.0,
            "group_size": terms.group_size,
            "devices_min": terms.devices,
            "reputation": "observe" if terms.observe else "enforce",
            "windows": dict.fromkeys(("join", "shares", "masked", "survivors", "unmask"), _WINDOW),
        }
        path = self._folder / "task.yaml"
        path.write_bytes(msgspec.yaml.encode(task))
        self._command("task", "start", path, "--home", self._home)

    def _command(self, *arguments: object) -> None:
        words = [sys.executable, "-m", "covey_aggregator.cli", *map(str, arguments)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=_COMMAND_SECONDS)

    def _ask(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("traffic\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    def _check(self, deadline: float) -> None:
        assert self._server is not None
        processes: list[subprocess.Popen[Any]] = [self._server, *self._agents]
        ended = [str(process.args) for process in processes if process.poll() is not None]
        if ended:
            raise RuntimeError(f"{ended} ended; the aggregator's last words:\n{self._log_tail()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done in time; the aggregator's last words:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return (self._folder / "aggregator.log").read_text(errors="replace")[-2000:]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end(process: subprocess.Popen[Any]) -> None:
    if process.stdin is None and process.poll() is None:
        process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
