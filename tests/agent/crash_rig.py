"""The test's side of the crash harness: a fleet and an aggregator around one real agent process, over a real broker.

Everybody but the victim is the machinery of ``world.World``; time passes only when a test lets it. A ``Killed`` fleet
goes through two epochs' worth of life (an opening, two rounds, a clean stop) with the victim killed at one instant of
it, starts the victim again from its own home, and holds what the broker heard and what the disk shows to the rules.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import json
import os
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from tests.agent.crash_child import kind_of
from tests.agent.world import BUNDLE, DEVICE, OPEN_TOPIC, PIECE, World, place_of
from tests.protocol.rig import FLEET, TASK

from covey_agent.outbox import Outbox
from covey_agent.profile import profile_folder
from covey_agent.transport import LinkEvents, LinkOptions, MqttLink
from covey_protocol import envelope, topics
from covey_protocol.chunks import Piece, split
from covey_protocol.digest import content_digest
from covey_protocol.errors import RefusedError
from covey_protocol.messages import Join, Masked
from covey_protocol.payload import read
from covey_protocol.provisioning import Broker
from covey_protocol.round_table import GroupStage
from covey_simulator.broker import RunningBroker

SECONDS = 40.0  # patience for what must happen
STAGE_KINDS = [
    *(topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.ATTEST, topics.ACCEPT, topics.UNMASK)
]
SKETCHING = 2  # the round in which devices attest sketches
ROOT = Path(__file__).parents[2]


class Nursery:
    """The fork server, and the agent that it runs at the moment."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.crash_child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self.pid = 0

    def start(self, home: Path, log: Path, kill: str = "") -> None:
        """Start an agent; at most one at a time."""
        assert not self.pid
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([str(home), str(log), kill]) + "\n")
        word, self.pid = self._heard()
        assert word == "pid"

    def wait(self) -> int:
        """Wait for the agent's end; return its exit code, or minus the signal."""
        word, code = self._heard()
        assert word == "end"
        self.pid = 0
        return code

    def stop(self, number: signal.Signals) -> int:
        """Send the agent a signal and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()

    def close(self) -> None:
        """End everything."""
        if self.pid:
            self.stop(signal.SIGKILL)
        self._server.communicate(timeout=SECONDS)

    def _heard(self) -> tuple[str, int]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the fork server died"
        word, number = json.loads(line)
        return str(word), int(number)


class Records:
    """What the child has written down so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> Iterator[list[str]]:
        """Yield all lines."""
        if self.path.exists():
            yield from (json.loads(line) for line in self.path.read_text().splitlines())

    def instants(self) -> list[str]:
        """Return the instants passed, in order."""
        return [words[1] for words in self.lines() if words[0] == "at"]

    def put(self) -> set[str]:
        """Return the digests of all messages that became durable."""
        return {words[1] for words in self.lines() if words[0] == "put"}

    def secrets(self) -> dict[bytes, str]:
        """Return every secret that was in memory, and its name."""
        return {base64.b64decode(words[2]): words[1] for words in self.lines() if words[0] == "secret"}

    def killed(self) -> bool:
        """Say whether the last of the agents wrote nothing about an end."""
        last = [words[0] for words in self.lines() if words[0] in ("start", "end")]
        return bool(last) and last[-1] == "start"

    def errors(self) -> str:
        """Return what the agent logged."""
        path = self.path.with_suffix(".err.log")
        return path.read_text() if path.exists() else ""


