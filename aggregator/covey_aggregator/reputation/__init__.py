"""Reputation: who poisons the model, told from sketches of updates that stay masked.

Pure: sketches in, evidence, states and accepted devices out; no files, no network, no clock, no chance. The rule, its
formulas and its limits stand in ``docs/robustness.md``; each part of it is a module here.

    book = Reputation(Settings(), kept)
    ruling = book.ruling(sketches)      # who may be summed
    ...                                 # the round goes on, and its checks hold or do not
    book.settle(ruling, without=...)    # the book is written
    kept = book.encode()
"""

from __future__ import annotations

from covey_aggregator.reputation.book import Reputation
from covey_aggregator.reputation.evidence import Parts
from covey_aggregator.reputation.ruling import Ruling, Standing, Verdict
from covey_aggregator.reputation.settings import Settings
from covey_aggregator.reputation.states import NEWCOMERS, OUT, TABLE, State

__all__ = ["NEWCOMERS", "OUT", "TABLE", "Parts", "Reputation", "Ruling", "Settings", "Standing", "State", "Verdict"]
