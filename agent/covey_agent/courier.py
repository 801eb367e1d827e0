"""What the agent sends: effects made durable and handed to the link, its state, and pieces that got lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from covey_agent.fetch import Ask
from covey_agent.home import AgentHome
from covey_agent.profile import FirmwareProfile
from covey_agent.store import Store
from covey_agent.transport import Link
from covey_protocol import __version__, topics
from covey_protocol.chunks import PIECE_OVERHEAD, split
from covey_protocol.digest import content_digest, short
from covey_protocol.effects import Effect, Note, Remember, Send
from covey_protocol.envelope import Context, open_signed, sign
from covey_protocol.errors import LocalError, StaleError, StateError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Have, State, Want
from covey_protocol.payload import read, write
from covey_protocol.recall import read_recall
from covey_protocol.refused import read_refused

log = logging.getLogger("covey.agent")

STARTS = "connections"


class Courier:
    """One device's outgoing side.

    Args:
        home: Who speaks.
        profile: Bounds the size of a message.
        store: Where marks and messages become durable.
        counter: Number of this start of the agent, for its state messages.
    """

    def __init__(self, home: AgentHome, profile: FirmwareProfile, store: Store, counter: int) -> None:
        self._home, self._profile, self._store, self._counter = home, profile, store, counter
        self._link: Link | None = None
        self._sent: dict[bytes, tuple[str, bytes]] = {}  # digest → topic and blob of the last masked vector
        self._unsaved: dict[str, Remember] = {}  # marks that there was no room for
        self._state = b""  # digest of the last STATE
        self._said: dict[str, dict[str, bytes]] = {}  # task → topic → what was said in its round

    def attach(self, link: Link) -> None:
        """Use a link from now on, and remember that the agent was started once more."""
        self._link = link
        try:
            self._make_durable([Remember(STARTS, str(self._counter).encode())])
            # What an earlier start said of itself, and was killed before it was acknowledged, is true no longer.
            self._store.outbox.discard(topics.up(self._home.fleet, self._home.device, topics.STATE))
        except LocalError as error:  # a full disk: nothing is said before there is room
            log.error("%s: %s", self._home.device, error)

    @property
    def link(self) -> Link:
        """The link.

        Raises:
            StateError: There is none yet.
        """
        if self._link is None:
            raise StateError("the agent has no link yet")
        return self._link

    def carry(self, effects: Sequence[Effect], task: str = "") -> None:
        """Make marks and messages durable together, then let the link send; notes go to the log.

        Args:
            effects: What a state machine asked for.
            task: Whose round they belong to; ``forget`` drops what is still unsent of it.

        Raises:
            LocalError: They cannot be stored, so nothing is sent. The marks are stored with the next effects: the state
                machines count on them already.
        """
        if not effects and not self._unsaved:
            return
        for effect in effects:
            if isinstance(effect, Note):
                log.info("%s: %s: %s", self._home.device, effect.cause, effect.text)
        self._make_durable(effects, task)
        for effect in effects:  # only what is durable may be said again
            if isinstance(effect, Send) and effect.transfer:
                digest = content_digest(effect.data)
                self._sent = {digest: (self._topic(effect, digest), effect.data)}
            elif isinstance(effect, Send):
                self._said.setdefault(task, {})[self._topic(effect, b"")] = effect.data
        self._kick()

    def _make_durable(self, effects: Sequence[Effect], task: str = "") -> None:
        """Store effects, with the marks that there was no room for before."""
        unsaved = self._unsaved | {effect.key: effect for effect in effects if isinstance(effect, Remember)}
        earlier = [mark for mark in self._unsaved.values() if mark not in effects]
        try:
            self._store.carry([*earlier, *effects], topic_of=self._topic, largest=self._largest(), tag=task)
        except LocalError:
            self._unsaved = unsaved
            raise
        self._unsaved = {}

    def forget(self, task: str) -> None:
        """Drop what was never sent of a task's earlier rounds."""
        self._said.pop(task, None)
        self._store.outbox.discard(tag=task)

    def say_again(self, tasks: set[str]) -> None:
        """Repeat what was said in the rounds of some tasks, because the broker has lost this device's session.

        What the broker had acknowledged and not yet passed on may be lost with it. The bytes are those that were signed
        then, and the aggregator drops what it has already.

        Raises:
            LocalError: The outbox is full.
        """
        for task in sorted(tasks & self._said.keys()):
            for topic, data in self._said[task].items():
                if not self._store.outbox.holds(topic):
                    self._store.outbox.put(topic, data, tag=task)
        self._kick()

    def recall(self, payload: bytes, ledger: DeviceLedger, aggregator_key: bytes) -> bool:
        """Go on from where this device had been before its disk was put back, as its own signatures prove.

        Args:
            payload: A RECALL.
            ledger: This device's marks.
            aggregator_key: Whose signature it has to bear.

        Returns:
            Whether the agent has to start anew, because its Last Will counts too low.

        Raises:
            PeerError: It proves nothing, or nothing that this device does not know.
        """
        recalled = read_recall(
            payload,
            fleet=self._home.fleet,
            device=self._home.device,
            own_keys=self._home.keys,
            aggregator_key=aggregator_key,
        )
        had = ledger.forgotten
        marks = ledger.put_back(recalled.sequence, recalled.task, recalled.round, recalled.attempt)
        anew = recalled.counter > self._counter
        if anew:
            marks.append(Remember(STARTS, str(recalled.counter).encode()))
        if not marks:
            raise StaleError("a recall of what this device knows", cause="replayed")
        self.carry(marks)
        log.error(
            "%s: this disk is older than what the device has signed: it was put back from an image, was copied, or has "
            "lost its database. %d joins are forgotten: they count as exposure; which models they masked for is lost",
            *(self._home.device, ledger.forgotten - had),
        )
        return anew

    def send_again(self, payload: bytes, aggregator_key: bytes) -> None:
        """Send the pieces of a masked vector that the aggregator lacks, as a HAVE message says.

        While the outbox still holds pieces of it they are on their way, however slowly, and nothing is added to them.

        Args:
            payload: A HAVE message.
            aggregator_key: Whose signature it has to bear.

        Raises:
            PeerError: The message does not hold, or names a blob that was not sent lately.
        """
        context = Context(fleet=self._home.fleet, kind=topics.HAVE, sender=AGGREGATOR, recipient=self._home.device)
        have = read(Have, open_signed(payload, context, aggregator_key))
        if have.digest not in self._sent:
            raise StaleError(f"blob {short(have.digest)} is not one this device has sent lately", cause="stage")
        topic, blob = self._sent[have.digest]
        if self._store.outbox.holds(topic):
            return
        for piece in split(blob, self._largest() - PIECE_OVERHEAD, have.have, have.size):
            self.link.publish(topic, piece.encode())

    def refused(self, payload: bytes, aggregator_key: bytes) -> str:
        """Return why the aggregator does not let this device in, as a REFUSED message says.

        Args:
            payload: The message.
            aggregator_key: Whose signature it has to bear.

        Raises:
            StaleError: It is about another message than this device's last STATE: somebody else's, or an old one.
            PeerError: It does not hold.
        """
        fleet, device = self._home.fleet, self._home.device
        answer = read_refused(payload, fleet=fleet, device=device, aggregator_key=aggregator_key)
        if answer.state != self._state:
            raise StaleError("a refusal of a message that is not this device's last", cause="replayed")
        return f"the aggregator does not let this device in ({answer.cause}): {answer.reason}"

    @property
    def online(self) -> bool:
        """Whether the link is up, as far as it says."""
        return bool(getattr(self._link, "connected", True))

    def ask(self, ask: Ask) -> None:
        """Ask for pieces of a blob.

        Raises:
            LocalError: The outbox is full.
        """
        context = Context(fleet=self._home.fleet, kind=topics.WANT, sender=self._home.device)
        data = sign(write(Want(digest=ask.digest, have=ask.have, size=ask.size)), context, self._home.key)
        self.link.publish(topics.up(self._home.fleet, self._home.device, topics.WANT), data)

    def announce(self, status: str, holds: bool) -> None:
        """Publish this device's state; only the newest is worth sending.

        Args:
            status: "online", "lost" or "left".
            holds: Whether something keeps it from taking part. What that is stays here: it may hold a loss or the name
                of a file; ``covey-agent status`` shows it.

        Raises:
            LocalError: There is no room for it.
        """
        topic, data = self.state(status, holds)
        self.carry([])
        self._store.outbox.discard(topic)
        self.link.publish(topic, data, retain=True)
        self._state = content_digest(data)

    def state(self, status: str, holds: bool = False) -> tuple[str, bytes]:
        """Return topic and payload of a STATE message; "lost" is the Last Will."""
        state = State(
            status=status,  # type: ignore[arg-type]
            counter=self._counter,
            chain=self._home.stored.chain,
            software=f"covey {__version__}",
            holds="held back; see the device" if holds else "",
        )
        context = Context(fleet=self._home.fleet, kind=topics.STATE, sender=self._home.device)
        topic = topics.up(self._home.fleet, self._home.device, topics.STATE)
        return topic, sign(write(state), context, self._home.key)

    def _kick(self) -> None:
        kick = getattr(self._link, "kick", None)
        if kick is not None:
            kick()

    def _largest(self) -> int:
        link_limit = int(getattr(self._link, "max_payload", self._profile.chunk_bytes))
        return min(self._profile.chunk_bytes, link_limit)

    def _topic(self, send: Send, digest: bytes) -> str:
        transfer = digest.hex()[:16] if digest else ""
        return topics.up(self._home.fleet, self._home.device, send.kind, transfer)
