"""The server's home: what ``covey init`` makes and ``covey serve`` runs on.

::

    covey.yaml         settings, for people to edit
    aggregator.key     Ed25519 seed of the aggregator's signing key, mode 0600
    aggregator.next    the one that is to follow it, while the operator has not signed for it
    delegation.cbor    the operator's word for the aggregator's key
    policy.cbor        the operator's signed policy
    operator.pub       the operator's public key, in hex
    succession.cbor    how it came to be this one, if the operator has changed it
    covey.db           devices, tasks, rounds (SQLite)
    models/            bundles and models by digest
    spool/             masked vectors and sealing key of the open round, gone when it is over
    serve.lock         held by the `covey serve` that runs on this home
    bundles/           provisioning bundles that ``covey device add`` wrote
    requests/          what an operator elsewhere is asked to sign
    tls/, broker/      certificates and the broker's configuration, if ``covey init --tls`` made them

No operator key is ever in it. Delegation and policy are replaced whole, also while ``covey serve`` runs;
``open_server`` reads them anew.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from nacl.signing import SigningKey

from covey_aggregator import succession_file
from covey_aggregator.budgets import BudgetSettings
from covey_aggregator.files import (
    flush_folder,
    make_private_folder,
    read_private,
    read_yaml,
    replace,
    write_new,
    write_private,
)
from covey_aggregator.operator import DELEGATION_SECONDS, OperatorHome
from covey_aggregator.succession_file import SignedSuccession
from covey_protocol import cbor, identity, topics
from covey_protocol.errors import ConfigError, CoveyError, MalformedError, PeerError, StaleError
from covey_protocol.identity import NO_FORMER, Delegation, Former, PinnedKeys
from covey_protocol.policy import Policy, verify_policy
from covey_protocol.provisioning import Broker
from covey_protocol.roster import Trust
from covey_protocol.succession import Successions

SETTINGS_FILE = "covey.yaml"
KEY_FILE, NEXT_KEY_FILE = "aggregator.key", "aggregator.next"
DELEGATION_FILE = "delegation.cbor"
POLICY_FILE = "policy.cbor"
OPERATOR_FILE = "operator.pub"
DATABASE_FILE = "covey.db"
MODELS, BUNDLES, SPOOLS, REQUESTS = "models", "bundles", "spool", "requests"
LOCK_FILE = "serve.lock"


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The MQTT broker; ``advertise`` is the host name that devices are given."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    advertise: str = ""
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    protocol: Literal["5", "3.1.1"] = "5"
    max_packet_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 24)] = 128 * 1024
    keepalive: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30


AlertKind = Literal["quarantined", "banned", "second-key", "flagged-round", "sybil-wave", "accuracy-fell", "flood"]


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One receiver of alerts by HTTP; a URL with a token in it is better kept in a file."""

    url: str = ""
    url_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    kinds: list[AlertKind] = []
    timeout: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0

    def __repr__(self) -> str:
        """Leave out the URL, which may hold a token."""
        return f"WebhookSettings(kinds={self.kinds})"


class AlertSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom alerts reach, and what is worth one."""

    webhooks: list[WebhookSettings] = []
    mqtt: bool = True
    accuracy_drop: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    joined_share: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.5


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``covey.yaml``."""

    fleet: str
    operator_home: str = ""
    broker: BrokerSettings = BrokerSettings()
    alerts: AlertSettings = AlertSettings()
    budgets: BudgetSettings = BudgetSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True)
class ServerHome:
    """An opened server home; one that waits for the operator has no delegation yet, and the default policy."""

    path: Path
    settings: ServerSettings
    key: SigningKey = field(repr=False)
    operator_key: bytes
    delegation: bytes = field(repr=False)
    policy: Policy
    signed_policy: bytes = field(repr=False, default=b"")
    word: Delegation | None = field(repr=False, default=None)
    succession: SignedSuccession | None = field(repr=False, default=None)
    former: Former = NO_FORMER

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self.settings.fleet

    def delegation_due(self, now: int) -> bool:
        """Whether the delegation has less than a third of a year left, or there is none."""
        return self.word is None or 0 < self.word.not_after < now + DELEGATION_SECONDS / 3

    def trust(self, pins: dict[bytes, bytes]) -> Trust:
        """Return what the aggregator takes for granted."""
        known = Successions()
        if self.succession is not None:
            known.take(self.succession.message, operator_key=self.operator_key, fleet=self.fleet)
            known.take_list(self.succession.tokens)
        return Trust(
            self.fleet,
            self.operator_key,
            bytes(self.key.verify_key),
            self.policy,
            PinnedKeys(pins),
            successions=known,
        )

    def broker_for_devices(self) -> Broker:
        """Return the broker as provisioning bundles name it."""
        broker = self.settings.broker
        ca = _read(self.path / broker.ca_file).decode("ascii", "replace") if broker.ca_file else ""
        return Broker(host=broker.advertise or broker.host, port=broker.port, ca=ca)


