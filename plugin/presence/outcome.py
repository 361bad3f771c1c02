"""What an answer means for what was asked. Pure."""

from dataclasses import dataclass
from http import HTTPStatus

from plugin.errors import BadEndpoint, NoAnswer
from plugin.retry import retry_after_s
from plugin.web import Answer

MOST_WAIT_S = 300.0
LEAST_WAIT_S = 1.0
_TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True, slots=True)
class Accepted:
    """It was done."""

    body: bytes


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """The token counts no more, or never did."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """It was refused, and will be until something changes; `ambiguous` when it may have been done all the same."""

    reason: str
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class Deferred:
    """The server wants to be left alone for `wait_s`."""

    wait_s: float
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The server, or the way to it, is in trouble."""

    reason: str
    ambiguous: bool


Outcome = Accepted | TokenRefused | Rejected | Deferred | Failed


def judge(result: Answer | NoAnswer | BadEndpoint, *, wall: float) -> Outcome:
    """Return what a request came to; `wall` dates a Retry-After.

    Anything but a 2xx or a 4xx is ambiguous: the server may have done what it was asked.
    """
    match result:
        case BadEndpoint():
            return Rejected(f"bad_endpoint: {result.message}", ambiguous=False)
        case NoAnswer():
            return Failed(result.cause, ambiguous=True)
        case Answer(status=status):
            return _judge_answer(result, status, wall)


def _judge_answer(answer: Answer, status: int, wall: float) -> Outcome:
    family = status // 100
    reason = f"http_{status}"
    if family == 2:  # noqa: PLR2004 - the family of successes
        return Accepted(answer.body)
    if status == HTTPStatus.UNAUTHORIZED:
        return TokenRefused()
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        wait_s = retry_after_s(answer.headers.get("retry-after"), now=wall, most_s=MOST_WAIT_S)
        if wait_s is not None:
            # A "0" is no invitation to hammer it.
            return Deferred(max(wait_s, LEAST_WAIT_S), ambiguous=family == 5)  # noqa: PLR2004 - server errors
    if family in {3, 4} and status not in _TRANSIENT:
        return Rejected(reason, ambiguous=family == 3)  # noqa: PLR2004 - redirects
    return Failed(reason, ambiguous=family != 4)  # noqa: PLR2004 - client errors
