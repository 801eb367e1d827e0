"""The configurations that come along: whole, alike in their limits, and safe to set lines in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from covey_aggregator.broker_files import broker_config_folder, configuration, tls_files
from covey_protocol import topics
from covey_protocol.errors import ConfigError

FOLDER = broker_config_folder()
VARIANTS = sorted(path.name for path in FOLDER.glob("mosquitto-*.conf"))
LIMITS = [
    "max_packet_size",
    "message_size_limit",
    "max_inflight_messages",
    "max_inflight_bytes",
    "max_queued_messages",
    "max_queued_bytes",
    "queue_qos0_messages",
    "max_connections",
    "max_keepalive",
    "max_topic_alias",
    "max_qos",
    "retain_available",
    "upgrade_outgoing_qos",
    "persistent_client_expiration",
    "set_tcp_nodelay",
    "persistence",
    "autosave_interval",
    "allow_anonymous",
    "allow_zero_length_clientid",
    "use_username_as_clientid",
]
# What everybody may hear, without a third part; every other kind has one.
SINGLE = {topics.REVOCATIONS, topics.ALERT, topics.DELEGATION, topics.POLICY, topics.TIME}


def lines(name: str) -> dict[str, str]:
    text = (FOLDER / name).read_text()
    found = re.findall(r"^([a-z][a-z0-9_.]*) (.+)$", text, re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_limit_is_stated_and_the_same_everywhere(name: str) -> None:
    reference, ours = lines("mosquitto-tls.conf"), lines(name)
    assert {key: ours.get(key) for key in LIMITS} == {key: reference[key] for key in LIMITS}
    if "tls" in name or "site" in name or "dynsec" in name:
        for key in ("require_certificate", "use_identity_as_username", "tls_version", "crlfile"):
            assert ours[key] == reference[key]


def test_the_readme_explains_every_limit() -> None:
    page = (FOLDER / "README.md").read_text()
    assert [limit for limit in LIMITS if f"`{limit}`" not in page] == []


def test_lines_are_set_and_nothing_else_changes() -> None:
    before = (FOLDER / "mosquitto-tls.conf").read_text().splitlines()
    after = configuration("mosquitto-tls.conf", {"listener": "1884 10.0.0.1", "user": r"o\1rdinary"}).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("listener 8883", "listener 1884 10.0.0.1"), ("user mosquitto", r"user o\1rdinary")]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"listener": "1883\nallow_anonymous true"}, "cannot stand in a line"),
        ({"user": " "}, "cannot stand in a line"),
        ({"password_file": "x"}, "no line password_file"),
        ({"log_type": "all"}, "or more than one"),
    ],
)
def test_what_would_make_another_configuration_is_refused(values: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        configuration("mosquitto-tls.conf", values)
    with pytest.raises(ConfigError, match="cannot be read"):
        configuration("mosquitto-carrier-pigeon.conf", {})


def test_the_files_of_a_home_name_its_paths(tmp_path: Path) -> None:
    files = tls_files(tmp_path / "broker", tmp_path / "tls", port=8884, address="127.0.0.1", account=os.geteuid())
    assert set(files) == {tmp_path / "broker" / "mosquitto.conf", tmp_path / "broker" / "acl"}
    text = files[tmp_path / "broker" / "mosquitto.conf"]
    for line in (
        "listener 8884 127.0.0.1",
        f"keyfile {tmp_path}/tls/broker.key",
        f"crlfile {tmp_path}/tls/crl.pem",
        f"acl_file {tmp_path}/broker/acl",
        f"persistence_location {tmp_path}/broker/data/",
    ):
        assert f"\n{line}\n" in text
    assert files[tmp_path / "broker" / "acl"] == (FOLDER / "acl").read_text()


def test_devices_may_read_every_kind_that_is_published_but_alerts() -> None:
    rules = (FOLDER / "acl").read_text()
    single = set(re.findall(r"^pattern read covey/v1/\+/pub/([a-z-]+)$", rules, re.MULTILINE))
    assert {kind for kind in SINGLE if kind not in single} == {topics.ALERT}
    role = next(
        r for r in json.loads((FOLDER / "dynamic-security.json").read_text())["roles"] if r["rolename"] == "device"
    )
    heard = {acl["topic"] for acl in role["acls"] if acl["acltype"] == "publishClientReceive"}
    assert heard == {f"covey/v1/+/pub/{kind}" for kind in single} | {"covey/v1/+/pub/+/+"}
    asked = {acl["topic"] for acl in role["acls"] if acl["acltype"] == "subscribePattern"}
    assert asked == heard


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.json")))
def test_json_is_json(name: str) -> None:
    json.loads((FOLDER / name).read_text())
