"""The operator's home: the key at the root of all trust, and the policy that it signs.

It may live on another machine and is never needed while rounds run. A server home holds its public half only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml
from nacl.signing import SigningKey

from covey_aggregator.files import make_private_folder, read_private, read_yaml, write_new, write_private
from covey_protocol import identity, topics
from covey_protocol.errors import ConfigError
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.provisioning import Broker, Provisioning

KEY_FILE = "operator.key"
SETTINGS_FILE = "operator.yaml"
POLICY_FILE = "policy.yaml"
_DELEGATION_SECONDS = 365 * 86400


class OperatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator's home says about itself."""

    fleet: str


@dataclass(frozen=True)
class OperatorHome:
    """An opened operator home."""

    path: Path
    fleet: str
    key: SigningKey = field(repr=False)
    policy: Policy

    @property
    def public_key(self) -> bytes:
        """The trust anchor of the fleet."""
        return bytes(self.key.verify_key)

    def delegate(self, aggregator_key: bytes) -> bytes:
        """Sign the delegation to an aggregator's key, for a year; its version is the time it was made."""
        now = int(time.time())
        return identity.issue_delegation(self.key, self.fleet, aggregator_key, now, now + _DELEGATION_SECONDS)

    def signed_policy(self) -> bytes:
        """Return the policy as devices get it."""
        return sign_policy(self.policy, self.key, self.fleet)

    def provision(
        self,
        device: str,
        *,
        profile: str,
        seconds: int,
        delegation: bytes,
        broker: Broker,
        revocations: bytes = b"",
    ) -> Provisioning:
        """Make a one-time token for a device and everything that goes with it.

        Args:
            device: Its name.
            profile: Its firmware profile.
            seconds: How long the token is good for; 0 for ever.
            delegation: The aggregator's.
            broker: Where to connect.
            revocations: The signed head of the newest revocation list, if there is one.

        Raises:
            ConfigError: The name cannot stand in a topic.
        """
        topics.check_device(device)
        secret = SigningKey.generate()
        not_after = int(time.time()) + seconds if seconds else 0
        token = identity.issue_token(
            self.key, self.fleet, device, token_key=bytes(secret.verify_key), profile=profile, not_after=not_after
        )
        return Provisioning(
            fleet=self.fleet,
            device=device,
            profile=profile,
            operator_key=self.public_key,
            token=token,
            token_secret=bytes(secret),
            delegation=delegation,
            policy=self.signed_policy(),
            broker=broker,
            revocations=revocations,
        )


def init_operator(path: Path, fleet: str) -> OperatorHome:
    """Make an operator home; running it again changes nothing.

    Raises:
        ConfigError: The home exists for another fleet, or the name cannot stand in a topic.
    """
    topics.check_name(fleet, "fleet")
    make_private_folder(path)
    if (path / SETTINGS_FILE).exists():
        existing = open_operator(path)
        if existing.fleet != fleet:
            raise ConfigError(f"{path}: is the operator home of fleet {existing.fleet!r}, not {fleet!r}")
        return existing
    if not (path / KEY_FILE).exists():
        write_private(path / KEY_FILE, bytes(SigningKey.generate()))
    policy = yaml.safe_dump(msgspec.to_builtins(Policy()), sort_keys=False)
    write_new(path / POLICY_FILE, f"# Floors that no aggregator can lower; see docs/configuration.md\n{policy}")
    write_new(path / SETTINGS_FILE, yaml.safe_dump({"fleet": fleet}))
    return open_operator(path)


def open_operator(path: Path) -> OperatorHome:
    """Open an operator home.

    Raises:
        ConfigError: It is none, or a file in it is damaged; the message names it.
    """
    if not (path / SETTINGS_FILE).exists():
        raise ConfigError(f"{path}: no operator home; make one with `covey operator init {path} --fleet NAME`")
    settings = read_yaml(path / SETTINGS_FILE, OperatorSettings)
    policy = _read_policy(path / POLICY_FILE)
    topics.check_name(settings.fleet, f"{path / SETTINGS_FILE}: fleet")
    return OperatorHome(path, settings.fleet, SigningKey(read_private(path / KEY_FILE, 32)), policy)


def _read_policy(path: Path) -> Policy:
    """Read the policy; what a newer peer may send is tolerated, but what an operator misspells is not."""
    fields = read_yaml(path, dict[str, object])
    unknown = sorted(set(fields) - set(Policy.__struct_fields__))
    if unknown:
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}; there are {', '.join(Policy.__struct_fields__)}")
    return read_yaml(path, Policy)
