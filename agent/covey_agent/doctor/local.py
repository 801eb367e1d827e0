"""What can be checked without a network: files, identity, clock, data, disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from covey_agent.authority import recall_words
from covey_agent.config import FILE as CONFIG_FILE
from covey_agent.doctor.findings import Finding, fail, ok, skip, warn
from covey_agent.home import IDENTITY_FILE, KEY_FILE, AgentHome
from covey_agent.profile import FirmwareProfile
from covey_protocol import identity, provisioning
from covey_protocol.errors import CoveyError
from covey_protocol.identity import PinnedKeys
from covey_protocol.policy import Policy
from covey_protocol.revocation import Revocations
from covey_protocol.roster import Trust
from covey_protocol.signed_time import DeviceClock

SOON_SECONDS = 30 * 86400
OFF_SECONDS = 300
_SPARE_BYTES = 16 << 20
_PROBE_BYTES = 256 << 10
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def day(seconds: float) -> str:
    """Return a time in words that people compare."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def check_bundle(file: Path, now: int) -> list[Finding]:
    """Check a provisioning bundle that is to be used."""
    try:
        bundle = provisioning.decode(file.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        return [fail("bundle", f"{file} cannot be read: {error}")]
    except CoveyError as error:
        return [fail("bundle", f"{file}: {error}; copy it to the device again, as a file")]
    try:
        bundle.check(None)
    except CoveyError as error:
        return [fail("bundle", f"{file} was changed, or is of another operator: {error}")]
    try:
        bundle.check(now)
    except CoveyError as error:
        hint = "if the clock is right, ask the operator for a new one: covey device add"
        return [fail("bundle", f"its token has expired: {error}, and this device's clock says {day(now)}; {hint}")]
    return [ok("bundle", f"for {bundle.device} of fleet {bundle.fleet}; use it: covey-agent enrol {file}")]


def check_files(home: AgentHome) -> list[Finding]:
    """Check who owns the home and who else may read what is in it."""
    private = (home.path / KEY_FILE, home.path / IDENTITY_FILE, home.database, home.path / "client.key")
    loose = [path.name for path in private if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    found = []
    if loose:
        found.append(fail("files", f"{', '.join(loose)} can be read by others: chmod 600, in {home.path}"))
    strange = [p.name for p in (home.path, home.path / KEY_FILE) if p.stat().st_uid != os.geteuid()]
    if strange:
        found.append(warn("files", f"{', '.join(strange)} belongs to another user than the one who runs this"))
    return found or [ok("files", f"{home.path}: keys are private")]


def read_marks(home: AgentHome) -> dict[str, bytes]:
    """Return what the agent has remembered, without changing anything.

    Raises:
        sqlite3.Error: The database is damaged.
    """
    if not home.database.exists():
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{home.database}?mode=ro", uri=True, timeout=5)) as database:
        if not database.execute("SELECT name FROM sqlite_master WHERE name = 'marks'").fetchone():
            return {}
        return {key: bytes(value) for key, value in database.execute("SELECT key, value FROM marks")}


def earliest_time(home: AgentHome, marks: dict[str, bytes]) -> int:
    """Return what has certainly passed: this version's making, the bundle's, and the latest time that was signed."""
    return DeviceClock(earliest=home.stored.made, rows=marks).now(0.0)


def check_clock(wall: int, earliest: int, synchronised: bool) -> list[Finding]:
    """Check the wall clock, which TLS goes by; Covey itself goes by the aggregator's signed time."""
    if wall + OFF_SECONDS < earliest:
        text = f"the clock says {day(wall)}, but {day(earliest)} has passed already: set it, or start a time service"
        return [fail("clock", f"{text} (timedatectl set-ntp true); TLS fails until it is right")]
    if not synchronised:
        return [warn("clock", f"{day(wall)}; no time service keeps it right: timedatectl set-ntp true")]
    return [ok("clock", f"{day(wall)}, kept right by a time service")]


def check_identity(home: AgentHome, marks: dict[str, bytes], now: int) -> list[Finding]:
    """Check the chain up to the operator, the token's expiry and the aggregator's delegation."""
    stored = home.stored
    found = [ok("identity", f"{home.device} of fleet {home.fleet}, in one chain up to operator {_short(stored)}")]
    try:
        identity.verify_chain(
            stored.chain, operator_key=stored.operator_key, fleet=home.fleet, device=home.device, now=now
        )
    except CoveyError as error:
        found.append(
            warn(
                "token",
                f"{error}: if the aggregator has never heard of this device it lets it in no more, and a new bundle is "
                "needed (covey device add); if it has, this is of no concern",
            )
        )
    trust = Trust(home.fleet, stored.operator_key, b"", Policy(), PinnedKeys(), Revocations())
    try:
        warrants = recall_words(trust, stored, marks)
    except (CoveyError, ValueError) as error:
        return [*found, fail("delegation", f"what was stored of the operator's newer words is damaged: {error}")]
    end = warrants.delegation.not_after
    if warrants.expired(now):
        text = f"the aggregator's delegation expired on {day(end)}; the operator has to renew it (covey operator sign)"
        return [*found, fail("delegation", f"{text}, and the device then hears of it by itself")]
    if end and end - now < SOON_SECONDS:
        return [*found, warn("delegation", f"the aggregator's delegation ends on {day(end)}")]
    return [*found, ok("delegation", f"the aggregator's delegation holds{f' until {day(end)}' if end else ''}")]


def _short(stored: object) -> str:
    return bytes(stored.operator_key).hex()[:16]  # type: ignore[attr-defined]


def check_data(home: AgentHome) -> list[Finding]:
    """Check that there are samples and labels; whether they suit the model is seen when a task comes."""
    path = home.data_path
    files = sorted(file for file in path.glob("*.npz") if file.name[0] != ".") if path.is_dir() else [path]
    hint = f"see `data` in {home.path / CONFIG_FILE}"
    if not files or not path.exists():
        return [fail("data", f"{path}: no .npz file to train on; {hint}")]
    samples = 0
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as archive:
                x, y = archive["x"], archive["y"]
        except KeyError as error:
            return [fail("data", f"{file}: has no array {error}; it needs x (samples) and y (labels)")]
        except Exception as error:  # a damaged archive raises whatever zipfile, zlib and numpy stumble over
            return [fail("data", f"{file}: cannot be read as .npz: {error}")]
        if len(x) != len(y) or not len(x) or not np.issubdtype(x.dtype, np.floating):
            return [
                fail("data", f"{file}: x {x.dtype} {x.shape} and y {y.shape}: one label a sample, x floating point")
            ]
        samples += len(x)
    return [ok("data", f"{samples} samples in {path}")]


def check_disk(home: AgentHome, profile: FirmwareProfile, space: Callable[[Path], int] | None = None) -> list[Finding]:
    """Check that what the agent writes stays, and that there is room for the models it may be given."""
    free = (space or _free)(home.path)
    found: list[Finding] = []
    try:
        _write_and_flush(home.path)
        _commit(home.path)
    except (OSError, sqlite3.Error) as error:
        what = "the disk is full" if _is_full(error) else "the disk cannot be written"
        return [
            fail("disk", f"{what}: {error}, {free >> 10} KiB free at {home.path}; nothing is said without a record")
        ]
    try:
        damage = _damage(home.database)
    except sqlite3.Error as error:
        damage = str(error)
    if damage:
        found.append(fail("database", f"{home.database} is damaged: {damage}; move it away, with its -wal and -shm"))
    wanted = 3 * profile.model_bytes_max + _SPARE_BYTES
    if _kind(home.path) in _IN_MEMORY:
        found.append(warn("disk", f"{home.path} is in memory: identity and records are gone when the power is"))
    if free < wanted:
        text = f"{free >> 20} MiB free; models of profile {profile.name} may need {wanted >> 20} MiB"
        found.append(warn("disk", text))
    return found or [ok("disk", f"{free >> 20} MiB free, writes are kept")]


def check_memory(profile: FirmwareProfile) -> list[Finding]:
    """Check that the machine has what its profile promises."""
    try:
        line = next(
            line for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if line[:9] == "MemTotal:"
        )
    except (OSError, StopIteration):
        return [skip("profile", "the machine does not say how much memory it has")]
    there = int(line.split()[1]) // 1024
    if there < 0.8 * profile.memory_mb:  # the kernel keeps some for itself
        text = f"profile {profile.name} is for {profile.memory_mb} MB of memory, here are {there}"
        return [warn("profile", f"{text}: name another one in {CONFIG_FILE}")]
    return [ok("profile", f"{profile.name}: models up to {profile.model_bytes_max >> 20} MiB")]


def _free(path: Path) -> int:
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def _is_full(error: Exception) -> bool:
    return "full" in str(error) or (isinstance(error, OSError) and error.errno in (28, 122))


def _write_and_flush(folder: Path) -> None:
    path = folder / f".doctor-{os.getpid()}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.write(handle, bytes(_PROBE_BYTES)) < _PROBE_BYTES:
                raise OSError(28, "No space left on device")
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        path.unlink(missing_ok=True)


def _commit(folder: Path) -> None:
    """Commit to a database of its own, as the agent does to its: WAL, flushed to the disk."""
    path = folder / f".doctor-{os.getpid()}.db"
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            if database.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                raise OSError("this file system cannot keep a database's journal (a network share?)")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE probe (value BLOB)")
            database.execute("INSERT INTO probe VALUES (?)", (bytes(4096),))
    finally:
        for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            file.unlink(missing_ok=True)


def _damage(path: Path) -> str:
    if not path.exists():
        return ""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    return "" if verdict == "ok" else str(verdict)


def _kind(path: Path) -> str:
    """Return the kind of file system that a path is on."""
    best = ("", "")
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        place = fields[1].replace("\\040", " ")
        if path.resolve().is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, fields[2])
    return best[1]
