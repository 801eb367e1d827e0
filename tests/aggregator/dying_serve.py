"""``covey serve`` that kills itself: ``python dying_serve.py HOME NUMBER before|after``.

Counts everything that is durable (commits of the database, flushes of the spool, file replacements, files written and
removed) and ends with SIGKILL at the given one, right before or right behind it. Nothing of the service knows of it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from covey_aggregator import files, spool, store
from covey_aggregator.cli import main


class Death:
    """Comes at the ``number``-th durable write."""

    def __init__(self, number: int, when: str, log: Path) -> None:
        self._number, self._when, self._log = number, when, log
        self._seen = 0

    def at(self, owner: Any, name: str, matters: Callable[..., bool] = lambda *_, **__: True) -> None:
        """Let calls of a function count, where they matter."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(*arguments: Any, **options: Any) -> Any:
            if not matters(*arguments, **options):
                return original(*arguments, **options)
            self._seen += 1
            mine = self._seen == self._number
            if mine and self._when == "before":
                self._die(name)
            result = original(*arguments, **options)
            if mine:
                self._die(name)
            return result

        setattr(owner, name, counted)

    def _die(self, name: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{self._when} {name}\n")
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    home, number, when = sys.argv[1:]
    death = Death(int(number), when, Path(home).parent / "deaths")
    death.at(store.Store, "commit", lambda self: self._db.in_transaction)
    death.at(spool.Spool, "sync", lambda self: self._dirty)
    death.at(spool.Spool, "remove")
    death.at(spool, "write_private")
    death.at(Path, "replace", lambda path, _target: path.name.startswith("."))
    death.at(files, "flush_folder")
    sys.argv = ["covey", "serve", home]
    main()