class CrashWorld(World):
    """A world whose agent is another process.

    Args:
        folder: Room for homes and logs.
        broker: Where everybody meets.
        nursery: What runs the agent.
    """

    def __init__(self, folder: Path, broker: RunningBroker, nursery: Nursery) -> None:
        self.nursery = nursery
        self.records = Records(folder / "child.log")
        self.alive = self.announced = False
        self.code = 0
        self.goal: Callable[[], bool] = lambda: True
        self.inbox: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        options = LinkOptions(host=broker.host, port=broker.port, client_id="world")
        self.radio = MqttLink(options, Outbox(":memory:"), LinkEvents(on_message=self._on_radio))
        super().__init__(folder, broker=Broker(host=broker.host, port=broker.port))
        profile = yaml.safe_load((profile_folder() / "pi-4.yaml").read_text())
        quick = folder / "quick.yaml"
        quick.write_text(yaml.safe_dump({**profile, "name": "quick", "backoff_base": 0.02, "backoff_cap": 0.1}))
        settings = {"data": str(folder / "data.npz"), "profile": str(quick), "threads": 1}
        (self.home.path / "agent.yaml").write_text(yaml.safe_dump(settings))
        self.radio.subscribe([topics.up(FLEET, DEVICE, "#")])
        self.radio.start()
        assert self.radio.wait_connected(SECONDS)

    def close(self) -> None:
        """End the agent and the radio."""
        if self.nursery.pid:
            self.nursery.stop(signal.SIGKILL)
        self.radio.stop()

    # What is different from a world in one process

    def boot(self, *, up: bool = True) -> None:
        """Make no agent here: its database must not even be open in this process."""
        self.store.close()
        for path in self.home.path.glob("agent.db*"):
            path.unlink()

    def say(self, topic: str, payload: bytes) -> None:
        self.radio.publish(topic, payload, retain=topic == OPEN_TOPIC)
        if topic == OPEN_TOPIC and not self.announced:
            self.announced = True
            for piece in split(BUNDLE.encode(), PIECE):
                self.radio.publish(topics.pub(FLEET, topics.BLOB, BUNDLE.digest.hex()), piece.encode())

    def settle(self) -> None:
        """Carry messages until the goal is reached or the agent is dead and nothing is left to carry."""
        deadline = time.monotonic() + SECONDS
        while True:
            while self._queue:
                self._queue.popleft()()
            if self.inbox.empty() and (self.goal() or self.is_dead()):
                return
            assert time.monotonic() < deadline, self.trouble()
            with contextlib.suppress(queue.Empty):
                topic, payload = self.inbox.get(timeout=0.01)
                self._hear(topic, payload, topic.endswith("/state"))

    def _piece(self, name: str, payload: bytes) -> None:
        with contextlib.suppress(RefusedError):  # a repeated piece of a vector that is there
            super()._piece(name, payload)

    def _on_radio(self, topic: str, payload: bytes) -> None:
        self.inbox.put((topic, payload))

    def is_dead(self) -> bool:
        """Say whether the agent's process has ended, and the broker has said so."""
        if not self.alive or not self.nursery.pid:
            return True
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self.nursery.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            return state == "Z"
        return True

    def trouble(self) -> str:
        """Say where everybody stands."""
        stage = self.group.stage if self.group else None
        return f"stuck: {stage}\n{self.records.instants()[-6:]}\n{self.records.errors()[-3000:]}"

    # A life

    def start(self, kill: str = "") -> None:
        """Start the agent and wait until it is there, or dead."""
        seen = len(self.states)
        self.nursery.start(self.home.path, self.records.path, kill)
        self.alive = True
        self.until(lambda: any(state.status == "online" for state in self.states[seen:]))

    def until(self, goal: Callable[[], bool]) -> None:
        """Carry messages until something has come about, or the agent is dead."""
        self.goal = goal
        self.settle()
        if self.alive and self.is_dead():
            self.alive = False
            self.code = self.nursery.wait()

    def handled(self, instant: str) -> bool:
        """Say whether the agent has passed an instant."""
        return instant in self.records.instants()

    def group_up(self, epoch: int = 1) -> None:
        """Open an epoch, again until groups come about."""
        self.goal = lambda: self.opening is not None and bool(self.opening.groups)
        self.open_epoch(epoch)
        self.until(self.goal)

    def round(self, number: int) -> None:
        """Open a round and let it come to its end, with or without the agent."""
        self.goal = lambda: self.group is not None and self.group.opened.round == number and self.group.finished
        self.open_round(number, sketch=8 if number == SKETCHING else 0)
        self.until(self.goal)

    def finish_round(self) -> None:
        """Let the windows of the present round run out, and close it."""
        assert self.group is not None
        group = self.group
        for _ in range(8):
            if group.finished:
                break
            stage = group.stage
            self.goal = lambda: group.stage is not stage  # noqa: B023
            self.late()
            self.until(lambda: True)
        assert group.stage is GroupStage.SUMMING, group.aborted
        self.goal = lambda: True
        self.close_round()

    def stop(self) -> int:
        """Stop the agent as a service manager does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.nursery.pid, signal.SIGTERM)
        self.until(lambda: False)
        return self.code

    def disk(self) -> dict[str, bytes]:
        """Return every file of the home as it lies there."""
        return {
            str(path.relative_to(self.home.path)): path.read_bytes()
            for path in self.home.path.rglob("*")
            if path.is_file()
        }


def copied_database(home: Path, folder: Path) -> tuple[dict[str, bytes], list[tuple[str, bytes]]]:
    """Return marks and outbox as the next start will find them, read from a copy."""
    folder.mkdir()
    for path in home.glob("agent.db*"):
        shutil.copy(path, folder / path.name)
    if not (folder / "agent.db").exists():
        return {}, []
    database = sqlite3.connect(folder / "agent.db")
    marks: dict[str, bytes] = {}
    rows: list[tuple[str, bytes]] = []
    with contextlib.suppress(sqlite3.OperationalError):  # killed before there were tables
        rows = [(row[0], bytes(row[1])) for row in database.execute("SELECT topic, payload FROM outbox ORDER BY id")]
        marks = {row[0]: bytes(row[1]) for row in database.execute("SELECT key, value FROM marks")}
    database.close()
    shutil.rmtree(folder)
    return marks, rows


def needles(secret: bytes) -> list[bytes]:
    """Return what to search for on a disk: a secret, or windows of a long one, raw and as text."""
    windows = [secret]
    if len(secret) > 96:
        cuts = [secret[start : start + 33] for start in range(0, len(secret) - 33, len(secret) // 12)]
        windows = [cut for cut in cuts if len(set(cut)) > 12]
    found = []
    for window in windows:
        text = base64.b64encode(window).rstrip(b"=")
        found += [window, binascii.hexlify(window), binascii.hexlify(window).upper(), text]
        found.append(text.translate(bytes.maketrans(b"+/", b"-_")))
    return found


def leaks(disk: dict[str, bytes], secrets: dict[bytes, str]) -> list[str]:
    """Return which secrets lie in which files."""
    everything = b"\0\n".join(disk.values())
    return [
        f"{name} in {[file for file, content in disk.items() if needle in content]}"
        for secret, name in secrets.items()
        if len(secret) >= 16
        for needle in needles(secret)
        if needle in everything
    ]


def check_disk(world: CrashWorld) -> None:
    """Hold the files of the home to rule 5: no round's secret anywhere, permanent keys in their private file alone."""
    disk = world.disk()
    assert leaks(disk, world.records.secrets()) == []
    seed = bytes(world.home.key)
    assert leaks({name: data for name, data in disk.items() if name != "device.key"}, {seed: "device key"}) == []
    assert disk["device.key"] == seed
    for path in world.home.path.rglob("*"):
        private = path.name not in ("agent.yaml", "status.json", ".status.json.new")
        assert not private or path.is_dir() or path.stat().st_mode & 0o077 == 0, path