def init_server(path: Path, operator: OperatorHome, broker: BrokerSettings) -> ServerHome:
    """Make a server home with its operator at hand; running it again overwrites nothing but a delegation that ends.

    Raises:
        ConfigError: The home belongs to another fleet or operator.
    """
    if (path / SETTINGS_FILE).exists() and (path / OPERATOR_FILE).exists():
        follow(open_server(path, waiting=True), operator)
    home = begin_server(path, operator.fleet, operator.public_key, broker, operator_home=str(operator.path.absolute()))
    follow(home, operator)
    refresh(open_server(path, waiting=True), operator)
    return open_server(path)


def begin_server(
    path: Path, fleet: str, operator_key: bytes, broker: BrokerSettings, *, operator_home: str = ""
) -> ServerHome:
    """Make a server home that waits for its operator's word; running it again overwrites nothing.

    Args:
        path: Where.
        fleet: The fleet's name.
        operator_key: The operator's public key.
        broker: The broker's settings.
        operator_home: Where the operator's home is, if it is at hand.

    Raises:
        ConfigError: The home belongs to another fleet or operator.
    """
    topics.check_name(fleet, "fleet")
    make_private_folder(path)
    for name in (MODELS, BUNDLES):
        make_private_folder(path / name)
    if not (path / KEY_FILE).exists():
        write_private(path / KEY_FILE, bytes(SigningKey.generate()))
    if not (path / OPERATOR_FILE).exists():
        replace(path / OPERATOR_FILE, operator_key.hex().encode() + b"\n")
    settings = ServerSettings(fleet=fleet, operator_home=operator_home, broker=broker)
    text = yaml.safe_dump(msgspec.to_builtins(settings), sort_keys=False)
    write_new(path / SETTINGS_FILE, f"# Settings of the Covey aggregator; see docs/configuration.md\n{text}")
    home = open_server(path, waiting=True)
    known = (home.operator_key, *(home.succession.checked.former if home.succession else ()))
    if home.fleet != fleet or operator_key not in known:
        raise ConfigError(f"{path}: belongs to fleet {home.fleet!r} of another operator")
    return home


def refresh(home: ServerHome, operator: OperatorHome, *, renew: bool = False, key: bytes = b"") -> list[str]:
    """Take what the operator at hand signs anew: a changed policy, and a delegation where less than a third is left.

    Args:
        home: The server's home.
        operator: Its operator.
        renew: Whether the delegation is to be signed anew in any case.
        key: The aggregator's key to be signed for, if not the present one.

    Returns:
        What was done, in words.
    """
    said = []
    policy = operator.signed_policy(home.policy.version if home.signed_policy else 0)
    if policy != home.signed_policy:
        replace(home.path / POLICY_FILE, policy)
        version = verify_policy(policy, operator_key=home.operator_key, fleet=home.fleet).version
        said.append(f"policy {version} is signed and in place")
    if renew or key or home.delegation_due(int(time.time())):
        known = home.word.version if home.word else 0
        made = operator.delegate(key or bytes(home.key.verify_key), known)
        take_delegation(home.path, made)
        end = identity.verify_delegation(made, operator_key=home.operator_key, fleet=home.fleet).not_after
        said.append(f"the delegation is signed and in place, until {day(end)}")
    return said


def follow(home: ServerHome, operator: OperatorHome) -> list[str]:
    """Take the change of the operator's key, if the operator at hand has changed it since; say what was done."""
    if operator.succession is None or home.fleet != operator.fleet:
        return []
    if home.operator_key not in (*operator.former, operator.public_key):
        return []
    return take_succession(home, operator.succession.encoded(), str(operator.path))


def take_succession(home: ServerHome, data: bytes, where: str) -> list[str]:
    """Go by the operator's next key from now on; a succession that is in place already changes nothing.

    Args:
        home: The server's home.
        data: All parts, as ``succession_file.decode`` reads them.
        where: Where they come from.

    Returns:
        What was done, in words.

    Raises:
        ConfigError: It does not hold, leads on from another key, or another one is in place.
    """
    known = home.trust({}).successions
    try:
        match cbor.decode(data, max_bytes=succession_file.BYTES_MAX):
            case [bytes(message), *_]:
                newer = known.take(message, operator_key=home.operator_key, fleet=home.fleet)
            case _:
                raise MalformedError("not the parts of a succession")
        found, _ = succession_file.decode(data, operator_key=home.operator_key, fleet=home.fleet)
    except StaleError:
        return []
    except CoveyError as error:
        raise ConfigError(f"{where}: {error}") from error
    if newer is None:
        return []
    replace(home.path / succession_file.FILE, data)  # from this step on the new key counts; the rest follows from it
    replace(home.path / DELEGATION_FILE, found.checked.words.delegation)
    replace(home.path / POLICY_FILE, found.checked.words.policy)
    replace(home.path / OPERATOR_FILE, found.key.hex().encode() + b"\n")
    return [f"the operator's key is {found.key.hex()} from now on; {len(found.tokens) // 32} earlier tokens count"]


