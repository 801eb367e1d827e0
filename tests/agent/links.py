"""Links under test, with what they heard; shared by the transport's tests."""

from __future__ import annotations

import queue
from typing import Any

from covey_agent.link_options import LinkEvents, LinkOptions
from covey_agent.outbox import Outbox
from covey_agent.transport import MqttLink

SECONDS = 20.0  # patience for what must happen; nothing waits this long when all is well


class Ears:
    """Callbacks that keep what they are told."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.sessions: queue.Queue[bool] = queue.Queue()
        self.ends: queue.Queue[str] = queue.Queue()
        self.lost: queue.Queue[tuple[str, int, str]] = queue.Queue()
        self.events = LinkEvents(
            on_message=lambda topic, payload: self.messages.put((topic, payload)),
            on_connect=self.sessions.put,
            on_disconnect=self.ends.put,
            on_undeliverable=lambda topic, size, why: self.lost.put((topic, size, why)),
        )

    def next(self) -> tuple[str, bytes]:
        """Return the next message."""
        return self.messages.get(timeout=SECONDS)

    def until(self, last: bytes) -> list[bytes]:
        """Return all payloads up to and with this one."""
        heard = [self.next()[1]]
        while heard[-1] != last:
            heard.append(self.next()[1])
        return heard


def make_link(port: int, name: str, ears: Ears | None = None, outbox: Outbox | None = None, **options: Any) -> MqttLink:
    """Make a link to a broker on loopback that reconnects quickly."""
    settings = {"backoff_base": 0.02, "backoff_cap": 0.1} | options
    return MqttLink(
        LinkOptions(host="127.0.0.1", port=port, client_id=name, **settings),
        outbox or Outbox(":memory:"),
        ears.events if ears else None,
    )