@functools.cache
def _spoken(payload: bytes) -> tuple[str, int, int] | None:
    try:
        return place_of(payload)
    except Exception:
        return None  # a piece


class Speech:
    """All that a device said of rounds, by kind and place."""

    def __init__(self, heard: list[tuple[str, bytes, bool]]) -> None:
        self.said: dict[tuple[str, int, int], list[bytes]] = {}
        self.pieces: list[Piece] = []
        for topic, payload, _ in heard:
            kind = kind_of(topic)
            if kind == "masked/":
                self.pieces.append(Piece.decode(payload))
            elif kind in STAGE_KINDS and (place := _spoken(payload)) is not None:
                self.said.setdefault((kind, place[1], place[2]), []).append(payload)

    def check(self) -> None:
        """Hold it to the rules."""
        for place, payloads in self.said.items():
            assert len(set(payloads)) == 1, f"{place} was said in two ways"
        joins = [read(Join, envelope.parse(data[0]).payload) for at, data in self.said.items() if at[0] == topics.JOIN]
        sequences = [join.sequence for join in joins]
        assert sequences == sorted(set(sequences)), sequences
        assert len({join.mask_key for join in joins}) == len(joins)
        signed = [
            read(Masked, envelope.parse(data[0]).payload).vector.digest
            for at, data in self.said.items()
            if at[0] == topics.MASKED
        ]
        assert len(set(signed)) == len(signed)
        assert {piece.digest for piece in self.pieces} <= set(signed)


