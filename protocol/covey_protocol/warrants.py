"""The operator's words that outlive enrolment: which key the aggregator signs with, and the policy.

Both reach a device in its provisioning bundle and, when they change, as retained messages that the aggregator passes
on and cannot make. Versions only grow: whoever has seen one takes no older one, and two words of one version are an
alarm about the operator's key. From the moment that a newer delegation is taken, nothing that the earlier key has
signed counts any more.

Withholding a newer word is all that an aggregator can do: a policy then stays as it was, and a delegation runs out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from covey_protocol import envelope, identity
from covey_protocol.digest import content_digest, short
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError, PeerError, RefusedError, StaleError
from covey_protocol.identity import Delegation
from covey_protocol.policy import verify_policy
from covey_protocol.roster import Trust
from covey_protocol.succession import CheckedSuccession

_DELEGATION, _POLICY = "delegation", "policy"


class Warrants:
    """What one side has seen of both; it keeps a ``Trust`` at the newest.

    Args:
        trust: Its aggregator's key and policy are those of the newest words from now on.
        delegation: The signed delegation from the provisioning bundle.
        policy: The signed policy from there.
        rows: What was stored under each key.

    Raises:
        PeerError: A word from the bundle is not the operator's.
        LocalError: A stored one is damaged.
    """

    def __init__(self, trust: Trust, delegation: bytes, policy: bytes, rows: Mapping[str, bytes] | None = None) -> None:
        self._trust = trust
        self._signed = {_DELEGATION: delegation, _POLICY: policy}
        self.delegation = self._verify_delegation(delegation)
        trust.aggregator_key = self.delegation.aggregator_key
        trust.policy = verify_policy(policy, operator_key=trust.operator_key, fleet=trust.fleet)
        for key, take in ((_DELEGATION, self.take_delegation), (_POLICY, self.take_policy)):
            stored = (rows or {}).get(key)
            if stored is None:
                continue
            try:
                take(stored)
            except StaleError:
                continue  # the bundle is newer: the home was enrolled anew
            except PeerError as error:
                raise LocalError(f"the stored {key} is damaged: {error}", cause="store") from error

    def take_delegation(self, data: bytes) -> list[Remember]:
        """Take a DELEGATION message; what it says holds from now on.

        Returns:
            What has to be stored: nothing for one that is known.

        Raises:
            StaleError: A newer one was seen before.
            RefusedError: The operator's key has signed two of one version (cause ``second-delegation``).
            PeerError: The operator did not sign it.
        """
        word = self._verify_delegation(data)
        marks = self._newer(_DELEGATION, data, word.version, self.delegation.version)
        if marks:
            self.delegation = word
            self._trust.aggregator_key = word.aggregator_key
        return marks

    def take_policy(self, data: bytes) -> list[Remember]:
        """Take a POLICY message; as ``take_delegation``, with the cause ``second-policy``."""
        policy = verify_policy(data, operator_key=self._trust.operator_key, fleet=self._trust.fleet)
        marks = self._newer(_POLICY, data, policy.version, self._trust.policy.version)
        if marks:
            self._trust.policy = policy
        return marks

    def succeed(self, found: CheckedSuccession) -> list[Remember]:
        """Go by the operator's next key, and its first words, from now on; those of the key before are void.

        Returns:
            What has to be stored, together with the succession itself.
        """
        if found.key == self._trust.operator_key:  # it was enrolled under this one, and may know newer words
            marks = []
            for take, data in ((self.take_delegation, found.words.delegation), (self.take_policy, found.words.policy)):
                with contextlib.suppress(PeerError):  # what is older, or rings on a topic of its own
                    marks += take(data)
            return marks
        self._trust.operator_key = found.key
        self._signed = {_DELEGATION: found.words.delegation, _POLICY: found.words.policy}
        self.delegation, self._trust.policy = found.delegation, found.policy
        self._trust.aggregator_key = found.delegation.aggregator_key
        return [Remember(key, data) for key, data in self._signed.items()]

    def expired(self, now: int) -> bool:
        """Whether the aggregator's delegation has run out."""
        return bool(self.delegation.not_after) and now > self.delegation.not_after

    def check(self, now: int) -> None:
        """Refuse to follow an aggregator whose delegation has run out.

        Args:
            now: Unix seconds, as far as this device knows them.

        Raises:
            RefusedError: It has.
        """
        if self.expired(now):
            raise RefusedError(
                f"the aggregator's delegation expired at Unix time {self.delegation.not_after}: "
                "the operator has to sign a new one",
                cause="expired",
            )

    def _verify_delegation(self, data: bytes) -> Delegation:
        return identity.verify_delegation(data, operator_key=self._trust.operator_key, fleet=self._trust.fleet)

    def _newer(self, what: str, data: bytes, version: int, known: int) -> list[Remember]:
        if version < known:
            raise StaleError(f"{what} {version} is older than {known}", cause="replayed")
        if version > known:
            self._signed[what] = data
            return [Remember(what, data)]
        old, new = (envelope.parse(each).payload for each in (self._signed[what], data))
        if old != new:  # and not the signatures, of which there are many for one text
            raise RefusedError(
                f"operator key {short(self._trust.operator_key)} has signed two words of version {version} as {what}: "
                f"{short(content_digest(old))} and {short(content_digest(new))}",
                cause=f"second-{what}",
            )
        return []
