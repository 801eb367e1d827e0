"""A certificate authority for tests: good certificates, and every kind of bad one."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY = datetime.timedelta(days=1)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """One CA with its files in a folder: ``ca.crt``, ``crl.pem``, and ``NAME.crt`` and ``NAME.key`` of each client."""

    def __init__(self, folder: Path, common_name: str = "Covey test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._key, self._issuer = folder, Ed25519PrivateKey.generate(), _name(common_name)
        self._serials: dict[str, int] = {}
        self._revoked: list[int] = []
        self._now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            self._builder(self._issuer, self._key, self._now - DAY, self._now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, None)
        )
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.write_crl()

    def _builder(
        self, subject: x509.Name, key: Ed25519PrivateKey, start: datetime.datetime, end: datetime.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )

    def issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier = CLIENT,
        *,
        file: str = "",
        hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
        start: datetime.timedelta = -DAY,
        end: datetime.timedelta = 400 * DAY,
    ) -> tuple[Path, Path]:
        """Write a certificate whose CN is ``name``, valid from ``start`` to ``end`` as seen from now, and its key.

        Args:
            name: Its CN.
            purpose: What it may be used for.
            file: What its files are called, if not by its CN.
            hosts: Names in the certificate of a server.
            start, end: Its validity, from now.
        """
        key = Ed25519PrivateKey.generate()
        builder = self._builder(_name(name), key, self._now + start, self._now + end).add_extension(
            x509.ExtendedKeyUsage([purpose]), critical=False
        )
        if purpose is SERVER:
            names: list[x509.GeneralName] = []
            for host in hosts:
                try:
                    names.append(x509.IPAddress(ipaddress.ip_address(host)))
                except ValueError:
                    names.append(x509.DNSName(host))
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, None)
        self._serials[file or name] = certificate.serial_number
        files = self.folder / f"{file or name}.crt", self.folder / f"{file or name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(_pem(key))
        files[1].chmod(0o600)
        return files

    def revoke(self, file: str) -> None:
        """Put a certificate on the list of revoked ones; the broker has to read it anew."""
        self._revoked.append(self._serials[file])
        self.write_crl()

    def write_crl(self) -> None:
        """Write the list; each is a second newer than the last, since OpenSSL goes by the newest."""
        self._now += datetime.timedelta(seconds=1)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._issuer)
            .last_update(self._now - DAY)
            .next_update(self._now + 3650 * DAY)
        )
        for serial in self._revoked:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self._now - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        (self.folder / "crl.pem").write_bytes(builder.sign(self._key, None).public_bytes(serialization.Encoding.PEM))
