"""courier.py: what an agent says when it starts."""

from __future__ import annotations

from pathlib import Path

from tests.agent.enrolled import enrolled
from tests.agent.world import MemoryLink

from covey_agent.courier import STARTS, Courier
from covey_agent.profile import load_profile
from covey_agent.store import Store
from covey_protocol import topics


def test_a_start_is_counted_and_drops_what_an_earlier_one_left_unsent_about_itself(tmp_path: Path) -> None:
    """A state that was killed before it was acknowledged would arrive before the new one, and be wrong."""
    home = enrolled(tmp_path)
    store = Store(":memory:")
    state = topics.up(home.fleet, home.device, topics.STATE)
    join = topics.up(home.fleet, home.device, topics.JOIN)
    store.outbox.put(state, b"an old state", retain=True)
    store.outbox.put(join, b"a join that has to arrive")
    Courier(home, load_profile("pi-4"), store, 7).attach(MemoryLink(store, lambda topic, payload, retain: None))
    assert [row.topic for row in store.outbox.pending()] == [join]
    assert store.marks()[STARTS] == b"7"
