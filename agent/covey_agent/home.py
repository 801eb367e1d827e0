"""The agent's home folder and how a device gets its identity.

::

    device.key      the device's Ed25519 seed, made here, mode 0600
    device.next     the one that follows it, while the fleet has not shown that it knows it; see ``rotation``
    identity.cbor   fleet, chain, operator key, delegation, policy, broker
    agent.yaml      the owner's settings
    agent.db        ledger and outbox
    blobs/          models and bundles, by digest
    pieces/         what has come of those that are still on their way

Enrolment can be cut off at any instant and repeated: the key is written first and kept, the identity appears in one
step, and the token's secret is destroyed last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from nacl.signing import SigningKey

from covey_agent.config import FILE as CONFIG_FILE
from covey_agent.config import AgentConfig, load_config, write_config
from covey_agent.files import destroy, write_atomically
from covey_protocol import identity, provisioning
from covey_protocol.errors import ConfigError, CoveyError
from covey_protocol.identity import Chain, Delegation
from covey_protocol.payload import Key, Name, Payload, prepare, read, write
from covey_protocol.policy import Policy, verify_policy
from covey_protocol.provisioning import Broker, Certificate, Provisioning

KEY_FILE, NEXT_KEY_FILE = "device.key", "device.next"
IDENTITY_FILE = "identity.cbor"
DATABASE_FILE = "agent.db"
BLOBS = "blobs"
PIECES = "pieces"
STATUS_FILE = "status.json"


class StoredIdentity(Payload, frozen=True, kw_only=True):
    """What ``identity.cbor`` holds; nothing in it is secret but the broker's password or key, if there is one."""

    fleet: Name
    device: Name
    profile: Name
    operator_key: Key
    chain: Chain
    delegation: Certificate
    policy: Certificate
    broker: Broker
    made: identity.Time = 0
    revocations: Certificate = b""


@dataclass(frozen=True)
class AgentHome:
    """An enrolled device: its key, its chain and what it trusts; ``keys`` are all public keys that it has had."""

    path: Path
    key: SigningKey = field(repr=False)
    stored: StoredIdentity = field(repr=False)
    delegation: Delegation
    policy: Policy
    config: AgentConfig
    keys: tuple[bytes, ...] = ()

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self.stored.fleet

    @property
    def device(self) -> str:
        """This device's name."""
        return self.stored.device

    @property
    def data_path(self) -> Path:
        """Where the device's samples are."""
        return self.path / self.config.data

    @property
    def database(self) -> Path:
        """The database of ledger and outbox."""
        return self.path / DATABASE_FILE


def enrol(bundle_file: Path, home: Path, *, now: int | None = None, data: str = "") -> AgentHome:
    """Turn a provisioning bundle into this device's identity.

    Args:
        bundle_file: The bundle; destroyed at the end.
        home: The agent's home; made if it is missing.
        now: Unix seconds to check expiries with, or None where the clock cannot be trusted.
        data: Where the samples are, to be written into the settings.

    Raises:
        ConfigError: The bundle cannot be read, or the home belongs to another device.
        PeerError: The bundle does not hold.
    """
    try:
        text = bundle_file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{bundle_file}: cannot be read: {error}") from error
    if "\0" in text and (home / IDENTITY_FILE).exists():
        # An enrolment was cut off while it destroyed the bundle, which it does last.
        destroy(bundle_file)
        return open_home(home)
    if "\0" in text:
        raise ConfigError(
            f"{bundle_file}: this bundle was destroyed, as its first use does: a token counts once. If the home that "
            "it was used for is lost, the operator has to revoke the device and make a bundle under a new name"
        )
    bundle = provisioning.decode(text)
    bundle.check(now)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (home / IDENTITY_FILE).exists():
        enrolled = open_home(home)
        if (enrolled.fleet, enrolled.device) != (bundle.fleet, bundle.device):
            raise ConfigError(f"{home} belongs to {enrolled.device!r} of fleet {enrolled.fleet!r} already")
        if identity.token_id(enrolled.stored.chain.token) != identity.token_id(bundle.token):
            raise ConfigError(
                f"{home} was enrolled with another token of {enrolled.device!r}; use a new home to enrol again"
            )
    else:
        key = _device_key(home)
        write_atomically(home / IDENTITY_FILE, write(_identity(bundle, key)))
    if not (home / CONFIG_FILE).exists():
        write_config(home / CONFIG_FILE, AgentConfig(data=data or AgentConfig().data))
    destroy(bundle_file)
    return open_home(home)


def open_home(home: Path) -> AgentHome:
    """Read an enrolled device's home.

    Raises:
        ConfigError: It is not enrolled, incomplete or damaged; the message names the file.
    """
    path = home / IDENTITY_FILE
    if not path.exists():
        raise ConfigError(f"{home}: not enrolled; run `covey-agent enrol BUNDLE --home {home}`")
    try:
        stored = read(StoredIdentity, path.read_bytes())
        who = identity.verify_chain(
            stored.chain, operator_key=stored.operator_key, fleet=stored.fleet, device=stored.device
        )
        delegation = identity.verify_delegation(stored.delegation, operator_key=stored.operator_key, fleet=stored.fleet)
        policy = verify_policy(stored.policy, operator_key=stored.operator_key, fleet=stored.fleet)
    except (OSError, CoveyError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from error
    key = own_key(home, who.key)
    (home / BLOBS).mkdir(exist_ok=True, mode=0o700)
    return AgentHome(home, key, stored, delegation, policy, load_config(home / CONFIG_FILE), who.keys)


def own_key(home: Path, public_key: bytes) -> SigningKey:
    """Return the key that a chain ends with, which may be the one that is to follow.

    Raises:
        ConfigError: Neither is that.
    """
    there = [name for name in (KEY_FILE, NEXT_KEY_FILE) if (home / name).exists()]
    for name in there or [KEY_FILE]:
        key = _read_key(home / name)
        if bytes(key.verify_key) == public_key:
            return key
    raise ConfigError(f"{home / KEY_FILE}: not the key that {home / IDENTITY_FILE} was made for")


def _device_key(home: Path) -> SigningKey:
    """Return the key of an enrolment that was cut off, or make one."""
    path = home / KEY_FILE
    if not path.exists():
        write_atomically(path, bytes(SigningKey.generate()))
    if path.stat().st_uid != os.geteuid():
        raise ConfigError(f"{path}: not a device key of this user")
    return _read_key(path)


def _read_key(path: Path) -> SigningKey:
    try:
        return SigningKey(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no device key can be read: {error}") from error


def _identity(bundle: Provisioning, key: SigningKey) -> StoredIdentity:
    secret = SigningKey(bundle.token_secret)
    endorsement = identity.endorse(secret, bundle.fleet, bundle.device, bytes(key.verify_key))
    return StoredIdentity(
        fleet=bundle.fleet,
        device=bundle.device,
        profile=bundle.profile,
        operator_key=bundle.operator_key,
        chain=Chain(token=bundle.token, endorsement=endorsement),
        delegation=bundle.delegation,
        policy=bundle.policy,
        broker=bundle.broker,
        made=bundle.made,
        revocations=bundle.revocations,
    )


prepare(globals())
