"""covey_agent.link_options: what cannot work is refused by name; back-off is jittered and capped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.link_options import LinkOptions, backoff_delay, publish_size
from covey_protocol.errors import ConfigError


def test_passwords_stay_out_of_sight() -> None:
    options = LinkOptions(host="h", client_id="c", username="u", password="hush-hush")
    assert "hush-hush" not in repr(options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"host": ""}, "host is empty"),
        ({"port": 0}, "port 0"),
        ({"client_id": ""}, "client_id is empty"),
        ({"keepalive": 0}, "keepalive 0"),
        ({"protocol": "4"}, "protocol '4'"),
        ({"session_expiry": -1}, "session_expiry -1"),
        ({"password": "x"}, "password without username"),
        ({"ca_file": Path("/etc/hosts")}, "without tls"),
        ({"tls": True, "cert_file": Path("/etc/hosts")}, "cert_file and key_file go together"),
        ({"tls": True, "ca_file": Path("/nowhere/ca.pem")}, "ca_file /nowhere/ca.pem is not a file"),
        ({"will_payload": bytes(65536)}, "will_payload of 65536"),
        ({"backoff_base": 5.0, "backoff_cap": 1.0}, "backoff_base"),
        ({"connect_timeout": 0.0}, "connect_timeout"),
        ({"inflight": 0}, "inflight 0"),
        ({"max_payload": 0}, "max_payload 0"),
        ({"max_packet_in": -1}, "max_packet_in -1"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        LinkOptions(**{"host": "h", "client_id": "c"} | options)


@given(attempt=st.integers(0, 10_000), base=st.floats(0.001, 100), more=st.floats(0, 1000), seed=st.integers())
def test_backoff_stays_under_its_cap(attempt: int, base: float, more: float, seed: int) -> None:
    assert 0 <= backoff_delay(attempt, base, base + more, random.Random(seed)) <= base + more


@given(topic=st.text(min_size=1, max_size=40), size=st.integers(0, 200))
def test_publish_size_counts_bytes_not_characters(topic: str, size: int) -> None:
    assert publish_size(topic, size) == 10 + len(topic.encode("utf-8", "surrogatepass")) + size
