"""covey_agent.paho_client: what is said at CONNECT, and TLS in both directions."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.agent.links import SECONDS, Ears, make_link
from tests.agent.scripted import PACKET_LIMIT, RECEIVE_MAXIMUM, Packet, scripted

from covey_agent.transport import MqttLink
from covey_protocol.errors import ConfigError
from covey_simulator.broker import start_broker


def test_connect_keeps_the_session_and_states_our_limits() -> None:
    with scripted(lambda peer: peer.accept()) as (port, results):
        link = make_link(port, "d1", session_expiry=77, inflight=9, max_packet_in=5000, keepalive=33)
        link.start()
        packet = results.get(timeout=SECONDS)
        link.stop()
    assert isinstance(packet, Packet)
    assert packet.level == 5
    assert packet.body[7] & 2 == 0, "clean start would wipe what came while we were away"
    assert packet.body[8:10] == (33).to_bytes(2)
    assert b"\x11" + (77).to_bytes(4) in packet.body
    assert RECEIVE_MAXIMUM + (9).to_bytes(2) in packet.body
    assert PACKET_LIMIT + (5000).to_bytes(4) in packet.body


@pytest.mark.parametrize("kind", ["ca_file", "cert_file"])
def test_unusable_tls_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    files: dict[str, Any] = {"ca_file": junk} if kind == "ca_file" else {"cert_file": junk, "key_file": junk}
    with pytest.raises(ConfigError, match=rf"{kind} .*junk\.pem"):
        make_link(1, "one", tls=True, **files)


def test_small_packets_are_not_held_back() -> None:
    with scripted(lambda peer: (peer.accept(), peer.until_gone())) as (port, _):
        link: MqttLink = make_link(port, "d1")
        link.start()
        assert link.wait_connected(SECONDS)
        assert link._wire is not None
        sock = link._wire._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        link.stop()


def make_certificate(folder: Path, name: str, issuer: str | None = None) -> None:
    """Make a key and a certificate for loopback, self-signed if there is no issuer."""
    request = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", f"/CN={name}", "-days", "2"]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    extra = ["-addext", "subjectAltName=IP:127.0.0.1"]
    if issuer:
        extra += ["-CA", str(folder / f"{issuer}.pem"), "-CAkey", str(folder / f"{issuer}.key")]
        extra += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*request, *files, *extra], check=True, capture_output=True)


@pytest.mark.parametrize(("trusted", "known"), [("ca", "d1"), ("other", "d1"), ("ca", None), ("ca", "stranger")])
def test_tls_needs_both_sides_to_be_who_they_say(tmp_path: Path, trusted: str, known: str | None) -> None:
    for name, issuer in [("ca", None), ("other", None), ("broker", "ca"), ("d1", "ca"), ("stranger", "other")]:
        make_certificate(tmp_path, name, issuer)
    config = (
        f"listener {{port}} {{host}}\ncafile {tmp_path}/ca.pem\ncertfile {tmp_path}/broker.pem\n"
        f"keyfile {tmp_path}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n"
    )
    if os.geteuid() == 0:  # or it would become a user who cannot read the test's folder
        config += "user root\n"
    files: dict[str, Any] = (
        {"cert_file": tmp_path / f"{known}.pem", "key_file": tmp_path / f"{known}.key"} if known else {}
    )
    with start_broker(tmp_path, prefer="mosquitto", config=config) as broker:
        ears = Ears()
        link = make_link(broker.port, "d1", ears, tls=True, ca_file=tmp_path / f"{trusted}.pem", **files)
        link.subscribe(["t"])
        link.publish("t", b"x" * 100_000)
        link.start()
        if (trusted, known) == ("ca", "d1"):
            assert ears.next() == ("t", b"x" * 100_000)
            assert link.drain(SECONDS)
        else:
            assert not link.wait_connected(0.5)
            assert link.outbox.used()[0] == 1
            assert link.status.last_error
        link.stop()
