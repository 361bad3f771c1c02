"""The fault menu: what a loopback server does wrong, as values in an ordered list that a test can read.

Every fault says `applied`: whether the request takes effect before things go wrong. Servers record each request before
any fault, so an arrival is never lost to one.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answer with this status, these headers and this body."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAfter:
    """Answer 429 (or another code) with Retry-After: whole seconds, or the HTTP date that lies so far ahead."""

    seconds: int
    as_date: bool = False
    code: int = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Answer as usual, but say in the X-RateLimit headers that nothing is left until the reset.

    The reset is `reset_s` seconds from now, written as such or as an epoch.
    """

    reset_s: int
    remaining: int = 0
    as_epoch: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Answer as usual, but only after `seconds`, or once `until` is set.

    With `late` the effect takes place after the wait even when the caller has gone away meanwhile.
    """

    seconds: float = 0.0
    until: asyncio.Event | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; the connection stays open until the caller leaves or the server stops."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection instead of answering."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Announce an answer, send the first bytes of it, and reset the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drip:
    """Answer 200 with a body that never ends: one piece per interval."""

    piece: bytes = b" "
    interval_s: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class NotHttp:
    """Answer with bytes that are not HTTP, and close."""

    raw: bytes = b"SSH-2.0-OpenSSH_9.6\r\n"


@dataclass(frozen=True, slots=True)
class LostRows:
    """Forget everything the server held, then go on as usual."""


Kind = Status | RetryAfter | RateLimit | Delay | Hang | Reset | Cut | Drip | NotHttp | LostRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which requests a fault is for; None matches every one."""

    route: str | None = None
    agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One line of the menu; `times` None means until it is removed."""

    kind: Kind
    times: int | None = 1
    match: Match = Match()
    applied: bool = False


class Request(Protocol):
    """What of a request a fault is chosen by."""

    @property
    def route(self) -> str:
        """The name of the route."""
        ...

    @property
    def agent(self) -> str:
        """The agent (or, at a guild, the user) that it is about."""
        ...


class FaultMenu:
    """An ordered list of faults: for each request the first one that matches is taken, at most once per request."""

    def __init__(self) -> None:
        self._lines: list[tuple[Fault, int | None]] = []

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults still to come, in order."""
        return tuple(fault for fault, _ in self._lines)

    def add(
        self,
        kind: Kind,
        *,
        times: int | None = 1,
        route: str | None = None,
        agent: str | None = None,
        applied: bool = False,
    ) -> Fault:
        """Append a fault and return it; `times` None keeps it until `remove` or `clear`."""
        fault = Fault(kind=kind, times=times, match=Match(route=route, agent=agent), applied=applied)
        self._lines.append((fault, times))
        return fault

    def remove(self, fault: Fault) -> None:
        """Take a fault off the menu; one that is used up is no error."""
        self._lines = [line for line in self._lines if line[0] is not fault]

    def clear(self) -> None:
        """Take every fault off the menu."""
        self._lines = []

    def take(self, request: Request) -> Fault | None:
        """Return the fault for this request and count it, None for good behaviour."""
        for index, (fault, left) in enumerate(self._lines):
            if fault.match.route not in (None, request.route) or fault.match.agent not in (None, request.agent):
                continue
            if left is not None:
                self._lines[index : index + 1] = [(fault, left - 1)] if left > 1 else []
            return fault
        return None


def unauthorised() -> Status:
    """Refuse the token, as the platform does."""
    return Status(code=401, body=b'{"error":"unauthorised","message":"The token is not known."}')


def forbidden(error: str = "forbidden") -> Status:
    """Refuse what was asked, as the platform does; `ip_not_allowed` is its other word."""
    return Status(code=403, body=b'{"error":"%s","message":"Not allowed."}' % error.encode())


def redirect(to: str, code: int = 307) -> Status:
    """Send the caller somewhere else; it must not go there."""
    return Status(code=code, headers={"Location": to})


def login_page() -> Status:
    """Answer 200 with the page that a captive portal or an expired session shows."""
    return Status(code=200, headers={"Content-Type": "text/html"}, body=b"<!doctype html><title>Log in</title>")


def garbage() -> Status:
    """Answer 200, announced as JSON, with bytes that are not."""
    return Status(code=200, headers={"Content-Type": "application/json"}, body=b'{"data": {"synced": 1\xff')


def other_json() -> Status:
    """Answer 200 with JSON of another shape than the contract's."""
    return Status(code=200, headers={"Content-Type": "application/json"}, body=b'{"ok": true, "data": ["synced"]}')


def endless() -> Drip:
    """Answer with a body that never ends, as fast as it is read."""
    return Drip(piece=b" " * 65536, interval_s=0.0)
