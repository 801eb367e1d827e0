"""A real agent that is killed at a chosen instant: the child's side of the crash harness.

``python -m tests.agent.crash_child`` is a fork server: it imports everything once, reads one request a line from its
standard input (home, log, kill) and forks a process that runs the agent of that home over a real broker. The forked
process marks every instant at which a crash could matter; at the one that is to be its last it sends itself SIGKILL.

Instants have names such as ``before write sequence+round+join#2``: the second time that a transaction with just these
marks and messages is about to be committed. There are instants on both sides of:

- ``write X``: a commit of the marks and messages X, ``settle X``: one that takes X out of the outbox;
- ``open F``, ``half F``, ``flush F``, ``replace F``, ``unlink F``: steps of writing a file;
- ``send X``: a message is handed to the MQTT client;
- ``hear X``: the agent handles a message or a training result.

The log, outside the home, holds the instants passed, the digests of all messages that became durable, and every
secret that the agent had in memory: what the test then looks for on the disk.
"""

from __future__ import annotations

import base64
import builtins
import dataclasses
import json
import logging
import os
import re
import select
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import paho.mqtt.client as mqtt

from covey_agent import connect, trainer
from covey_agent.home import open_home
from covey_agent.profile import FirmwareProfile, load_profile
from covey_agent.runtime import Agent
from covey_protocol import dealing, device_attestation, device_round, masking, ring, sealing, sharing, topics
from covey_protocol.digest import content_digest

PIECE = 2048  # small enough that a masked vector takes several pieces


