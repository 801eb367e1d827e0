"""The fleet's CA: what it signs, and that OpenSSL thinks the same of it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509

from covey_aggregator.store import Store
from covey_aggregator.tls import DAY, LEAF_SECONDS, Authority, Certificate, make_authority, make_key, public_half
from covey_aggregator.tls_home import (
    AGGREGATOR_CERTIFICATE,
    AGGREGATOR_KEY,
    BROKER,
    BROKER_KEY,
    CA,
    CA_KEY,
    CRL,
    FOLDER,
    TlsHome,
    has_tls,
    make_tls,
)
from covey_protocol.errors import ConfigError

NOW = 1_800_000_000


@pytest.fixture
def authority() -> Authority:
    key = make_key()
    return Authority(key, make_authority(key, "meadow", NOW), "here")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_tls(tmp_path, "meadow", ["10.0.0.1", "broker.local"], NOW)
    return tmp_path


def parsed(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.pem.encode())


def raw() -> bytes:
    return public_half(make_key(), "here")


def names(pem: bytes) -> list[str]:
    found = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


def test_a_client_certificate_is_for_that_name_and_key_and_400_days(authority: Authority) -> None:
    key = raw()
    made = authority.client("pi-kitchen", key, NOW)
    found = parsed(made)
    assert found.subject.rfc4514_string() == "CN=pi-kitchen"
    assert found.public_key().public_bytes_raw() == key  # type: ignore[union-attr]
    assert (made.not_before, made.not_after) == (NOW - DAY, NOW + LEAF_SECONDS)
    assert LEAF_SECONDS == 400 * DAY
    assert authority.made(made.pem.encode(), "here")
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert authority.client("pi-kitchen", key, NOW).serial != made.serial


def test_a_clock_that_stands_at_its_beginning_takes_what_a_device_has_to_check(authority: Authority) -> None:
    assert authority.certificate.not_before == authority.broker(["a.local"], raw(), NOW).not_before == 0


def test_no_certificate_outlives_the_ca_and_an_expired_one_signs_nothing(authority: Authority) -> None:
    end = authority.certificate.not_after
    assert authority.client("pi", raw(), end - DAY).not_after == end
    with pytest.raises(ConfigError, match="CA has expired"):
        authority.client("pi", raw(), end)


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33])
def test_what_is_no_key_is_not_certified(authority: Authority, key: bytes) -> None:
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        authority.client("pi", key, NOW)


def test_another_cas_certificate_is_told_apart(authority: Authority) -> None:
    key = make_key()
    other = Authority(key, make_authority(key, "meadow", NOW), "there")
    assert not authority.made(other.client("pi", raw(), NOW).pem.encode(), "there")
    with pytest.raises(ConfigError, match="do not belong together"):
        Authority(make_key(), other.certificate.pem.encode(), "there")


def test_the_broker_has_all_its_names(authority: Authority) -> None:
    made = authority.broker(["10.0.0.1", "::1", "broker.local", "broker.local", "bücher.example"], raw(), NOW)
    assert set(names(made.pem.encode())) == {"broker.local", "xn--bcher-kva.example", "10.0.0.1", "::1"}
    with pytest.raises(ConfigError, match="no host name"):
        authority.broker(["a" * 70], raw(), NOW)


def test_a_home_has_private_keys_and_what_is_there_stays(home: Path) -> None:
    folder = home / FOLDER
    assert has_tls(home)
    assert not has_tls(home / "elsewhere")
    for file in (CA_KEY, BROKER_KEY, AGGREGATOR_KEY):
        assert (folder / file).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(names((folder / BROKER).read_bytes())) == {"10.0.0.1", "broker.local", "127.0.0.1", "localhost"}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_tls(home, "meadow", ["elsewhere"], NOW + DAY)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("file", [CA, BROKER, AGGREGATOR_CERTIFICATE, CRL])
def test_what_was_cut_off_is_taken_up(home: Path, file: str) -> None:
    (home / FOLDER / file).unlink()
    if file == CA:  # then nothing else was there yet
        for other in (BROKER, AGGREGATOR_CERTIFICATE, CRL):
            (home / FOLDER / other).unlink()
    make_tls(home, "meadow", ["10.0.0.1"], NOW)
    assert (home / FOLDER / file).exists()


def test_a_certificate_of_another_ca_in_a_home_is_named(home: Path, authority: Authority) -> None:
    (home / FOLDER / BROKER).write_text(authority.broker(["x.local"], raw(), NOW).pem)
    with pytest.raises(ConfigError, match=r"broker\.crt: was not made by the CA"):
        make_tls(home, "meadow", [], NOW)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (CA_KEY, None, "cannot be read"),
        (CA_KEY, b"junk", "no key in PEM form"),
        (CA, None, "cannot be read"),
        (CA, b"junk", "no certificate in PEM form"),
    ],
)
def test_a_damaged_ca_is_named(home: Path, file: str, content: bytes | None, said: str) -> None:
    path = home / FOLDER / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        TlsHome(home, Store(":memory:"))
    assert FOLDER in str(caught.value)


def test_a_ca_key_that_others_can_read_is_refused(home: Path) -> None:
    (home / FOLDER / CA_KEY).chmod(0o640)
    with pytest.raises(ConfigError, match=r"ca\.key: readable by others"):
        TlsHome(home, Store(":memory:"))


def listed(home: Path) -> set[int]:
    found = x509.load_pem_x509_crl((home / FOLDER / CRL).read_bytes())
    ca = x509.load_pem_x509_certificate((home / FOLDER / CA).read_bytes())
    assert found.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    assert found.next_update_utc == ca.not_valid_after_utc  # a list that runs out locks everybody out
    return {entry.serial_number for entry in found}


def test_all_certificates_of_a_revoked_device_are_listed_until_they_expire(home: Path) -> None:
    store = Store(":memory:")
    tls = TlsHome(home, store)
    first, (second, _), other = tls.issue("pi", raw(), NOW), tls.issue_with_key("pi", NOW), tls.issue("po", raw(), NOW)
    assert (listed(home), store.certificate_end("pi")) == (set(), NOW + LEAF_SECONDS)
    assert tls.revoke("pi", NOW) == 2
    assert listed(home) == {first.serial, second.serial}
    assert other.serial not in listed(home)
    assert tls.revoke("nobody", NOW) == 0
    later = tls.issue("pi", raw(), NOW + DAY)
    assert (tls.revoke("pi", NOW + DAY), listed(home)) == (3, {first.serial, second.serial, later.serial})
    tls.write_list(first.not_after)
    assert listed(home) == {later.serial}


def test_broker_and_aggregator_are_renewed_in_their_last_third_with_their_keys_and_names(home: Path) -> None:
    tls, folder = TlsHome(home, Store(":memory:")), home / FOLDER
    before = {file: (folder / file).read_bytes() for file in (BROKER, AGGREGATOR_CERTIFICATE)}
    assert tls.renew_own(NOW + 266 * DAY) == []
    said = tls.renew_own(NOW + 267 * DAY)
    assert [("broker.crt is renewed" in line, "kill -HUP" in line) for line in said] == [(True, True), (False, False)]
    for file, old in before.items():
        new = (folder / file).read_bytes()
        assert Certificate.read(new, file).not_after == NOW + 667 * DAY
        one, other = x509.load_pem_x509_certificate(new), x509.load_pem_x509_certificate(old)
        assert one.public_key() == other.public_key()
        assert one.subject == other.subject
    assert names((folder / BROKER).read_bytes()) == names(before[BROKER])
    assert tls.renew_own(NOW + 267 * DAY) == []


def test_what_ends_with_the_ca_is_said_and_not_renewed_for_ever(home: Path) -> None:
    tls = TlsHome(home, Store(":memory:"))
    end = Certificate.read(tls.ca.encode(), "ca").not_after
    tls.renew_own(end - 100 * DAY)
    assert all("ends with the CA itself" in line for line in tls.renew_own(end - 50 * DAY))


def test_openssl_agrees_and_keeps_to_the_list(home: Path) -> None:
    """The library that Mosquitto and Python's ssl use, on all that a home holds, as strictly as it can be."""
    openssl = shutil.which("openssl")
    assert openssl, "OpenSSL's command is needed"
    now = int(time.time())
    make_tls(home / "now", "meadow", ["broker.local"], now)
    folder, tls = home / "now" / FOLDER, TlsHome(home / "now", Store(":memory:"))
    issued, key = tls.issue_with_key("pi", now)
    (folder / "pi.crt").write_text(issued.pem)
    (folder / "pi.key").write_text(key)

    def verify(file: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [openssl, "verify", "-x509_strict", "-CAfile", CA, "-crl_check", "-CRLfile", CRL, *more, file]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    for file, *more in (
        (BROKER, "-purpose", "sslserver", "-verify_hostname", "broker.local"),
        (BROKER, "-purpose", "sslserver", "-verify_ip", "127.0.0.1"),
        (AGGREGATOR_CERTIFICATE, "-purpose", "sslclient"),
        ("pi.crt", "-purpose", "sslclient"),
    ):
        done = verify(file, *more)
        assert done.returncode == 0, done.stderr
    assert verify("pi.crt", "-purpose", "sslserver").returncode != 0
    assert verify(BROKER, "-purpose", "sslclient").returncode != 0
    tls.revoke("pi", now)
    assert "revoked" in verify("pi.crt").stderr
    context = ssl.create_default_context(cafile=str(folder / CA))
    context.load_cert_chain(folder / "pi.crt", folder / "pi.key")
