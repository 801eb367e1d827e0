"""Probes: directions of the model that a round's sketches are held against, once updates and P are fixed.

The reputation rule measures how devices agree with one another. Who learns the common task and teaches a backdoor
beside it agrees. So the aggregator asks another question, with the held-out samples that it has anyway: which labels
does a device pull which samples to? And whose updates are just what samples under their own labels teach, however far
they lie from the others'? ``docs/robustness.md`` says what that finds and excuses, and what it does not.

    probes = Probes(Gradients(bundle, x, y), Settings())
    probes.look(weights, {seed: sketches})      # after every attested round
    book.ruling(sketches, probed=probes.evidence(), excused=probes.excused())   # counts in the next
"""

from __future__ import annotations

from covey_aggregator.probes.gradients import Gradients
from covey_aggregator.probes.probes import Probes
from covey_aggregator.probes.settings import Settings

__all__ = ["Gradients", "Probes", "Settings"]
