"""Mosquitto's configuration from the files that come with Covey (``broker_config/``), with some lines set.

The files can be used as they are. What a home has to say differently (where certificates are, which port) replaces
the value of a line that is there already. So there is nothing like a template language, and a file never has a line
that its comments do not explain.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Mapping
from pathlib import Path

from covey_protocol.errors import ConfigError

TLS = "mosquitto-tls.conf"
SERVICE = "covey-broker.service"
CONFIG_FILE, ACL_FILE, DATA_FOLDER = "mosquitto.conf", "acl", "data"


def broker_config_folder() -> Path:
    """Return the folder of the configurations that come with Covey.

    Raises:
        ConfigError: The installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    # Inside a wheel they lie in the package, in a checkout at the repository's root.
    for folder in (here / "broker_config", here.parents[1] / "broker_config"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"broker configurations: none came with the package at {here}")


def configuration(name: str, values: Mapping[str, str]) -> str:
    """Return one of the files with the values of some lines replaced.

    Args:
        name: The file, such as ``mosquitto-tls.conf``.
        values: New values by the name of their line; each line must stand exactly once in the file.

    Raises:
        ConfigError: There is no such file or line, or a value would make two lines of one.
    """
    path = broker_config_folder() / name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    for option, value in values.items():
        if not value.strip() or not value.isprintable():  # a new line could turn the access list off
            raise ConfigError(f"broker configuration: {option} {value!r} cannot stand in a line")
        line = re.compile(rf"^{re.escape(option)} .*$", re.MULTILINE)
        if len(line.findall(text)) != 1:
            raise ConfigError(f"{path}: has no line {option}, or more than one")
        text = line.sub(f"{option} {value}".replace("\\", r"\\"), text)
    return text


def tls_files(folder: Path, tls: Path, *, port: int, address: str = "", account: int) -> dict[Path, str]:
    """Return the files of a broker with mutual TLS, and where they go; ``folder/data`` must exist when it starts.

    Args:
        folder: Where the broker's files go; its owner must be able to write there.
        tls: Where ``ca.crt``, ``broker.crt``, ``broker.key`` and ``crl.pem`` are.
        port, address: Where it listens; no address means everywhere.
        account: Whom the broker runs as when it is started as root, by number: who owns the files.
    """
    folder, tls = folder.absolute(), tls.absolute()
    values = {
        "listener": f"{port} {address}".strip(),
        "cafile": f"{tls / 'ca.crt'}",
        "certfile": f"{tls / 'broker.crt'}",
        "keyfile": f"{tls / 'broker.key'}",
        "crlfile": f"{tls / 'crl.pem'}",
        "acl_file": f"{folder / ACL_FILE}",
        "persistence_location": f"{folder / DATA_FOLDER}/",
        "user": pwd.getpwuid(account).pw_name,
    }
    rules = (broker_config_folder() / ACL_FILE).read_text(encoding="utf-8")
    return {folder / CONFIG_FILE: configuration(TLS, values), folder / ACL_FILE: rules}


def service_file(folder: Path, *, account: int) -> dict[Path, str]:
    """Return a systemd unit for the broker whose files are in ``folder``, and where it goes; none for odd names.

    Args:
        folder: Where the broker's files are.
        account: Whom it runs as, by number: who owns the files.
    """
    folder = folder.absolute()
    text = (broker_config_folder() / SERVICE).read_text(encoding="utf-8")
    if not re.fullmatch(r"[A-Za-z0-9_/.@+-]+", str(folder)):
        return {}  # systemd reads blanks and percent signs its own way
    text = re.sub(r"^User=.*$", f"User={pwd.getpwuid(account).pw_name}", text, flags=re.MULTILINE)
    return {folder / SERVICE: text.replace("/srv/covey/home/broker", str(folder))}
