"""``covey-agent doctor``: says in words what keeps a device from taking part, from its files to the aggregator."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from pathlib import Path

from covey_agent.authority import recall_words
from covey_agent.connect import link_options
from covey_agent.doctor import local
from covey_agent.doctor.findings import Finding, as_json, fail, in_words, ok, skip
from covey_agent.doctor.login import Login
from covey_agent.doctor.reach import check_reach
from covey_agent.home import IDENTITY_FILE, STATUS_FILE, open_home
from covey_agent.paho_client import tls_context
from covey_agent.profile import load_profile
from covey_agent.status import read_status
from covey_agent.wallclock import synchronised_time
from covey_protocol.errors import CoveyError
from covey_protocol.identity import PinnedKeys
from covey_protocol.policy import Policy
from covey_protocol.revocation import Revocations
from covey_protocol.roster import Trust

__all__ = ["Finding", "as_json", "examine", "in_words"]


def examine(
    folder: Path, *, bundle: Path | None = None, take_over: bool = False, wall: int | None = None
) -> list[Finding]:
    """Check a home, and the way from it to the aggregator.

    Args:
        folder: The agent's home.
        bundle: A provisioning bundle to be checked as well.
        take_over: Log in although the agent runs, which pushes it out for a moment.
        wall: The wall clock; the system's if not given.

    Returns:
        The findings in the order of the checks; what depends on something that failed is left out.
    """
    synchronised = synchronised_time()
    now = int(time.time()) if wall is None else wall
    findings = local.check_bundle(bundle, now) if bundle is not None else []
    if not (folder / IDENTITY_FILE).exists():
        text = f"{folder} is not enrolled: covey-agent enrol BUNDLE --home {folder}"
        return [*findings, skip("home", text) if bundle is not None else fail("home", text)]
    try:
        home = open_home(folder)
        profile = load_profile(home.config.profile or home.stored.profile)
        options = link_options(home, profile, ("covey", b""))
        pairs = options.credentials.candidates() if options.credentials is not None else []
        if pairs:
            options = dataclasses.replace(options, cert_file=pairs[0][0], key_file=pairs[0][1], credentials=None)
    except (CoveyError, OSError) as error:
        return [*findings, fail("home", str(error))]
    findings += [ok("home", f"{folder}: {home.device} of fleet {home.fleet}"), *local.check_files(home)]
    try:
        marks = local.read_marks(home)
    except sqlite3.Error as error:
        marks = {}
        findings.append(fail("database", f"{home.database}: {error}; move it away, with its -wal and -shm"))
    earliest = local.earliest_time(home, marks)
    findings += local.check_clock(now, earliest, synchronised is not None)
    findings += local.check_identity(home, marks, max(now if synchronised else 0, earliest))
    findings += [*local.check_data(home), *local.check_disk(home, profile), *local.check_memory(profile)]
    reach = check_reach(options, wall=now, earliest=earliest, trusted=synchronised is not None)
    findings += reach
    if reach[-1].level == "fail":
        return findings
    if _runs(folder) and not take_over:
        text = "the agent runs, and would be pushed out for a moment: stop it, or use --take-over"
        return [*findings, skip("login", text)]
    trust = Trust(home.fleet, home.stored.operator_key, b"", Policy(), PinnedKeys(), Revocations())
    try:
        recall_words(trust, home.stored, marks)
        context = tls_context(options)
    except (CoveyError, ValueError) as error:
        return [*findings, fail("login", str(error))]
    return findings + Login(home, profile, options, context).visit(wall=now, aggregator_key=trust.aggregator_key)


def _runs(folder: Path) -> bool:
    pid = (read_status(folder / STATUS_FILE) or {}).get("pid")
    return isinstance(pid, int) and Path(f"/proc/{pid}").exists()
