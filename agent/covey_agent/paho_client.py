"""How a paho client is set up for a link: what paho would get wrong by default is stated here, in one place.

- ``clean_start`` defaults to wiping the session at each start of the process: we always keep it.
- paho's own reconnection has no jitter and switches protocol behind our back: it is off, and its thread is
  unused; the link drives the client through ``loop_read``, ``loop_write`` and ``loop_misc``.
- Its ``publish`` writes to the socket in the caller's stack unless somebody claims to watch it: we do.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from covey_agent.link_options import LinkOptions
from covey_protocol.errors import ConfigError

log = logging.getLogger("covey.agent.transport")


def tls_context(options: LinkOptions) -> ssl.SSLContext | None:
    """Make the TLS context of a link, or None for a plain one.

    Raises:
        ConfigError: A certificate or key cannot be used; the message names the file.
    """
    if not options.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"link: ca_file {options.ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.cert_file is not None:
        try:
            context.load_cert_chain(options.cert_file, options.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"link: cert_file {options.cert_file} with key_file {options.key_file}: {error}"
            ) from error
    return context


def build_client(options: LinkOptions, protocol: MQTTProtocolVersion, context: ssl.SSLContext | None) -> Client:
    """Make a client that is not connected yet and has none of the link's callbacks."""
    five = protocol == MQTTProtocolVersion.MQTTv5
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if five else False,
        protocol=protocol,
        reconnect_on_failure=False,
    )
    client.connect_timeout = options.connect_timeout
    client.suppress_exceptions = True  # the link's callbacks keep theirs in; this is for what we did not foresee
    client.max_inflight_messages_set(options.inflight)
    if context is not None:
        client.tls_set_context(context)
    if options.username is not None:
        client.username_pw_set(options.username, options.password)
    if options.will_topic is not None:
        client.will_set(options.will_topic, options.will_payload, qos=1, retain=True)
    client.on_socket_open = _no_delay
    client.on_socket_register_write = _watched
    return client


def connect_client(client: Client, options: LinkOptions) -> None:
    """Open the connection and queue the CONNECT packet, keeping the session that the broker may hold for us.

    Raises:
        OSError: The broker cannot be reached, or TLS fails.
    """
    if client.protocol != MQTTProtocolVersion.MQTTv5:
        client.connect(options.host, options.port, options.keepalive)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = options.session_expiry
    properties.ReceiveMaximum = options.inflight
    if options.max_packet_in:
        properties.MaximumPacketSize = options.max_packet_in
    client.connect(options.host, options.port, options.keepalive, clean_start=False, properties=properties)


class Guard:
    """Wraps callbacks so that nothing they raise reaches the network thread, and logs each cause once."""

    def __init__(self) -> None:
        """Start with no cause seen."""
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, name: str, call: Callable[..., object] | None) -> Callable[..., None]:
        """Return ``call`` (or nothing, if None) with its exceptions kept in."""

        def guarded(*args: Any) -> None:
            if call is None:
                return
            try:
                call(*args)
            except Exception as error:
                cause = (name, repr(error)[:200])
                if cause not in self._seen and len(self._seen) < 256:
                    self._seen.add(cause)
                    log.exception("callback %s raised, which is ignored from now on", name)

        return guarded


def _no_delay(_client: Client, _userdata: object, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _watched(_client: Client, _userdata: object, _sock: object) -> None:
    """Tell paho that its socket is watched: the link asks ``want_write`` before each wait."""
