"""The people of a rehearsal with signatures: an operator, an aggregator's keys, and devices with identities."""

from __future__ import annotations

from nacl.signing import SigningKey

from covey_protocol import identity
from covey_protocol.device_round import DeviceRound
from covey_protocol.epoch_member import EpochMember
from covey_protocol.epochs import Grouping
from covey_protocol.identity import Chain, PinnedKeys
from covey_protocol.ledger import DeviceLedger
from covey_protocol.masking import public_key
from covey_protocol.policy import Policy
from covey_protocol.roster import OpenRound, Trust
from covey_simulator.attacks import malicious_devices, round_class
from covey_simulator.data import device_names
from covey_simulator.engine.draws import Draws, Source
from covey_simulator.scenario import Scenario

FLEET, TASK, PROFILE = "rehearsal", "rehearsal", "container"


class House:
    """The operator's and the aggregator's keys, as a scenario's seed gives them.

    Args:
        scenario: Gives the seed.
        policy: The operator's floors.
    """

    def __init__(self, scenario: Scenario, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.operator = SigningKey(scenario.seed_for("operator key"))
        self.aggregator = SigningKey(scenario.seed_for("aggregator key"))
        secret = scenario.seed_for("sealing key")
        self.sealing = (secret, public_key(secret))
        self.trust = self.new_trust()
        names = device_names(scenario.devices)
        self.malicious = frozenset(names[index] for index in malicious_devices(scenario))
        self.hostile_round = round_class(scenario.attack, self.malicious)

    def new_trust(self, ledger: DeviceLedger | None = None) -> Trust:
        """Return what somebody knows who has just been enrolled."""
        keys = bytes(self.operator.verify_key), bytes(self.aggregator.verify_key)
        if ledger is None:
            return Trust(FLEET, *keys, self.policy, PinnedKeys())
        return Trust(FLEET, *keys, self.policy, PinnedKeys(), ledger.revocations)


class Member:
    """A device's state machines and marks.

    Args:
        name: Its name.
        house: Who enrolled it.
        scenario, draws: Give its key and its bytes.
    """

    def __init__(self, name: str, house: House, scenario: Scenario, draws: Draws) -> None:
        self.name, self.key = name, draws.signing_key(name)
        token_key = SigningKey(scenario.seed_for("token key", name))
        token = identity.issue_token(
            house.operator, FLEET, name, token_key=bytes(token_key.verify_key), profile=PROFILE, not_after=0
        )
        endorsement = identity.endorse(token_key, FLEET, name, bytes(self.key.verify_key))
        self.chain = Chain(token=token, endorsement=endorsement)
        self.ledger, self.source = DeviceLedger(), Source(scenario, name)
        self.trust = house.new_trust(self.ledger)
        self.epochs = EpochMember(trust=self.trust, device=name, key=self.key, entropy=self.source)
        self.round: DeviceRound | None = None
        self._rounds = house.hostile_round if name in house.malicious else DeviceRound

    @property
    def grouping(self) -> Grouping | None:
        """Its place in the epoch."""
        return self.epochs.grouping

    def begin(self, opened: OpenRound) -> DeviceRound | None:
        """Return its part in a round; None for a device that has no group in the epoch."""
        if self.grouping is None or self.grouping.epoch != opened.manifest.epoch:
            return None
        self.round = self._rounds(
            name=self.name,
            key=self.key,
            chain=self.chain,
            trust=self.trust,
            grouping=self.grouping,
            opened=opened,
            ledger=self.ledger,
            entropy=self.source,
        )
        return self.round
