"""covey_agent.tls_pairs: a key and its certificate are never parted, and what opened the door yesterday stays."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from tests.agent.cuts import Cut, PowerCut, steps

from covey_agent.tls_pairs import FOLDER, TlsPairs
from covey_aggregator.tls import Authority, Certificate, make_authority, make_key
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.signed_time import RELEASED

DAY = 86400
NOW = RELEASED + 300 * DAY


@pytest.fixture(scope="module")
def authority() -> Authority:
    key = make_key()
    return Authority(key, make_authority(key, "meadow", NOW), "test")


def pairs_of(home: Path) -> TlsPairs:
    home.mkdir(exist_ok=True)
    return TlsPairs(home, home / "client.pem", home / "client.key", NOW)


def issue(authority: Authority, pairs: TlsPairs, now: int = NOW) -> tuple[Certificate, bytes]:
    wanted = pairs.wanted()
    return authority.client("pi-1", wanted, now), wanted


def loads(path: Path) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path)


def test_a_renewed_pair_comes_first_and_the_bundles_last(tmp_path: Path, authority: Authority) -> None:
    pairs = pairs_of(tmp_path)
    first = (tmp_path / "client.pem", tmp_path / "client.key")
    assert (pairs.candidates(), pairs.not_after) == ([first], NOW)
    ends = []
    for year in range(4):
        made, wanted = issue(authority, pairs, NOW + year * 300 * DAY)
        pairs.take(made.pem, wanted, made.not_after)
        ends.append(made.not_after)
    renewed = [tmp_path / FOLDER / f"pair-{end}.pem" for end in ends]
    for again in (pairs, pairs_of(tmp_path)):
        assert again.candidates() == [(renewed[3], renewed[3]), (renewed[2], renewed[2]), first]
        assert again.not_after == ends[3]
    for path in renewed[2:]:
        loads(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [path.name for path in renewed[2:]]


def test_one_key_is_asked_for_until_it_is_answered(tmp_path: Path, authority: Authority) -> None:
    pairs = pairs_of(tmp_path)
    made, wanted = issue(authority, pairs)
    assert pairs_of(tmp_path).wanted() == wanted
    pairs.take(made.pem, wanted, made.not_after)
    assert pairs.wanted() != wanted


def test_what_was_not_asked_for_is_not_taken(tmp_path: Path, authority: Authority) -> None:
    pairs = pairs_of(tmp_path)
    with pytest.raises(StaleError):
        pairs.take("", bytes(32), NOW + 1)
    made, wanted = issue(authority, pairs)
    for public, end in ((bytes(32), made.not_after), (wanted, NOW)):
        with pytest.raises(StaleError):
            pairs.take(made.pem, public, end)
    other = authority.client("pi-1", pairs_of(tmp_path / "other").wanted(), NOW)
    for text in ("", "no certificate", "ä", other.pem):
        with pytest.raises(RefusedError):
            pairs.take(text, wanted, made.not_after)
    assert len(pairs.candidates()) == 1
    pairs.take(made.pem, wanted, made.not_after)
    with pytest.raises(StaleError):
        pairs.take(made.pem, wanted, made.not_after)


def test_a_damaged_key_is_made_anew(tmp_path: Path, authority: Authority) -> None:
    pairs = pairs_of(tmp_path)
    wanted = pairs.wanted()
    (tmp_path / FOLDER / "wanted.key").write_bytes(b"short")
    assert pairs.wanted() != wanted


@pytest.mark.parametrize("half", [False, True])
def test_power_cuts_anywhere_leave_a_pair_that_fits(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    rehearsal = pairs_of(tmp_path / "rehearsal")
    made, wanted = issue(authority, rehearsal)
    count = steps(monkeypatch, lambda: rehearsal.take(made.pem, wanted, made.not_after))
    assert count > 8
    for step in range(count):
        home = tmp_path / str(step)
        pairs = pairs_of(home)
        made, wanted = issue(authority, pairs)
        with Cut(monkeypatch, step, half=half), pytest.raises(PowerCut):
            pairs.take(made.pem, wanted, made.not_after)
        after = pairs_of(home)
        for path, key in after.candidates():
            if key == path:
                loads(path)
        if len(after.candidates()) == 1:
            after.take(made.pem, wanted, made.not_after)  # the answer comes again
        assert after.not_after == made.not_after