def take_delegation(path: Path, delegation: bytes) -> None:
    """Put a checked delegation in its place, and the next aggregator key too if it is for that one."""
    replace(path / DELEGATION_FILE, delegation)
    open_server(path)  # takes up a next key


def day(seconds: int) -> str:
    """Return a date for people."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def open_server(path: Path, *, waiting: bool = False) -> ServerHome:
    """Open a server home.

    Args:
        path: Where it is.
        waiting: Whether it may still wait for the operator's word.

    Raises:
        ConfigError: It is none, or something in it is missing, damaged or not the operator's; the message names it.
    """
    if not (path / SETTINGS_FILE).exists():
        raise ConfigError(f"{path}: no server home; make one with `covey init {path} --operator OPHOME`")
    settings = read_yaml(path / SETTINGS_FILE, ServerSettings)
    topics.check_name(settings.fleet, f"{path / SETTINGS_FILE}: fleet")
    operator_key = _operator_key(path / OPERATOR_FILE)
    succession, changes = succession_file.read(path, operator_key=operator_key, fleet=settings.fleet)
    operator_key = succession.key if succession is not None else operator_key
    absent = next((file for file in (DELEGATION_FILE, POLICY_FILE) if not (path / file).exists()), "")
    if absent and not waiting:
        raise ConfigError(
            f"{path / absent}: not there yet: the operator has to sign for this server. Take what is in "
            f"{path / REQUESTS} to `covey operator sign`, and the reply to `covey accept {path}`; with the operator's "
            f"home at hand: `covey init {path}`"
        )
    delegation, signed_policy = (
        _read(path / file) if (path / file).exists() else None for file in (DELEGATION_FILE, POLICY_FILE)
    )
    if succession is not None:
        # A change of the operator's key may have been cut off: words of a key before count no longer.
        words, former = succession.checked.words, succession.checked.former
        if delegation is None or _is_void(identity.verify_delegation, delegation, former, settings.fleet):
            delegation = words.delegation
        if signed_policy is None or _is_void(verify_policy, signed_policy, former, settings.fleet):
            signed_policy = words.policy
    file, word, policy = DELEGATION_FILE, None, Policy()
    try:
        if delegation is not None:
            word = identity.verify_delegation(delegation, operator_key=operator_key, fleet=settings.fleet)
        file = POLICY_FILE
        if signed_policy is not None:
            policy = verify_policy(signed_policy, operator_key=operator_key, fleet=settings.fleet)
    except CoveyError as error:
        raise ConfigError(f"{path / file}: {error}") from error
    key = _own_key(path, word)
    return ServerHome(
        path,
        settings,
        key,
        operator_key,
        delegation or b"",
        policy,
        signed_policy or b"",
        word,
        succession,
        changes.former,
    )


def _is_void(verify: Callable[..., object], word: bytes, former: tuple[bytes, ...], fleet: str) -> bool:
    """Whether a word was signed by an operator key of before."""
    for key in former:
        with contextlib.suppress(PeerError):
            verify(word, operator_key=key, fleet=fleet)
            return True
    return False


def next_key(path: Path) -> SigningKey:
    """Return the key that is to follow the aggregator's, made if there is none."""
    if not (path / NEXT_KEY_FILE).exists():
        write_private(path / NEXT_KEY_FILE, bytes(SigningKey.generate()))
    return SigningKey(read_private(path / NEXT_KEY_FILE, 32))


def _own_key(path: Path, word: Delegation | None) -> SigningKey:
    """Return the aggregator's key; the next one is moved into its place once the delegation is for that.

    Which of them counts is decided by the delegation alone, so a change that was cut off is finished here.
    """
    key = SigningKey(read_private(path / KEY_FILE, 32))
    if word is None or word.aggregator_key == bytes(key.verify_key):
        return key
    if (path / NEXT_KEY_FILE).exists() and bytes(next_key(path).verify_key) == word.aggregator_key:
        # Two commands may find it at once: the second finds it done.
        with contextlib.suppress(FileNotFoundError):
            (path / NEXT_KEY_FILE).replace(path / KEY_FILE)
        flush_folder(path)
        key = SigningKey(read_private(path / KEY_FILE, 32))
    if word.aggregator_key != bytes(key.verify_key):
        raise ConfigError(f"{path / DELEGATION_FILE}: is for another key than {path / KEY_FILE}")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _operator_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(_read(path).decode("ascii").strip())
    except ValueError as error:
        raise ConfigError(f"{path}: not a key in hex: {error}") from error
    if len(key) != 32:
        raise ConfigError(f"{path}: holds {len(key)} bytes where a key has 32")
    return key
