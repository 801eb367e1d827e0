"""Enrolment without hands: a bundle that lies on the boot partition is picked up at the first start.

Whoever writes the card copies the device's bundle beside the system's own files, and that is all. What was cut off by a
power cut is finished at the next start, down to the bundle's destruction.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from covey_agent.files import destroy
from covey_agent.home import IDENTITY_FILE, AgentHome, enrol, open_home
from covey_protocol import identity, provisioning
from covey_protocol.errors import ConfigError, CoveyError

log = logging.getLogger("covey.agent")

BOOT_FOLDERS = (Path("/boot/firmware"), Path("/boot"))
"""Where Raspberry Pi OS and its elders mount the partition that other computers can write to."""

PATTERN = "covey-*.bundle"


def find_bundle(folders: Sequence[Path] = BOOT_FOLDERS) -> Path | None:
    """Return the one bundle that lies there, if one does.

    Raises:
        ConfigError: There are several, and nobody but a person can know which is meant.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob(PATTERN)):
            if path.is_file():
                found.setdefault(path.resolve(), path)
    if len(found) > 1:
        names = ", ".join(str(path) for path in found.values())
        raise ConfigError(f"several provisioning bundles: {names}; leave the one that is for this device")
    return next(iter(found.values()), None)


def enrol_from_boot(
    home: Path, folders: Sequence[Path] = BOOT_FOLDERS, *, now: int | None, data: str = ""
) -> AgentHome:
    """Enrol with the bundle on the boot partition; arguments and errors as for ``enrol``.

    Raises:
        ConfigError: There is none, or more than one.
    """
    bundle = find_bundle(folders)
    if bundle is None:
        places = " or ".join(str(folder / PATTERN) for folder in folders)
        raise ConfigError(
            f"{home}: not enrolled, and no bundle is at {places}; run `covey-agent enrol BUNDLE --home {home}`"
        )
    return enrol(bundle, home, now=now, data=data)


def open_or_enrol(home: Path, folders: Sequence[Path] = BOOT_FOLDERS, *, now: int | None) -> AgentHome:
    """Open a home, which is enrolled from the boot partition if it is not yet; errors as for ``enrol``."""
    if not (home / IDENTITY_FILE).exists():
        enrolled = enrol_from_boot(home, folders, now=now)
        log.info("%s is enrolled in fleet %s", enrolled.device, enrolled.fleet)
        return enrolled
    enrolled = open_home(home)
    for folder in folders:
        for path in sorted(folder.glob(PATTERN)):
            _finish(path, enrolled)
    return enrolled


def _finish(path: Path, enrolled: AgentHome) -> None:
    """Destroy this home's own bundle, if the power went before that was done; leave every other one alone."""
    try:
        text = path.read_text(encoding="ascii")
        if "\0" not in text:  # which only an interrupted destruction leaves
            bundle = provisioning.decode(text)
            if identity.token_id(bundle.token) != identity.token_id(enrolled.stored.chain.token):
                return
        destroy(path)
    except (OSError, UnicodeDecodeError, CoveyError) as error:
        log.warning("%s: a bundle that cannot be read or removed; delete it by hand: %s", path, error)
