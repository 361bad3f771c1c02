import json
import math

import pytest

from plugin.errors import BadEndpoint
from plugin.presence.session import MAX_GUILDS, Moment, Session, SessionInvalid, parse
from plugin.secret import Secret

AT = Moment(now=1000.0, wall=1_700_000_000.0)
SEAT: dict[str, object] = {"node_id": "g1", "endpoint": "https://one", "token": "t-1"}


def check(endpoint: str) -> str:
    if endpoint.startswith("http:"):
        raise BadEndpoint("plain http")
    return endpoint.rstrip("/")


def read(answer: object, serial: int = 1) -> Session:
    return parse(json.dumps(answer).encode(), serial=serial, at=AT, check=check)


def test_a_session_holds_each_guilds_endpoint_and_token_together() -> None:
    session = read(
        {"user_id": "u", "guilds": [SEAT, {**SEAT, "node_id": "g2", "endpoint": "https://two/", "ttl_s": 90}]}
    )

    assert session.user_id == "u"
    assert session.began_at == 1000.0
    assert session.seats["g1"].endpoint == "https://one"
    assert session.seats["g1"].token == Secret("t-1")
    assert session.seats["g1"].ttl_s is None
    assert session.seats["g2"].endpoint == "https://two"
    assert session.seats["g2"].ttl_s == 90.0


def test_unknown_members_are_ignored_and_a_user_id_may_be_absent() -> None:
    session = read({"guilds": [], "more": 1})

    assert session.user_id is None
    assert session.seats == {}


def test_a_guild_with_a_bad_endpoint_keeps_its_place_and_says_why() -> None:
    session = read({"user_id": "u", "guilds": [{**SEAT, "endpoint": "http://one"}]})

    assert session.seats["g1"].problem == "plain http"


@pytest.mark.parametrize(
    "entry",
    [
        {"node_id": "g2"},
        {**SEAT, "node_id": ""},
        {**SEAT, "node_id": "g2", "token": ""},
        {**SEAT, "node_id": "g2", "ttl_s": 0},
        "g2",
        None,
        SEAT,
    ],
)
def test_an_entry_that_is_no_guild_is_left_out_and_counted(entry: object) -> None:
    session = read({"user_id": "u", "guilds": [SEAT, entry]})

    assert set(session.seats) == {"g1"}
    assert session.dropped == 1


def test_the_list_of_guilds_is_bounded() -> None:
    session = read({"user_id": "u", "guilds": [{**SEAT, "node_id": f"g{n}"} for n in range(MAX_GUILDS + 5)]})

    assert len(session.seats) == MAX_GUILDS
    assert session.dropped == 5


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"user_id": "u"}', b'{"guilds": {}}', b"\xff", b"[" * 5000])
def test_an_answer_that_is_no_session_is_refused_without_repeating_it(body: bytes) -> None:
    with pytest.raises(SessionInvalid) as caught:
        parse(body, serial=1, at=AT, check=check)

    assert caught.value.__cause__ is None
    assert "html" not in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "expires_at"),
    [
        (AT.wall + 60, 1060.0),
        ("2023-11-14T22:14:20Z", 1060.0),
        ("2023-11-14T23:14:20+01:00", 1060.0),
        (None, math.inf),
        ("soon", math.inf),
        ("2023-11-14T22:14:20", math.inf),
        ("2023-11-14T22:13:20Z", math.inf),
        (AT.wall - 5, math.inf),
    ],
)
def test_an_expiry_counts_from_now_and_one_in_the_past_is_left_to_the_next_401(
    stated: object, expires_at: float
) -> None:
    assert read({"guilds": [], "expires_at": stated}).expires_at == pytest.approx(expires_at)


def test_a_very_short_ttl_is_a_second() -> None:
    assert read({"guilds": [{**SEAT, "ttl_s": 0.001}]}).seats["g1"].ttl_s == 1.0


def test_no_token_is_in_the_repr_of_a_session() -> None:
    session = read({"user_id": "u", "guilds": [SEAT]})

    assert "t-1" not in repr(session)
    assert "t-1" not in repr(session.seats)
