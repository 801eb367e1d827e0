"""Notices that the operator's word for a server home has changed: its delegation, with its key, its policy, or the
operator's own key.

Who serves the home then ends and begins anew with the home as it is, as after a restart: what was open under another
key or policy is aborted and tried again, because its journal answers otherwise than it did. That is rare, and leaves
one way into a new word instead of two.
"""

from __future__ import annotations

import logging

from covey_aggregator.home import DELEGATION_FILE, POLICY_FILE, ServerHome, open_server
from covey_aggregator.succession_file import FILE as SUCCESSION_FILE
from covey_protocol.errors import ConfigError

log = logging.getLogger("covey.aggregator")


class HomeChanged(Exception):  # noqa: N818 - no error
    """The home is another one than was opened."""


class HomeWatch:
    """Looks at the files of an opened home.

    Args:
        home: As it was opened.
    """

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._seen = self._look()

    def check(self) -> None:
        """Look again.

        Raises:
            HomeChanged: The operator has said something newer, and it holds.
        """
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            now = open_server(self._home.path)
        except ConfigError as error:  # such as half of a change; the other half will be seen too
            log.error("the home has changed and is of no use as it is: %s", error)
            return
        if _words(now) != _words(self._home):
            raise HomeChanged

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for name in (DELEGATION_FILE, POLICY_FILE, SUCCESSION_FILE):
            try:
                stat = (self._home.path / name).stat()
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
            except OSError:
                found.append(None)
        return found


def _words(home: ServerHome) -> tuple[bytes, bytes, bytes]:
    return home.operator_key, home.delegation, home.signed_policy
