"""A device changes its key: the old one signs for the new, and peers and aggregator follow.

The new key is written first, beside the old. Then the identity, with the longer chain, is replaced in one step, which
decides what key the agent uses from its next start on. The old one is destroyed when a round has shown that the
fleet knows the new: a roster came that holds this device's join under it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from covey_agent.files import destroy, sync_folder, write_atomically
from covey_agent.home import IDENTITY_FILE, KEY_FILE, NEXT_KEY_FILE, AgentHome, open_home
from covey_protocol import identity
from covey_protocol.errors import ConfigError
from covey_protocol.payload import write

log = logging.getLogger("covey.agent")


def rotate(home: Path) -> AgentHome:
    """Change a device's key; one that was cut off is gone on with.

    Raises:
        ConfigError: The last change is not through yet, or the device is not enrolled.
    """
    enrolled = open_home(home)
    following = home / NEXT_KEY_FILE
    if following.exists() and _is_in_use(enrolled):
        raise ConfigError(
            f"{home}: the fleet has not shown yet that it knows the last new key; it does with the next round"
        )
    if not following.exists():
        write_atomically(following, bytes(SigningKey.generate()))
    try:
        new = SigningKey(following.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{following}: no device key can be read: {error}") from error
    chain = identity.renew(enrolled.stored.chain, enrolled.key, enrolled.fleet, enrolled.device, bytes(new.verify_key))
    write_atomically(home / IDENTITY_FILE, write(msgspec.structs.replace(enrolled.stored, chain=chain)))
    return open_home(home)


def confirmed(enrolled: AgentHome) -> bool:
    """Destroy the old key, now that the fleet knows the new; say whether there was one.

    Raises:
        OSError: It cannot be done now.
    """
    path, following = enrolled.path / KEY_FILE, enrolled.path / NEXT_KEY_FILE
    if not following.exists() or not _is_in_use(enrolled):
        return False
    if path.exists():
        destroy(path)
    following.replace(path)
    sync_folder(enrolled.path)
    log.info("%s: the fleet knows the new key; the old one is destroyed", enrolled.device)
    return True


def _is_in_use(enrolled: AgentHome) -> bool:
    """Whether the key that follows is the one that this home goes by."""
    try:
        return bytes(enrolled.key) == (enrolled.path / NEXT_KEY_FILE).read_bytes()
    except OSError:
        return False
