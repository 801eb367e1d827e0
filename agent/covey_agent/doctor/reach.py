"""The way to the broker, step by step: name, connection, TLS; each failure in words."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path

from covey_agent.doctor.findings import Finding, fail, ok, warn
from covey_agent.doctor.local import day
from covey_agent.link_options import LinkOptions

_SECONDS = 10.0
_ANSWER_SECONDS = 0.5

_NOT_YET, _EXPIRED, _HOST, _ADDRESS = 9, 10, 62, 64  # X509_V_ERR_…, of openssl/x509_vfy.h
_STRANGE = frozenset({7, 18, 19, 20, 21})


def check_reach(options: LinkOptions, *, wall: int, earliest: int, trusted: bool) -> list[Finding]:
    """Look the broker up, connect to it and shake hands; the last finding fails if the way ends there.

    Args:
        options: Where to, and with which certificates.
        wall: The wall clock, which TLS goes by.
        earliest: What has certainly passed.
        trusted: Whether a time service keeps the clock right.
    """
    place = f"{options.host}:{options.port}"
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except OSError as error:
        hint = "check the network and `broker.host`"
        return [fail("name", f"the broker's name {options.host!r} cannot be looked up: {error}; {hint}")]
    addresses = sorted({str(entry[4][0]) for entry in found})
    findings = [ok("name", f"{options.host} is {', '.join(addresses)}")]
    try:
        plain = socket.create_connection((options.host, options.port), _SECONDS)
    except ConnectionRefusedError:
        text = f"the broker cannot be reached: nothing listens at {place}; does it run, is the port right?"
        return [*findings, fail("connection", text)]
    except OSError as error:
        text = f"the broker cannot be reached at {place}: {error}; a firewall, another network, or it is off"
        return [*findings, fail("connection", text)]
    with plain:
        findings.append(ok("connection", f"{place} answers"))
        if not options.tls:
            return [*findings, warn("tls", "none: names, passwords and who talks to whom can be read on the way")]
        return [*findings, *_check_tls(plain, options, wall=wall, earliest=earliest, trusted=trusted)]


def _check_tls(plain: socket.socket, options: LinkOptions, *, wall: int, earliest: int, trusted: bool) -> list[Finding]:
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        return [fail("tls", f"certificate files of this device cannot be used: {error}")]
    try:
        began = time.monotonic()
        with context.wrap_socket(plain, server_hostname=options.host) as secured:
            # With TLS 1.3 a broker refuses our certificate after the handshake, and only if we have sent nothing more
            # does its reason reach us.
            secured.settimeout(max(_ANSWER_SECONDS, 3 * (time.monotonic() - began)))
            with contextlib.suppress(TimeoutError):
                secured.recv(1)
            return [ok("tls", f"{secured.version()}, the broker's certificate is good{_ours(options.cert_file)}")]
    except ssl.SSLCertVerificationError as error:
        return [fail("tls", _broker_certificate(error, options, wall=wall, earliest=earliest, trusted=trusted))]
    except ssl.SSLError as error:
        return [fail("tls", _refusal(error.reason or str(error), options))]
    except OSError as error:
        return [fail("tls", f"the broker breaks the TLS handshake off: {error}; is this its TLS port?")]


def _ours(certificate: Path | None) -> str:
    return ", and it takes ours" if certificate else ""


def _broker_certificate(
    error: ssl.SSLCertVerificationError, options: LinkOptions, *, wall: int, earliest: int, trusted: bool
) -> str:
    """Say why we do not take the broker's certificate."""
    if error.verify_code in _STRANGE:
        return (
            "the broker's certificate is not from the CA that this device was given (wrong CA): it is another broker, "
            "or its CA was made anew; devices then need new bundles"
        )
    if error.verify_code in (_HOST, _ADDRESS):
        return (
            f"the broker's certificate is for another name than {options.host!r}: {error.verify_message}; use the name "
            "it was made for (`broker.host`), or make it for this one (covey init --advertise)"
        )
    if error.verify_code in (_NOT_YET, _EXPIRED):
        return _out_of_date(error.verify_code == _EXPIRED, wall=wall, earliest=earliest, trusted=trusted)
    return f"the broker's certificate is refused: {error.verify_message}"


def _out_of_date(expired: bool, *, wall: int, earliest: int, trusted: bool) -> str:
    """Tell a clock that is off from a certificate that is."""
    if expired and trusted:
        return f"the broker's certificate has expired: renew it on the server (the clock here is right: {day(wall)})"
    if expired:
        return f"the broker's certificate has expired by this device's clock ({day(wall)}): is the clock ahead?"
    if wall < earliest:
        return f"by this device's clock ({day(wall)}) the broker's certificate is not valid yet: the clock is off"
    return f"the broker's certificate is not valid yet at {day(wall)}: the clock here is behind, or the server's ahead"


_REASONS = {
    "CERTIFICATE_REQUIRED": "the broker asks for a certificate, and this device has none: it needs a bundle with one",
    "CERTIFICATE_REVOKED": "the broker says that this device's certificate is revoked: the operator has shut it out",
    "CERTIFICATE_EXPIRED": "the broker says that this device's certificate has expired: it needs a new bundle",
    "UNKNOWN_CA": "the broker does not know the CA of this device's certificate: another fleet's, or a new CA",
    "DECRYPT_ERROR": "the broker finds no signature of its CA on this device's certificate: its CA was made anew",
    "UNSUPPORTED_CERTIFICATE": "the broker says that this device's certificate is not one for clients",
    "BAD_CERTIFICATE": "the broker finds this device's certificate bad: not valid yet by its clock, or damaged",
    "HANDSHAKE_FAILURE": "the broker refuses the handshake: it may ask for a certificate that this device lacks",
    "WRONG_VERSION_NUMBER": "no TLS is spoken there: the port is that of plain MQTT, or of something else",
    "RECORD_LAYER_FAILURE": "no TLS is spoken there: the port is that of plain MQTT, or of something else",
}


def _refusal(reason: str, options: LinkOptions) -> str:
    """Say why the broker does not take our certificate."""
    for word, text in _REASONS.items():
        if word in reason.upper():
            return text
    return f"the TLS handshake with {options.host}:{options.port} fails: {reason}"
