"""The TLS certificates that a device can show, newest first, each in one file with its key.

::

    tls/wanted.key          seed of a key that a certificate was asked for
    tls/pair-EXPIRY.pem     certificate and key, as OpenSSL reads them; EXPIRY in Unix seconds

One file for both is replaced in one step, so no power cut parts a key from its certificate. The pair from the
provisioning bundle stays where it was and is the last resort.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from pathlib import Path

from nacl.signing import SigningKey

from covey_agent.files import write_atomically
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.renewal import private_key_pem

log = logging.getLogger("covey.agent")

FOLDER = "tls"
_WANTED = "wanted.key"
_PAIR = re.compile(r"pair-(\d+)\.pem")
KEPT = 2


class TlsPairs:
    """One device's certificates.

    Args:
        home: Its home.
        certificate, key: The files of the pair from the provisioning bundle.
        not_after: When that certificate ends, in Unix seconds; 0 where nobody has said.
    """

    def __init__(self, home: Path, certificate: Path, key: Path | None, not_after: int) -> None:
        self._folder, self._first, self._first_end = home / FOLDER, (certificate, key), not_after

    def candidates(self) -> list[tuple[Path, Path | None]]:
        """Return files of certificate and key, those to be tried first in front."""
        renewed: list[tuple[Path, Path | None]] = [(path, path) for _, path in self._renewed()]
        return [*renewed, self._first]

    @property
    def not_after(self) -> int:
        """When the newest certificate ends."""
        return max([self._first_end, *(end for end, _ in self._renewed())])

    def wanted(self) -> bytes:
        """Return the public half of the key that a certificate is to be asked for; the key is on the disk by then."""
        return bytes(self._wanted().verify_key)

    def take(self, certificate: str, public_key: bytes, not_after: int) -> None:
        """Keep a certificate for the key that was asked for.

        Raises:
            StaleError: It is for another key, or ends no later than what is here.
            RefusedError: It is not a certificate of that key.
        """
        path = self._folder / _WANTED
        if not path.exists() or public_key != self.wanted() or not_after <= self.not_after:
            raise StaleError("a certificate that was not asked for", cause="replayed")
        text = f"{certificate.strip()}\n{private_key_pem(bytes(self._wanted()))}".encode("ascii", "replace")
        trial = self._folder / ".trial.pem"
        write_atomically(trial, text)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(trial)
        except ssl.SSLError as error:
            trial.unlink()
            raise RefusedError(f"not a certificate of the key that was sent: {error}", cause="certificate") from error
        write_atomically(self._folder / f"pair-{not_after}.pem", text)
        trial.unlink()
        path.unlink()
        for _, old in self._renewed()[KEPT:]:
            old.unlink()

    def _renewed(self) -> list[tuple[int, Path]]:
        if not self._folder.is_dir():
            return []
        found = ((_PAIR.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

    def _wanted(self) -> SigningKey:
        path = self._folder / _WANTED
        if path.exists():
            seed = path.read_bytes()
            if len(seed) == 32:
                return SigningKey(seed)
            log.warning("%s: no key; another one is made", path)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        key = SigningKey(os.urandom(32))
        write_atomically(path, bytes(key))
        return key
