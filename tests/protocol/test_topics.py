"""covey_protocol.topics: what goes in comes out, and nothing else is a topic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol import topics
from covey_protocol.errors import ConfigError, MalformedError
from covey_protocol.topics import Topic

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
TRANSFER = "0f" * 16


@settings(deadline=None, max_examples=60)
@given(names, names, st.sampled_from(sorted(topics.UP_KINDS)), st.sampled_from(["", TRANSFER]))
def test_up_round_trip(fleet: str, device: str, kind: str, transfer: str) -> None:
    topic = topics.up(fleet, device, kind, transfer)
    assert topics.parse(topic) == Topic(fleet, "up", device, kind, transfer)
    assert topic.count("/") <= 7  # AWS IoT's limit


@settings(deadline=None, max_examples=40)
@given(names, names, st.sampled_from(sorted(topics.DOWN_KINDS)))
def test_down_round_trip(fleet: str, device: str, kind: str) -> None:
    assert topics.parse(topics.down(fleet, device, kind)) == Topic(fleet, "down", device, kind, "")


@settings(deadline=None, max_examples=40)
@given(names, st.sampled_from(sorted(topics.PUB_KINDS)), st.sampled_from(["", "3-s01-0", TRANSFER]))
def test_pub_round_trip(fleet: str, kind: str, id_: str) -> None:
    topic = topics.pub(fleet, kind, id_)
    assert topics.parse(topic) == Topic(fleet, "pub", "", kind, id_)
    assert topic.count("/") <= 7


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "covey/v1/meadow",
        "covey/v2/meadow/pub/open",
        "Covey/v1/meadow/pub/open",
        "/covey/v1/meadow/pub/open",
        "covey/v1/meadow/pub/open/",
        "covey/v1/meadow/pub/open/a/b",
        "covey/v1/meadow/pub/open\n",
        "covey/v1/meadow/pub/join",  # a kind that only devices send
        "covey/v1/meadow/pub/#",
        "covey/v1/+/pub/open",
        "covey/v1/-meadow/pub/open",
        "covey/v1/Meadow/pub/open",
        f"covey/v1/{'m' * 64}/pub/open",
        "covey/v1//pub/open",
        "covey/v1/meadow/dev/pi/join",
        "covey/v1/meadow/dev/pi/up/open",  # a kind that only the aggregator sends
        "covey/v1/meadow/dev/pi/down/join",
        "covey/v1/meadow/dev/-pi/up/join",
        "covey/v1/meadow/dev/pi/up/join/ABC",
        "covey/v1/meadow/dev/pi/up/join/abc/def",
        "covey/v1/meadow/dev/p i/up/join",
        f"covey/v1/meadow/dev/{'p' * 64}/up/join",
        "covey/v1/meadow/dev//up/join",
    ],
)
def test_other_topics_are_refused(topic: str) -> None:
    with pytest.raises(MalformedError) as caught:
        topics.parse(topic)
    assert caught.value.cause == "topic"


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60) | st.from_regex(r"covey/v1/[a-z/+#-]{0,40}"))
def test_any_text_parses_to_itself_or_is_refused(topic: str) -> None:
    try:
        parsed = topics.parse(topic)
    except MalformedError:
        return
    match parsed.way:
        case "up":
            rebuilt = topics.up(parsed.fleet, parsed.device, parsed.kind, parsed.id)
        case "down":
            # A transfer part is understood on the way down too, but never written.
            rebuilt = topics.down(parsed.fleet, parsed.device, parsed.kind) + (f"/{parsed.id}" if parsed.id else "")
        case "pub":
            rebuilt = topics.pub(parsed.fleet, parsed.kind, parsed.id)
    assert rebuilt == topic


@pytest.mark.parametrize("name", ["a", "0", "pi-4", "a" * 63])
def test_good_names(name: str) -> None:
    assert topics.check_name(name, "device") == name
    assert topics.is_name(name)


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a/b", "a+", "#", "a" * 64, "a\n", "ä", "a b"])
def test_bad_names(name: str) -> None:
    assert not topics.is_name(name)
    with pytest.raises(ConfigError, match="device"):
        topics.check_name(name, "device")