def survived(world: CrashWorld, kill: str, folder: Path) -> None:
    """Take a fleet through its life with the agent killed at one instant, and hold everything to the rules.

    Args:
        world: A fleet whose agent has not been started.
        kill: The instant.
        folder: Room for a copy of the database.
    """
    round_ = live(world, kill)
    if world.alive:
        world.stop()
    assert kill in world.records.instants(), f"{kill} never came"
    assert world.code == -signal.SIGKILL
    durable = world.records.put()
    marks, waiting = copied_database(world.home.path, folder / "copy")
    check_disk(world)
    world.start()
    assert world.alive, world.trouble()
    go_on(world, round_)
    check_disk(world)
    assert "Traceback" not in world.records.errors(), world.records.errors()

    speech = Speech(world.heard)
    speech.check()
    # Nothing was sent that was not durable, and everything that was durable has been sent, byte for byte.
    put = world.records.put()
    heard = {payload for topic, payload, _ in world.heard}
    undurable = [
        kind_of(t) for t, p, _ in world.heard if kind_of(t) != topics.STATE and content_digest(p).hex() not in put
    ]
    assert undurable == []
    missing = [kind_of(topic) for topic, payload in waiting if kind_of(topic) != topics.STATE and payload not in heard]
    assert missing == []
    # A round that was joined and whose secrets are lost: what was durable is sent, and nothing new is made.
    mark = marks.get(f"round/{TASK}", b"").decode()
    lost = [data for (_, number, attempt), data in speech.said.items() if f"{number}.{attempt}" == mark]
    assert {content_digest(payload).hex() for payloads in lost for payload in payloads} <= durable


def live(world: CrashWorld, kill: str = "") -> int:
    """Live through an opening and two rounds, one with sketches, or until the agent is dead; return the last one."""
    world.start(kill)
    if world.alive:
        world.group_up()
    for number in (1, 2):
        if not world.alive:
            return number - 1
        world.round(number)
        if world.alive:
            world.finish_round()
            world.until(lambda: world.handled(f"after hear close#{number}"))  # noqa: B023
        if not world.alive:
            return number
    return 2


def go_on(world: CrashWorld, round_: int) -> None:
    """Finish what was going on, and take the restarted agent through another round."""
    if world.opening is None:
        world.group_up()
    else:
        # What the agent had not handled comes again, and what it had not sent goes out: the opening goes on.
        world.until(lambda: bool(world.opening and world.opening.groups))
    assert world.opening is not None
    if world.group is not None and world.group.stage is not GroupStage.CLOSED:
        world.finish_round()
    world.round(round_ + 1)
    assert world.group is not None
    assert world.group.finished, world.trouble()
    assert DEVICE in world.group.survivors, world.trouble()
    total = world.close_round()
    assert len(total)
    assert world.stop() == 0, world.records.errors()[-2000:]
    deadline = time.monotonic() + SECONDS
    while world.states[-1].status != "left":  # its last word may still be on its way
        assert time.monotonic() < deadline, world.trouble()
        world.settle()
    _, waiting = copied_database(world.home.path, world.home.path.parent / "end")
    assert waiting == []
