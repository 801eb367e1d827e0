"""Certificates for the connection to the broker: a CA of the fleet's own, and what it signs (RFC 5280, RFC 8410).

They open the broker's door and nothing else: whose update counts is decided by signatures that go up to the operator.
All keys are Ed25519. Nothing here touches files or clocks; ``tls_home`` does.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from covey_protocol.errors import ConfigError

DAY = 86400
CA_SECONDS = 3652 * DAY
LEAF_SECONDS = 400 * DAY
RENEW_SHARE = 1 / 3
"""What is left of a certificate's life when it is renewed."""
_SKEW = DAY
# A device without a clock of its own wakes up in 1970. What it has to check must be good by then; what is checked by
# the broker, which has a clock, begins when it is made.
_ALWAYS = 0


@dataclass(frozen=True)
class Certificate:
    """An X.509 certificate as PEM text, its serial number, and when it begins and ends in Unix seconds."""

    pem: str = field(repr=False)
    serial: int
    not_before: int
    not_after: int

    def due(self, now: int) -> bool:
        """Whether less than a third of its life is left; one that is valid since ever was made for the usual time."""
        return self.not_after - now < LEAF_SECONDS * RENEW_SHARE

    @staticmethod
    def read(pem: bytes, where: str) -> Certificate:
        """Read a certificate.

        Raises:
            ConfigError: It is none; the message says where.
        """
        return _described(_parse(pem, where))


class Authority:
    """The fleet's CA.

    Args:
        key: Its key as PEM text.
        certificate: Its certificate as PEM text.
        where: Where they come from, for messages.

    Raises:
        ConfigError: One of them cannot be read, or they do not belong together.
    """

    def __init__(self, key: bytes, certificate: bytes, where: str) -> None:
        self._key = read_key(key, where)
        self._certificate = _parse(certificate, where)
        if self._certificate.public_key() != self._key.public_key():
            raise ConfigError(f"{where}: the CA's key and certificate do not belong together")

    @property
    def certificate(self) -> Certificate:
        """Its own certificate."""
        return _described(self._certificate)

    def client(self, name: str, public_key: bytes, now: int) -> Certificate:
        """Certify a device's or the aggregator's key.

        Args:
            name: The CN, by which the broker knows the client.
            public_key: 32 raw bytes.
            now: Unix seconds.

        Raises:
            ConfigError: The key is none.
        """
        return self._leaf(name, public_key, now - _SKEW, now, ExtendedKeyUsageOID.CLIENT_AUTH)

    def broker(self, hosts: Iterable[str], public_key: bytes, now: int) -> Certificate:
        """Certify the broker's key for the names and addresses by which clients reach it; arguments as ``client``."""
        names: list[x509.GeneralName] = []
        for host in dict.fromkeys(hosts):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(_dns(host)))
        return self._broker(x509.SubjectAlternativeName(names), public_key, now)

    def renewed(self, present: Certificate, public_key: bytes, now: int) -> Certificate:
        """Certify the broker's key once more, for the names that its present certificate has.

        Raises:
            ConfigError: That certificate has no names.
        """
        try:
            names = _parse(present.pem.encode(), "").extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound as error:
            raise ConfigError("the broker's certificate has no names") from error
        return self._broker(names.value, public_key, now)

    def _broker(self, names: x509.SubjectAlternativeName, public_key: bytes, now: int) -> Certificate:
        return self._leaf("broker", public_key, _ALWAYS, now, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def revoked(self, serials: Mapping[int, int], now: int) -> bytes:
        """Return the list of revoked certificates as PEM text.

        It is good as long as the CA: a broker that finds it out of date lets nobody in at all.

        Args:
            serials: Serial numbers, and since when they are revoked.
            now: Unix seconds.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_date(now - _SKEW))
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(now), critical=False)
            .add_extension(self._issuer(), critical=False)
        )
        for serial, at in sorted(serials.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_date(at)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, None).public_bytes(serialization.Encoding.PEM)

    def made(self, certificate: bytes, where: str) -> bool:
        """Whether this CA has signed a certificate."""
        try:
            _parse(certificate, where).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _leaf(
        self,
        name: str,
        public_key: bytes,
        begin: int,
        now: int,
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None = None,
    ) -> Certificate:
        try:
            key = Ed25519PublicKey.from_public_bytes(public_key)
        except ValueError as error:
            raise ConfigError(f"certificate for {name!r}: not an Ed25519 key: {error}") from error
        end = min(now + LEAF_SECONDS, int(self._certificate.not_valid_after_utc.timestamp()))
        if end <= now:
            raise ConfigError(f"certificate for {name!r}: the fleet's CA has expired; make new ones by hand")
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(name))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_date(begin))
            .not_valid_after(_date(end))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(self._issuer(), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return _described(builder.sign(self._key, None))

    def _issuer(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def make_key() -> bytes:
    """Return a new Ed25519 key as PEM text (PKCS #8)."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """Read a key.

    Raises:
        ConfigError: It is not an Ed25519 key in PEM form; the message says where.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where}: no key in PEM form can be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{where}: not an Ed25519 key")
    return key


def public_half(pem: bytes, where: str) -> bytes:
    """Return the 32 raw bytes of a key's public half; errors as ``read_key``."""
    return read_key(pem, where).public_key().public_bytes_raw()


def make_authority(key: bytes, fleet: str, now: int) -> bytes:
    """Return a CA's certificate for its own key, as PEM text.

    Args:
        key: The key as PEM text.
        fleet: Stands in its name.
        now: Unix seconds.
    """
    own = read_key(key, "the CA's key")
    name = _subject(f"Covey fleet {fleet}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(_ALWAYS))
        .not_valid_after(_date(now + CA_SECONDS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .sign(own, None)
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _parse(pem: bytes, where: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{where}: no certificate in PEM form can be read") from error


def _described(certificate: x509.Certificate) -> Certificate:
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        certificate.serial_number,
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
    )


def _subject(name: str) -> x509.Name:
    # The standard lets a CN have 64 characters: a fleet's name may be cut, a device's never is that long.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _dns(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ConfigError(f"broker host {host!r} is no host name") from error


def _date(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