class Log:
    """Lines of JSON that outlive the process."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, *words: str) -> None:
        os.write(self._handle, json.dumps(words).encode() + b"\n")


class Instants:
    """Counts instants by name and ends the process at one of them."""

    def __init__(self, log: Log, kill: str) -> None:
        self._log, self._kill = log, kill
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._lock:
            self._passed[name] += 1
            instant = f"{name}#{self._passed[name]}"
            self._log("at", instant)
            if instant == self._kill:
                os.kill(os.getpid(), signal.SIGKILL)


def kind_of(topic: str) -> str:
    """Name a message by its topic; ``masked/`` is a piece of a vector."""
    place = topics.parse(topic)
    return place.kind + ("/" if re.search(r"/up/[a-z]+/", topic) else "")


def instrument(log: Log, at: Instants) -> None:
    """Wrap everything that makes something durable, sends it or makes a secret; nothing else changes."""
    _watch_database(log, at)
    _watch_files(at)
    _watch_messages(at)
    _watch_secrets(log)

    def small_pieces(name: Path | str) -> FirmwareProfile:
        return msgspec.structs.replace(load_profile(name), chunk_bytes=PIECE)

    vars(connect)["load_profile"] = small_pieces


def _watch_database(log: Log, at: Instants) -> None:
    class WatchedCursor(sqlite3.Cursor):
        connection: WatchedConnection

        def execute(self, statement: str, values: Any = (), /) -> WatchedCursor:
            words, writes = statement.split(), self.connection.writes
            if words[0] == "BEGIN":
                writes.clear()
                self.connection.settles.clear()
                self.connection.put.clear()
            elif words[0] == "CREATE":
                writes["tables"] = None
            elif words[:2] == ["INSERT", "INTO"]:
                writes[kind_of(values[0])] = None
                self.connection.put.append(content_digest(values[1]).hex())
            elif "marks" in words and values:
                writes[values[0].split("/")[0]] = None
            if words[0] != "COMMIT":
                return super().execute(statement, values)
            names = [f"settle {kind}" for kind in self.connection.settles]
            names += ["write " + "+".join(writes)] if writes else []
            for name in names:
                at(f"before {name}")
            super().execute(statement, values)
            # The outbox's lock is still held: nobody can have read what is being noted here.
            for digest in self.connection.put:
                log("put", digest)
            for name in names:
                at(f"after {name}")
            return self

        def executemany(self, statement: str, rows: Iterable[Any], /) -> WatchedCursor:
            rows = list(rows)
            for (row,) in rows:
                for (topic,) in super().execute("SELECT topic FROM outbox WHERE id = ?", (row,)).fetchall():
                    self.connection.settles[kind_of(topic)] = None
            return super().executemany(statement, rows)

    class WatchedConnection(sqlite3.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.writes: dict[str, None] = {}
            self.settles: dict[str, None] = {}
            self.put: list[str] = []

        def cursor(self, *_: Any) -> sqlite3.Cursor:  # type: ignore[override]
            return super().cursor(WatchedCursor)

        def executescript(self, script: str, /) -> sqlite3.Cursor:
            at("before schema")
            cursor = super().executescript(script)
            at("after schema")
            return cursor

    real = sqlite3.connect
    sqlite3.connect = lambda *args, **options: real(*args, factory=WatchedConnection, **options)  # type: ignore


def _watch_files(at: Instants) -> None:
    def name_of(path: Any) -> str:
        text = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else str(path)
        name = Path(text).name
        if "/pieces" in text:
            return "piece"
        return "blob" if "/blobs" in text and name != "blobs" else name.removeprefix(".").removesuffix(".new")

    def both_sides(owner: Any, name: str, word: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def watched(path: Any, *args: Any, **options: Any) -> Any:
            what = f"{word} {name_of(args[0] if word == 'replace' else path)}"
            at(f"before {what}")
            result = real(path, *args, **options)
            at(f"after {what}")
            return result

        setattr(owner, name, watched)

    both_sides(os, "replace", "replace")
    both_sides(os, "unlink", "unlink")
    both_sides(os, "fsync", "flush")
    write, opened = os.write, os.open

    def half_write(handle: int, data: Any) -> int:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if "socket:" in path or path.endswith(".log") or len(data) < 2:
            return write(handle, data)
        cut = write(handle, data[: len(data) // 2])
        at(f"half {name_of(handle)}")
        return cut + write(handle, data[cut:])

    def watched_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        handle = opened(path, flags, *args, **options)
        if flags & os.O_CREAT:
            at(f"open {name_of(path)}")
        return handle

    os.write, os.open = half_write, watched_open


def _watch_messages(at: Instants) -> None:
    publish = mqtt.Client.publish

    def sends(self: mqtt.Client, topic: str, *args: Any, **options: Any) -> Any:
        at(f"before send {kind_of(topic)}")
        info = publish(self, topic, *args, **options)
        at(f"after send {kind_of(topic)}")
        return info

    mqtt.Client.publish = sends  # type: ignore[method-assign]
    handle = Agent._handle

    def hears(self: Agent, event: Any) -> None:
        name = type(event).__name__.strip("_").lower()
        what = (kind_of(event.topic) if event.topic else "") if name == "message" else name
        if not what:
            return handle(self, event)
        at(f"before hear {what}")
        handle(self, event)
        return at(f"after hear {what}")

    Agent._handle = hears  # type: ignore[method-assign]


def _watch_secrets(log: Log) -> None:
    def tell(name: str, value: Any) -> None:
        if isinstance(value, bytes):
            log("secret", name, base64.b64encode(value).decode())
        elif isinstance(value, np.ndarray):
            tell(name, value.tobytes())
        elif isinstance(value, list | tuple):
            for each in value:
                tell(name, each)
        elif dataclasses.is_dataclass(value):
            # A draw is opened with the consent to U, and so stands in the outbox.
            fields = [field.name for field in dataclasses.fields(value) if field.name != "draw"]
            tell(name, [getattr(value, field) for field in fields])

    def told(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            tell(name, result)
            return result

        setattr(owner, name, staticmethod(wrapped) if isinstance(owner, type) else wrapped)

    told(masking.RoundSecrets, "from_entropy")
    for name in ("masking_key", "self_mask_seed", "pair_seed"):
        told(masking, name)
    told(dealing, "split")
    told(sharing, "unseal")
    told(ring, "encode")  # the clear update, before masks are added in place
    seal, seal_anonymously = sharing.seal, sealing.seal_anonymously

    def seals(*args: Any, ephemeral: bytes, **options: Any) -> sharing.Entry:
        tell("ephemeral", ephemeral)
        return seal(*args, ephemeral=ephemeral, **options)

    def seals_anonymously(plaintext: bytes, public: bytes, entropy: bytes) -> bytes:
        tell("revealed", [plaintext, entropy])
        return seal_anonymously(plaintext, public, entropy)

    vars(sharing)["seal"] = seals
    for module in (device_round, device_attestation):
        vars(module)["seal_anonymously"] = seals_anonymously
    train = trainer.Trainer.train

    def trains(self: trainer.Trainer, *args: Any, **options: Any) -> trainer.TrainResult:
        result = train(self, *args, **options)
        tell("update", result.update)
        return result

    trainer.Trainer.train = trains  # type: ignore[method-assign]


def live(home: Path, log_file: Path, kill: str) -> int:
    """Run the agent of a home until it is killed or told to stop."""
    log = Log(log_file)
    with log_file.with_suffix(".err.log").open("a") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
    log("start", str(os.getpid()))
    instrument(log, Instants(log, kill))
    running = connect.RunningAgent(open_home(home))
    signal.signal(signal.SIGTERM, lambda *_: running.leave())
    running.run()
    log("end")
    return 0


def serve() -> None:
    """Fork an agent for every request, one at a time, and say how it ended."""
    for line in sys.stdin:
        home, log_file, kill = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = live(Path(home), Path(log_file), kill)
            except BaseException:
                logging.exception("the agent broke down")
            finally:
                os._exit(code)
        builtins.print(json.dumps(["pid", pid]), flush=True)
        builtins.print(json.dumps(["end", os.waitstatus_to_exitcode(_wait(pid))]), flush=True)


def _wait(pid: int) -> int:
    """Wait for an agent, and end it if whoever asked for it has gone: nothing is asked before its end is told."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if select.select([sys.stdin], [], [], 0.005)[0]:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
