"""The broker's certificates in a server home.

::

    tls/ca.key, ca.crt                    the fleet's CA
    tls/broker.key, broker.crt            what the broker shows; its names are those by which clients reach it
    tls/aggregator.key, aggregator.crt    what the aggregator shows
    tls/crl.pem                           revoked certificates of devices; Mosquitto reads it at its start and on SIGHUP

Beside it, ``broker/`` has the configuration of a Mosquitto that uses them, and a systemd unit that starts it.

Which certificate was given to whom stands in the database; the list of revoked ones is made from there. The CA's key
can open the broker's door to anybody. It names no device: the operator's key does, and is not here.
"""

from __future__ import annotations

from pathlib import Path

from covey_aggregator.broker_files import CONFIG_FILE, DATA_FOLDER, service_file, tls_files
from covey_aggregator.files import PRIVATE, make_private_folder, replace
from covey_aggregator.home import BrokerSettings
from covey_aggregator.store import Store
from covey_aggregator.tls import Authority, Certificate, make_authority, make_key, public_half
from covey_protocol.errors import ConfigError
from covey_protocol.identity import AGGREGATOR

FOLDER, BROKER_FOLDER = "tls", "broker"
CA_KEY, CA, CRL = "ca.key", "ca.crt", "crl.pem"
BROKER_KEY, BROKER = "broker.key", "broker.crt"
AGGREGATOR_KEY, AGGREGATOR_CERTIFICATE = "aggregator.key", "aggregator.crt"
PORT = 8883
_LOCAL = ("127.0.0.1", "localhost")


class TlsHome:
    """The CA of a server home, opened.

    Args:
        home: The server's home.
        store: Its database.

    Raises:
        ConfigError: There is no CA, or a file of it is damaged or readable by others; the message names it.
    """

    def __init__(self, home: Path, store: Store) -> None:
        self._folder, self._store = home / FOLDER, store
        self._authority = _authority(self._folder)

    @property
    def ca(self) -> str:
        """The CA's certificate as PEM text."""
        return self._authority.certificate.pem

    def issue(self, device: str, public_key: bytes, now: int) -> Certificate:
        """Certify a device's TLS key, and remember that it was done.

        Args:
            device: Its name, which becomes the CN. Whether it may have one is for the caller to know.
            public_key: 32 raw bytes.
            now: Unix seconds.

        Raises:
            ConfigError: The key is none, or the CA has expired.
        """
        made = self._authority.client(device, public_key, now)
        self._store.note_certificate(made.serial, device, made.not_after)
        return made

    def issue_with_key(self, device: str, now: int) -> tuple[Certificate, str]:
        """Make a TLS key for a device too; it goes into a bundle and stays nowhere here."""
        key = make_key()
        return self.issue(device, public_half(key, device), now), key.decode("ascii")

    def revoke(self, device: str, now: int) -> int:
        """Put a device's certificates on the list of revoked ones; return how many of them are on it."""
        with self._store.together():
            found = self._store.revoke_certificates(device, now)
            self.write_list(now)
        return found

    def write_list(self, now: int) -> None:
        """Write the list of revoked certificates anew; those that have expired need not be on it."""
        with self._store.together():  # also keeps a second process from putting an older list in its place
            listed = self._authority.revoked(self._store.revoked_certificates(now), now)
            replace(self._folder / CRL, listed)

    def renew_own(self, now: int) -> list[str]:
        """Make new certificates for the broker and the aggregator where less than a third is left; keys stay.

        Returns:
            What was done and what it asks for, in words.
        """
        said = []
        for file, words in ((BROKER, "the broker has to load it: kill -HUP"), (AGGREGATOR_CERTIFICATE, "")):
            path = self._folder / file
            present = Certificate.read(path.read_bytes(), str(path))
            if not present.due(now):
                continue
            key = public_half(_private(path.with_suffix(".key")), str(path.with_suffix(".key")))
            made = (
                self._authority.renewed(present, key, now)
                if file == BROKER
                else self._authority.client(AGGREGATOR, key, now)
            )
            if made.not_after <= present.not_after:
                said.append(f"{path} ends with the CA itself: make a new CA and new bundles")
                continue
            replace(path, made.pem.encode())
            said.append(f"{path} is renewed" + (f"; {words}" if words else ""))
        return said


def tls_settings() -> dict[str, str]:
    """Return what ``covey.yaml`` says below ``broker`` when the certificates here are used."""
    return {
        "ca_file": f"{FOLDER}/{CA}",
        "cert_file": f"{FOLDER}/{AGGREGATOR_CERTIFICATE}",
        "key_file": f"{FOLDER}/{AGGREGATOR_KEY}",
    }


def lay_out_broker(home: Path, broker: BrokerSettings) -> Path:
    """Write the configuration of a broker with these certificates; files that are there stay as they are.

    Returns:
        Where its main file is.
    """
    folder = home / BROKER_FOLDER
    make_private_folder(folder)
    make_private_folder(folder / DATA_FOLDER)
    local = broker.host in _LOCAL and not broker.advertise
    account = home.stat().st_uid
    files = tls_files(
        folder, home / FOLDER, port=broker.port, address=_LOCAL[0] if local else "", account=account
    ) | service_file(folder, account=account)
    for path, text in files.items():
        if not path.exists():
            replace(path, text.encode(), PRIVATE)
    return folder / CONFIG_FILE


def has_tls(home: Path) -> bool:
    """Whether a server home has a CA of its own."""
    return (home / FOLDER / CA_KEY).exists()


def make_tls(home: Path, fleet: str, hosts: list[str], now: int) -> None:
    """Make a CA, the broker's and the aggregator's certificates and an empty list; what is there stays as it is.

    Args:
        home: The server's home.
        fleet: Its fleet.
        hosts: Names and addresses of the broker.
        now: Unix seconds.

    Raises:
        ConfigError: What is there is damaged, or is of another CA.
    """
    folder = home / FOLDER
    make_private_folder(folder)
    for file in (CA_KEY, BROKER_KEY, AGGREGATOR_KEY):
        if not (folder / file).exists():
            replace(folder / file, make_key(), PRIVATE)
    if not (folder / CA).exists():
        replace(folder / CA, make_authority(_private(folder / CA_KEY), fleet, now))
    authority = _authority(folder)
    for file, key in ((BROKER, BROKER_KEY), (AGGREGATOR_CERTIFICATE, AGGREGATOR_KEY)):
        path, public = folder / file, public_half(_private(folder / key), str(folder / key))
        if not path.exists():
            made = (
                authority.broker([*hosts, *_LOCAL], public, now)
                if file == BROKER
                else authority.client(AGGREGATOR, public, now)
            )
            replace(path, made.pem.encode())
        elif not authority.made(path.read_bytes(), str(path)):
            raise ConfigError(f"{path}: was not made by the CA beside it")
    if not (folder / CRL).exists():
        replace(folder / CRL, authority.revoked({}, now))


def _authority(folder: Path) -> Authority:
    return Authority(_private(folder / CA_KEY), _bytes(folder / CA), str(folder / CA))


def _private(path: Path) -> bytes:
    data = _bytes(path)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: readable by others; run: chmod 600 {path}")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
