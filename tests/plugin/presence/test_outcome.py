from email.utils import formatdate

import pytest

from plugin.errors import BadEndpoint, NoAnswer
from plugin.presence.outcome import Accepted, Deferred, Failed, Outcome, Rejected, TokenRefused, judge
from plugin.web import Answer

WALL = 1_700_000_000.0


def judged(status: int, **headers: str) -> Outcome:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(Answer(status=status, headers=named, body=b"{}"), wall=WALL)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_accepted(status: int) -> None:
    assert judged(status) == Accepted(b"{}")


def test_only_401_refuses_the_token() -> None:
    assert judged(401) == TokenRefused()


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 410, 422, 451])
def test_a_4xx_is_a_refusal_and_says_that_nothing_was_done(status: int) -> None:
    assert judged(status) == Rejected(f"http_{status}", ambiguous=False)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_refusal_that_says_nothing_of_what_was_done(status: int) -> None:
    assert judged(status) == Rejected(f"http_{status}", ambiguous=True)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599, 199, 600])
def test_any_other_status_is_an_ambiguous_failure(status: int) -> None:
    assert judged(status) == Failed(f"http_{status}", ambiguous=True)


@pytest.mark.parametrize("status", [408, 425, 429])
def test_a_passing_4xx_is_a_failure_without_doubt(status: int) -> None:
    assert judged(status) == Failed(f"http_{status}", ambiguous=False)


@pytest.mark.parametrize(
    ("after", "wait_s"), [("7", 7.0), ("0", 1.0), ("9999", 300.0), (formatdate(WALL + 60, usegmt=True), 60.0)]
)
def test_retry_after_is_heeded_within_bounds(after: str, wait_s: float) -> None:
    assert judged(429, retry_after=after) == Deferred(wait_s, ambiguous=False)
    assert judged(503, retry_after=after) == Deferred(wait_s, ambiguous=True)


def test_a_retry_after_that_says_nothing_is_none() -> None:
    assert judged(503, retry_after="soon") == Failed("http_503", ambiguous=True)
    assert judged(500, retry_after="7") == Failed("http_500", ambiguous=True)


def test_no_answer_is_ambiguous_and_a_bad_endpoint_is_not() -> None:
    assert judge(NoAnswer("late", cause="timeout"), wall=WALL) == Failed("timeout", ambiguous=True)
    assert judge(BadEndpoint("plain http"), wall=WALL) == Rejected("bad_endpoint: plain http", ambiguous=False)
