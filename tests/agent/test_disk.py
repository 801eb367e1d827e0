"""A disk that is full, read-only or damaged: nothing is sent that could not be stored, and no agent breaks down."""

from __future__ import annotations

import logging
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.agent.enrolled import enrolled
from tests.agent.world import DEVICE, PIECE, World, grouped_world
from tests.protocol.rig import TASK

from covey_agent import cli
from covey_agent.connect import RunningAgent
from covey_agent.home import open_home
from covey_agent.outbox import Outbox
from covey_agent.runtime import Agent
from covey_agent.store import Store
from covey_protocol import topics
from covey_protocol.effects import Remember, Send
from covey_protocol.errors import ConfigError, LocalError
from covey_protocol.round_table import GroupStage

STAGES = [topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK]
ASKED_BY = dict(zip(STAGES, [topics.OPEN, topics.ROSTER, topics.DEALT, topics.SURVIVORS, topics.UNMASK], strict=True))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with grouped_world(tmp_path) as world:
        yield world


def readonly(outbox: Outbox) -> None:
    """Do what happens to a card that fails: not a byte can be written any more."""
    outbox._db.execute("PRAGMA query_only=ON")


def full(outbox: Outbox) -> None:
    """Fill the disk up to the last page; what is small still finds its place in a page that is there."""
    outbox._db.execute("CREATE TABLE filler (data BLOB)")
    [pages] = outbox._db.execute("PRAGMA page_count").fetchone()
    outbox._db.execute(f"PRAGMA max_page_count={pages + 8}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        while True:
            outbox._db.execute("INSERT INTO filler VALUES (zeroblob(100))")


def room(outbox: Outbox) -> None:
    """Let there be room again."""
    outbox._db.execute("PRAGMA query_only=OFF")
    outbox._db.execute(f"PRAGMA max_page_count={1 << 30}")
    outbox._db.execute("DROP TABLE IF EXISTS filler")


def stored(world: World) -> dict[str, bytes]:
    other = sqlite3.connect(world.home.database)
    rows = {key: bytes(value) for key, value in other.execute("SELECT key, value FROM marks")}
    other.close()
    return rows


@pytest.mark.parametrize(("stage", "trouble"), [*[(stage, readonly) for stage in STAGES], (topics.MASKED, full)])
def test_nothing_is_sent_that_could_not_be_stored(
    world: World,
    stage: str,
    trouble: Callable[[Outbox], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = Agent._on_message

    def strike(agent: Agent, topic: str, payload: bytes) -> None:
        if topics.parse(topic).kind == ASKED_BY[stage] and not struck:
            struck.append(topic)
            trouble(world.store.outbox)
        handle(agent, topic, payload)

    struck: list[str] = []
    monkeypatch.setattr(Agent, "_on_message", strike)
    with caplog.at_level(logging.WARNING):
        world.open_round()
    assert struck
    silent = STAGES[STAGES.index(stage) :]
    assert [kind for kind in silent if world.said(kind)] == []
    assert bool(world.said(topics.DECLINE)) == (trouble is full)
    assert not any("masked" in topic for topic, _, _ in world.heard) or stage in STAGES[3:]
    assert "nothing is sent that cannot be stored first" in caplog.text
    if stage != topics.UNMASK:  # too late to leave: others are enough
        assert "nothing is sent that cannot be stored first" in world.agent.snapshot()["holds"]

    # There is room again, but this round's words stay unsaid, whatever the broker or the aggregator ask for.
    room(world.store.outbox)
    world.agent.connected(False)
    world.settle()
    world.later(60)  # a broker that has lost the session is told again what was said
    assert world.group is not None
    while not world.group.finished:
        world.late()
    assert world.group.stage is GroupStage.SUMMING, world.group.aborted
    assert [kind for kind in silent if world.said(kind)] == []
    world.close_round()
    world.open_round(2)
    world.later(2)
    assert world.group is not None
    assert DEVICE in world.group.survivors
    world.close_round()
    assert world.agent.ledger._rows.items() <= stored(world).items()  # not a mark was lost on the way


def test_a_state_that_could_not_be_stored_is_said_when_there_is_room(world: World) -> None:
    seen = len(world.states)
    readonly(world.store.outbox)
    world.agent.connected(True)
    world.settle()
    assert len(world.states) == seen
    room(world.store.outbox)
    world.agent.deliver("", b"")  # a turn of the loop
    world.turn()
    world.settle()
    assert "online" in {state.status for state in world.states[seen:]}


def test_what_was_acknowledged_is_not_sent_again_though_that_could_not_be_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path / "agent.db")
    first, second = outbox.put("a", b"1"), outbox.put("b", b"2")
    readonly(outbox)
    outbox.delete(first)
    assert "nothing is sent that cannot be stored first" in caplog.text
    assert [row.id for row in outbox.pending()] == [second]
    assert (outbox.used(), outbox.holds("a"), outbox.holds("b")) == ((1, 1), False, True)
    room(outbox)
    outbox.delete(second)
    outbox.close()
    again = Outbox(tmp_path / "agent.db")
    assert again.pending() == []
    again.close()


def test_marks_that_there_was_no_room_for_are_stored_with_the_next(world: World) -> None:
    """A pin that is in memory alone would be forgotten, and another key of its token trusted after a restart."""
    readonly(world.store.outbox)
    courier = world.agent._courier
    with pytest.raises(LocalError):
        courier.carry([Remember("pin/aa", b"key"), Remember("sequence", b"1"), Send(topics.SHARES, b"\xd2")])
    room(world.store.outbox)
    courier.carry([Remember("sequence", b"2")])
    assert stored(world).items() >= {"pin/aa": b"key", "sequence": b"2"}.items()
    assert world.said(topics.SHARES) == []


_WRITER = """
import resource, sys
from pathlib import Path
from covey_agent.blobs import BlobStore
from covey_agent.runtime import Agent
from covey_agent.store import Store
from covey_protocol.digest import content_digest
from covey_protocol.effects import Remember, Send
from covey_protocol.errors import LocalError

home = Path(sys.argv[1])
store, blobs = Store(home / "agent.db"), BlobStore(home / "blobs")
carry = lambda *effects: store.carry(effects, topic_of=lambda send, digest: "a/" + send.kind, largest=1 << 16)
carry(Remember("sequence", b"1"), Send("join", b"first"))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ((home / "agent.db-wal").stat().st_size, hard))
for _ in range(3):
    try:
        carry(Remember("sequence", b"2"), Send("join", bytes(20_000)))
    except LocalError as error:
        assert error.cause == "disk", error.cause
    else:
        raise AssertionError("written beyond the limit")
data = bytes(1 << 20)
try:
    blobs.put(content_digest(data), data)
except OSError:
    assert not list((home / "blobs").iterdir())
else:
    raise AssertionError("written beyond the limit")
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert store.marks() == {"sequence": b"1"}
assert [row.payload for row in store.outbox.pending()] == [b"first"]
carry(Remember("sequence", b"3"), Send("join", b"second"))
blobs.put(content_digest(data), data)
print("done")
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """The kernel itself refuses the writes."""
    assert resource.RLIMIT_FSIZE
    done = subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")
    store = Store(tmp_path / "agent.db")
    assert store.marks() == {"sequence": b"3"}
    assert [row.payload for row in store.outbox.pending()] == [b"first", b"second"]
    store.close()


# Files that a power cut or a dying card has damaged


def used_home(folder: Path) -> Path:
    """Return a home whose database has been written to a good deal, as a kill leaves it: with its log."""
    home = enrolled(folder, DEVICE).path
    store = Store(home / "agent.db")
    for number in range(1, 60):
        effects = [Remember(f"peer/p{number}", b"1"), Remember("sequence", str(number).encode())]
        store.carry([*effects, Send(topics.JOIN, bytes([number]) * 900)], topic_of=lambda *_: "a/b", largest=PIECE)
        if number == 40:
            store.outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    image = folder / "image"
    shutil.copytree(home, image)
    store.close()
    return image


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def hole(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:12288] = bytes([0x55]) * 8192
    path.write_bytes(data)


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def stub(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:57])


@pytest.mark.parametrize("damage", [half, hole, noise, stub])
def test_a_damaged_database_is_named_with_what_to_do(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    home = used_home(tmp_path)
    (home / "agent.db-wal").unlink()
    damage(home / "agent.db")
    done = CliRunner().invoke(cli.cli, ["run", "--home", str(home)])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith(f"outbox {home / 'agent.db'}: damaged: ")
    assert "move it away" in str(done.exception)
    for path in home.glob("agent.db*"):
        path.unlink()
    started_and_stopped(home)


@pytest.mark.parametrize("damage", [half, noise, empty, stub])
@pytest.mark.parametrize("name", ["agent.db-wal", "agent.db-shm"])
def test_a_damaged_log_costs_what_was_in_it_and_no_more(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """SQLite goes on with the last transaction that is whole."""
    home = used_home(tmp_path)
    damage(home / name)
    store = Store(home / "agent.db")
    sequence = int(store.marks()["sequence"])
    assert 40 <= sequence < 60
    assert (sequence == 59) == (name == "agent.db-shm")
    assert len(store.outbox.pending()) == sequence
    store.close()
    started_and_stopped(home)


@pytest.mark.parametrize("damage", [empty, Path.unlink])
def test_a_ledger_that_is_gone_is_noticed(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    home = used_home(tmp_path)
    (home / "status.json").write_text("{}")
    (home / "agent.db-wal").unlink()
    damage(home / "agent.db")
    started_and_stopped(home)
    assert f"{home / 'agent.db'} is new or empty, though {DEVICE} has taken part before" in caplog.text


def test_a_fresh_home_has_lost_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    started_and_stopped(enrolled(tmp_path, DEVICE).path)
    assert "taken part before" not in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [("connections", b"x"), ("epoch", b"\xff"), ("epoch", b"3"), ("grouping", b"?"), ("opening", b"?")],
)
def test_marks_that_make_no_sense_are_named_with_their_file(tmp_path: Path, key: str, value: bytes) -> None:
    home = enrolled(tmp_path, DEVICE)
    store = Store(home.database)
    store.carry([Remember(key, value)], topic_of=lambda *_: "", largest=PIECE)
    store.close()
    with pytest.raises(ConfigError, match=r"agent\.db: what is in it cannot be used: .*move it away"):
        RunningAgent(home)


def test_damage_that_shows_later_does_not_end_the_agent(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.store.outbox._db.execute("PRAGMA writable_schema=ON")
    world.store.outbox._db.execute("UPDATE sqlite_master SET sql='?' WHERE name='outbox'")
    world.store.outbox._db.execute("PRAGMA writable_schema=RESET")
    world.open_round()
    assert world.said(topics.JOIN) == []
    assert "agent.db" in world.agent.snapshot()["holds"]
    assert "move it away" in caplog.text
    assert TASK in world.agent.snapshot()["tasks"]


def started_and_stopped(home: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        running = RunningAgent(open_home(home), executor=executor)
        running.agent.stop()
        running.run()
