"""When groups are drawn anew.

Every grouping a device takes part in gives the aggregator sums over new sets, which is exposure; so an epoch lasts for
the task's ``epoch_rounds``. Some things cannot wait for its end: a group that keeps aborting, a group under its floor,
newcomers. They draw on a small purse of *early* epochs that fills up by one every ``REFILL_ROUNDS`` rounds, so that
nobody, by refusing, leaving or arriving, has the fleet regrouped more often than that for long. Newcomers leave the
last one to groups in need. Two things are always allowed, because they cost nothing or cannot be repeated: regrouping a
fleet in which no group has closed, since there was no sum, and regrouping one whose newcomers outnumber its members.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

PURSE = 3
REFILL_ROUNDS = 10
NEWCOMERS_SHARE = 10  # one in so many


class _State(msgspec.Struct, kw_only=True):
    reason: str = ""
    early: bool = False
    purse: int = PURSE
    rounds: int = 0


class Regrouping:
    """Decides after every round whether a new epoch is due.

    Args:
        kept: What ``encode`` returned, or nothing.
    """

    def __init__(self, kept: bytes = b"") -> None:
        self._state = msgspec.json.decode(kept, type=_State) if kept else _State()

    def encode(self) -> bytes:
        """Return the state as it is to be kept."""
        return msgspec.json.encode(self._state)

    @property
    def reason(self) -> str:
        """Why groups are to be drawn anew before the next round, or nothing."""
        return self._state.reason

    @property
    def purse(self) -> int:
        """How many early epochs may be opened at once."""
        return self._state.purse

    def ask(self, reason: str) -> None:
        """Ask for a new epoch that is not an early one."""
        self._state.reason, self._state.early = reason, False

    def round_ended(
        self,
        *,
        epoch_over: bool,
        rounds_in_epoch: int,
        under: Collection[str],
        fallen: Collection[str],
        waiting: int,
        grouped: int,
        roster_min: int,
        any_closed: bool,
    ) -> None:
        """Take what has become of the groups.

        Args:
            epoch_over: Whether the epoch has had its rounds.
            rounds_in_epoch: How many it has had.
            under: Groups that have fewer members there than a roster needs.
            fallen: Groups that have aborted too often.
            waiting: Devices that are there and in no group.
            grouped: Devices that are in one.
            roster_min: Smallest roster.
            any_closed: Whether some group has closed in this round.
        """
        state = self._state
        state.rounds += 1
        if state.rounds >= REFILL_ROUNDS:
            state.rounds, state.purse = 0, min(PURSE, state.purse + 1)
        state.early = False
        if epoch_over:
            state.reason = f"{rounds_in_epoch} rounds have passed"
        elif under and self._may_open(not any_closed):
            state.reason = f"group {', '.join(sorted(under))} fell under its floor"
        elif fallen and self._may_open(not any_closed):
            state.reason = f"group {', '.join(sorted(fallen))} aborted again"
        elif newcomers_count(waiting, grouped, roster_min) and self._may_open(waiting >= grouped, spare=1):
            state.reason = f"{waiting} newcomers wait"
        else:
            state.reason = ""

    def grouped(self) -> None:
        """Note that groups were drawn anew."""
        if self._state.early:
            self._state.purse -= 1
        self._state.reason, self._state.early = "", False

    def _may_open(self, free: bool, spare: int = 0) -> bool:
        self._state.early = not free and self._state.purse > spare
        return free or self._state.early


def newcomers_count(waiting: int, grouped: int, roster_min: int) -> bool:
    """Whether so many wait that they do not have to wait for the epoch's end: a group's worth, or a tenth."""
    return waiting > 0 and (waiting >= roster_min or waiting * NEWCOMERS_SHARE >= grouped)
