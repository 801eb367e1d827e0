"""From an enrolled home to a running agent with its link."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from covey_agent.files import write_atomically
from covey_agent.home import BLOBS, STATUS_FILE, AgentHome
from covey_agent.profile import FirmwareProfile, load_profile
from covey_agent.runtime import Agent
from covey_agent.store import Store
from covey_agent.tls_pairs import TlsPairs
from covey_agent.trainer import Trainer
from covey_agent.transport import LinkEvents, LinkOptions, MqttLink
from covey_protocol.bundle import Bundle
from covey_protocol.device_round import DeviceRound
from covey_protocol.errors import ConfigError, LocalError

log = logging.getLogger("covey.agent")
_DRAIN_SECONDS = 5.0


class RunningAgent:
    """An agent on a thread of its own.

    Args:
        home: The enrolled home.
        executor: Where training runs; None makes one thread for it.
        make_trainer, round_class: As for ``Agent``.
        database: Where marks and outbox live; None takes the home's file.
    """

    def __init__(
        self,
        home: AgentHome,
        *,
        executor: Executor | None = None,
        make_trainer: Callable[[Bundle], Trainer] | None = None,
        round_class: type[DeviceRound] = DeviceRound,
        database: Path | str | None = None,
    ) -> None:
        self._home = home
        self._profile = load_profile(home.config.profile or home.stored.profile)
        self._own_executor = ThreadPoolExecutor(1, "covey-training") if executor is None else None
        if database is None and _has_lost_its_ledger(home):
            log.warning("%s is new or empty, though %s has taken part before", home.database, home.device)
        self.store = Store(database or home.database)
        self._make_agent = functools.partial(
            Agent,
            home,
            profile=self._profile,
            store=self.store,
            executor=executor or self._own_executor,  # type: ignore[arg-type]
            make_trainer=make_trainer,
            round_class=round_class,
            pairs=tls_pairs(home),
        )
        self._leaving = False
        self._build()
        self._thread = threading.Thread(target=self.run, name=f"covey-agent-{home.device}", daemon=True)

    def _build(self) -> None:
        """Make an agent from what is on the disk, and its link."""
        home = self._home
        try:
            self.agent = self._make_agent()
        except (ValueError, LocalError) as error:
            self.store.close()
            raise ConfigError(
                f"{home.database}: what is in it cannot be used: {error}; move it away, with its -wal and -shm, and "
                f"start again: the device keeps its identity, and the aggregator tells it how far it was"
            ) from error
        events = LinkEvents(on_message=self.agent.deliver_and_wait, on_connect=self.agent.connected)
        self.link = MqttLink(link_options(home, self._profile, self.agent.will()), self.store.outbox, events)

    def start(self) -> None:
        """Run in the background."""
        self._thread.start()

    def run(self) -> None:
        """Run here until ``stop`` or ``leave`` is called."""
        try:
            self._run_once()
            while self.agent.starts_anew and not self._leaving:
                self._build()
                self._run_once()
        finally:
            if self._own_executor is not None:
                self._own_executor.shutdown(wait=False, cancel_futures=True)
            self.store.close()

    def _run_once(self) -> None:
        try:
            if not self._leaving:
                self.agent.run(self.link)
        finally:
            if self.link.connected:
                self.link.drain(_DRAIN_SECONDS)
            self.link.stop()
            self.agent.finish()

    def leave(self) -> None:
        """Ask ``run`` to return; may be called by a signal handler."""
        self._leaving = True
        self.agent.stop()

    def stop(self) -> None:
        """Leave cleanly."""
        self.leave()
        if self._thread.is_alive():
            self._thread.join(2 * _DRAIN_SECONDS)


def _has_lost_its_ledger(home: AgentHome) -> bool:
    """Whether the database is missing or empty in a home that shows traces of an agent at work."""
    missing = not home.database.exists() or not home.database.stat().st_size
    return missing and ((home.path / STATUS_FILE).exists() or any((home.path / BLOBS).iterdir()))


def link_options(home: AgentHome, profile: FirmwareProfile, will: tuple[str, bytes]) -> LinkOptions:
    """Return the link's settings: the bundle's broker with the owner's overrides.

    Raises:
        ConfigError: A file that the settings name cannot be read.
    """
    broker, override = home.stored.broker, home.config.broker
    tls = bool(broker.ca or broker.certificate)
    password = broker.password
    if override.password_file:
        try:
            password = (home.path / override.password_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{home.path / override.password_file}: cannot be read: {error}") from error
    topic, payload = will
    return LinkOptions(
        host=override.host or broker.host,
        port=override.port or broker.port,
        client_id=home.device,
        keepalive=override.keepalive,
        protocol=override.protocol,
        session_expiry=override.session_expiry,
        username=override.username or broker.username or None,
        password=password or None,
        tls=tls,
        ca_file=_pem(home, "ca.pem", broker.ca),
        cert_file=_pem(home, "client.pem", broker.certificate),
        key_file=_pem(home, "client.key", broker.key),
        credentials=tls_pairs(home),
        will_topic=topic,
        will_payload=payload,
        backoff_base=profile.backoff_base,
        backoff_cap=profile.backoff_cap,
    )


def tls_pairs(home: AgentHome) -> TlsPairs | None:
    """Return the certificates that a device can show, if it shows any."""
    broker = home.stored.broker
    certificate = _pem(home, "client.pem", broker.certificate)
    if certificate is None:
        return None
    return TlsPairs(home.path, certificate, _pem(home, "client.key", broker.key), broker.certificate_not_after)


def _pem(home: AgentHome, name: str, text: str) -> Path | None:
    """Lay a PEM text down as a file, because OpenSSL reads nothing else."""
    if not text:
        return None
    path = home.path / name
    if not path.exists() or path.read_text(encoding="ascii") != text:
        write_atomically(path, text.encode("ascii"))
    return path
