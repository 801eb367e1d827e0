"""What a device must never forget: the high-water marks of rounds, kept on disk by its shell.

The ledger reads what earlier ``Remember`` effects stored and turns every new mark into one. It belongs to the device,
not to a task: a new task does not reset it.
"""

from __future__ import annotations

from collections.abc import Mapping

from covey_protocol.digest import short
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError, MalformedError, RefusedError, StaleError
from covey_protocol.privacy_ledger import PrivacyLedger
from covey_protocol.revocation import Revocations
from covey_protocol.sketch import K_MAX

_SEQUENCE = "sequence"
_HEAD, _LIST, _LIST_VERSION = "revocations/head", "revocations/list", "revocations/version"
_FORGOTTEN = "forgotten"
_SKETCHES = "sketches"


class DeviceLedger:
    """The marks of one device.

    Args:
        rows: What was stored under each key.

    Raises:
        LocalError: The revocation list or the privacy budget among them is damaged.

    Attributes:
        revocations: The operator's list as this device knows it.
        privacy: What the rounds have cost in privacy.
    """

    def __init__(self, rows: Mapping[str, bytes] | None = None) -> None:
        self._rows = dict(rows or {})
        self.revocations = Revocations()
        if self._rows.get(_HEAD):
            try:
                self.revocations.restore(self._rows[_HEAD], self._number(_LIST_VERSION), self._rows.get(_LIST, b""))
            except MalformedError as error:
                raise LocalError(f"the stored revocation list is damaged: {error}", cause="store") from error
        self._loaded = self._number(_SEQUENCE)
        self.privacy = PrivacyLedger(self._rows, self._count_masked, lambda: self.forgotten)

    def _remember(self, key: str, value: bytes) -> Remember:
        self._rows[key] = value
        return Remember(key, value)

    def next_sequence(self) -> tuple[int, Remember]:
        """Take the next join sequence number."""
        number = self._number(_SEQUENCE) + 1
        return number, self._remember(_SEQUENCE, str(number).encode())

    def put_back(self, sequence: int, task: str, round_: int, attempt: int) -> list[Remember]:
        """Jump to where this device was before its disk went back, proven by a JOIN of its own.

        Each sum that it may have signed for since has cost it a join, so the joins that it has forgotten count as
        exposure and as sketches from now on. Which models it had masked for is lost.

        Args:
            sequence: The JOIN's.
            task: Its task.
            round_: Its round.
            attempt: Its attempt.
        """
        if sequence <= self._number(_SEQUENCE):
            return []
        missed = sequence - self._loaded  # joins since then used numbers that were used before
        self._loaded = sequence
        marks = [
            self._remember(_SEQUENCE, str(sequence).encode()),
            self._remember(_FORGOTTEN, str(self.forgotten + missed).encode()),
        ]
        if (round_, attempt) > self._round(task):
            marks.append(self.joined(task, round_, attempt))
        return marks

    @property
    def forgotten(self) -> int:
        """How many joins this device has forgotten, because its disk was put back."""
        return self._number(_FORGOTTEN)

    def check_round(self, task: str, round_: int, attempt: int) -> None:
        """Refuse a round that this device has joined or passed.

        Raises:
            StaleError: Its number repeats or goes back.
        """
        if (round_, attempt) <= self._round(task):
            raise StaleError(f"round {round_}.{attempt} of {task!r} is not newer than the last", cause="replayed")

    def joined(self, task: str, round_: int, attempt: int) -> Remember:
        """Mark a round as joined."""
        return self._remember(f"round/{task}", f"{round_}.{attempt}".encode())

    def peer_sequence(self, peer: str) -> int:
        """Return the last join sequence seen from a peer, 0 for none."""
        return self._number(f"peer/{peer}")

    def saw_peer(self, peer: str, sequence: int) -> Remember:
        """Mark a peer's join sequence."""
        return self._remember(f"peer/{peer}", str(sequence).encode())

    def rostered(self, task: str, roster: bytes) -> Remember:
        """Mark the roster that shares are about to be dealt for."""
        return self._remember(f"roster/{task}", roster)

    def check_model(self, model: bytes) -> None:
        """Refuse a model that this device has masked an update for.

        Two sums on one model that differ by one member differ by that member's update, so a device takes part in one
        sum a model, whether or not it came about.

        Raises:
            RefusedError: The model is spent.
        """
        if f"masked/{model.hex()}" in self._rows:
            raise RefusedError(f"this device has masked an update for model {short(model)} before", cause="spent-model")

    def masked(self, model: bytes, vector: bytes) -> Remember:
        """Spend a model: mark the digest of the masked vector that is about to be sent for it."""
        return self._remember(f"masked/{model.hex()}", vector)

    def _count_masked(self) -> int:
        return sum(key.startswith("masked/") for key in self._rows)

    def check_exposure(self, exposure_max: int) -> None:
        """Refuse further rounds to a device that could sign for no new set.

        Args:
            exposure_max: The policy's cap, 0 for none.

        Raises:
            RefusedError: The cap is reached.
        """
        if exposure_max and self.exposure() >= exposure_max:
            raise RefusedError(
                f"this device was in {self.exposure()} different sums, the policy's exposure_max is {exposure_max}",
                cause="exposure",
            )

    def unmasked(self, task: str, reveal: bytes) -> Remember:
        """Mark the reveal that is about to be sent."""
        return self._remember(f"unmask/{task}", reveal)

    def sign_set(self, model: bytes, survivors: bytes, group: str, members: bytes, exposure_max: int) -> list[Remember]:
        """Spend this device's one signature on a set U for a model digest, where U is what will be summed.

        Args:
            model: Digest of the round's model.
            survivors: Digest of U.
            group: Identifier of the group.
            members: Digest of the set of names in the sum.
            exposure_max: The policy's cap on distinct sets over all groupings, 0 for none.

        Raises:
            RefusedError: Another set was signed for this model, or the exposure cap is reached.
        """
        return self._sum_over(f"signed/{model.hex()}", survivors, group, members, exposure_max)

    def accept_set(
        self, model: bytes, accepted: bytes, group: str, members: bytes, exposure_max: int
    ) -> list[Remember]:
        """Spend this device's one signature on a set A for a model digest; arguments and errors as ``sign_set``."""
        return self._sum_over(f"accepted/{model.hex()}", accepted, group, members, exposure_max)

    def sign_survivors(self, model: bytes, survivors: bytes) -> list[Remember]:
        """Spend this device's one signature on a set U for a model digest, of which a part will be summed.

        Raises:
            RefusedError: Another set was signed for this model.
        """
        return self._once(f"signed/{model.hex()}", survivors, "signed another set")

    def _sum_over(self, key: str, signed: bytes, group: str, members: bytes, exposure_max: int) -> list[Remember]:
        exposure = f"exposure/{group}/{members.hex()}"
        if exposure not in self._rows and key not in self._rows:
            self.check_exposure(exposure_max)
        marks = self._once(key, signed, "signed another set")
        return [*marks, self._remember(exposure, str(self._number(exposure) + 1).encode())] if marks else []

    def take_seed(self, model: bytes, seed: bytes, k: int, budget: int) -> list[Remember]:
        """Spend this device's one sketch for a model digest, and k numbers of its budget.

        Args:
            model: Digest of the round's model.
            seed: ρ, which fixes the sketch.
            k: Numbers in it.
            budget: How many numbers this device tells in its life, 0 for no limit.

        Raises:
            RefusedError: A sketch under another seed was made for this model, or the budget is spent.
        """
        key = f"sketched/{model.hex()}"
        if key not in self._rows:
            self.check_sketch(k, budget)
        marks = self._once(key, seed, "made a sketch under another seed")
        return [*marks, self._remember(_SKETCHES, str(self._number(_SKETCHES) + k).encode())] if marks else []

    def check_sketch(self, k: int, budget: int) -> None:
        """Refuse a sketch of k numbers that the budget does not allow.

        Raises:
            RefusedError: It is spent.
        """
        if budget and self.sketched() + k > budget:
            raise RefusedError(
                f"{k} more numbers would exceed the sketch budget of {budget}: {self.sketched()} are spent",
                cause="sketch-budget",
            )

    def sketched(self) -> int:
        """Count the numbers of all sketches that this device has made.

        Every join that it has forgotten counts as the largest sketch there is.
        """
        return self._number(_SKETCHES) + self.forgotten * K_MAX

    def _once(self, key: str, value: bytes, what: str) -> list[Remember]:
        """Mark what a device does once for a model; nothing is left to mark when it is repeated.

        Raises:
            RefusedError: Something else was marked.
        """
        if self._rows.get(key, value) != value:
            raise RefusedError(f"this device has {what} for the same model", cause="second-set")
        return [] if key in self._rows else [self._remember(key, value)]

    def exposure(self) -> int:
        """Count the distinct sums this device was in: each is another equation about its updates.

        Every join that it has forgotten counts as one.
        """
        return sum(key.startswith("exposure/") for key in self._rows) + self.forgotten

    def exposures(self) -> dict[str, int]:
        """Count the distinct sums by grouping."""
        counts: dict[str, int] = {}
        for key in sorted(self._rows):
            if key.startswith("exposure/"):
                group = key.split("/")[1]
                counts[group] = counts.get(group, 0) + 1
        return counts

    def pin(self, token: bytes, keys: bytes) -> list[Remember]:
        """Mark which keys a peer's token was seen with, as ``PinnedKeys`` returns them; they only grow."""
        mark = f"pin/{token.hex()}"
        known = self._rows.get(mark, b"")
        return [self._remember(mark, keys)] if keys != known and keys.startswith(known) else []

    def pins(self) -> dict[bytes, bytes]:
        """Return the keys that peers' tokens were seen with."""
        return {bytes.fromhex(key[4:]): value for key, value in self._rows.items() if key.startswith("pin/")}

    def take_revocations(self, head: bytes, *, operator_key: bytes, fleet: str) -> list[Remember]:
        """Take a REVOCATIONS message; its version counts as seen from now on; errors as ``Revocations.take_head``."""
        newer = self.revocations.take_head(head, operator_key=operator_key, fleet=fleet)
        return [self._remember(_HEAD, head)] if newer else []

    def take_revoked(self, entries: bytes) -> list[Remember]:
        """Take the entries that the newest head names; errors as ``Revocations.take_list``."""
        self.revocations.take_list(entries)
        version = str(self.revocations.held).encode()
        return [self._remember(_LIST, entries), self._remember(_LIST_VERSION, version)]

    def succeed_revocations(self, head: bytes, *, operator_key: bytes, fleet: str) -> list[Remember]:
        """Begin anew with the list of the operator's next key; arguments and errors as ``Revocations.succeed``."""
        same = self.revocations.succeed(head, operator_key=operator_key, fleet=fleet)
        marks = {_HEAD: head, _LIST_VERSION: str(self.revocations.held).encode()}
        if not same:
            marks[_LIST] = b""
        return [self._remember(key, value) for key, value in marks.items()]

    def _round(self, task: str) -> tuple[int, int]:
        round_, _, attempt = self._rows.get(f"round/{task}", b"0.0").decode().partition(".")
        return int(round_), int(attempt)

    def _number(self, key: str) -> int:
        return int(self._rows.get(key, b"0"))
