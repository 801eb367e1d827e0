"""What ends while the aggregator runs: certificates that it renews, and a delegation that others must renew."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from covey_aggregator.home import DATABASE_FILE, day, open_server
from covey_aggregator.store import Store
from covey_aggregator.tls_home import TlsHome, has_tls
from covey_protocol.errors import CoveyError

log = logging.getLogger("covey.aggregator")

_PAUSE = 6 * 3600.0


def look_after(home: Path, now: int) -> list[str]:
    """Renew the broker's and the aggregator's certificates where it is time, and say what people have to do.

    Raises:
        CoveyError: A file of the home is damaged.
    """
    server = open_server(home)
    said = []
    if has_tls(home):
        store = Store(home / DATABASE_FILE)
        try:
            said = TlsHome(home, store).renew_own(now)
        finally:
            store.close()
    if server.word is not None and server.delegation_due(now):
        ends = day(server.word.not_after)
        over = "ended" if server.word.not_after <= now else "ends"
        said.append(
            f"the operator's delegation {over} on {ends}, and devices join no round without one: covey renew {home}"
        )
    return said


async def keep_up(home: Path, wall_clock: Callable[[], float] = time.time, pause: float = _PAUSE) -> None:
    """Look after a home for ever; what goes wrong is logged, and tried again."""
    while True:
        try:
            for line in await asyncio.to_thread(look_after, home, int(wall_clock())):
                log.warning("%s", line)
        except (CoveyError, OSError) as error:
            log.error("%s", error)
        await asyncio.sleep(pause)
