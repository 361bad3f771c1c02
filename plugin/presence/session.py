"""An agent's session at the center as one immutable value: the guilds it belongs to, and the token for each. Pure."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import msgspec

from plugin.errors import BadEndpoint
from plugin.secret import Secret

MAX_GUILDS = 1000
_LEAST_TTL_S = 1.0


@dataclass(frozen=True, slots=True)
class Seat:
    """An agent's place in one guild. The token is for this endpoint and no other, so the two are never parted.

    `problem` says why the endpoint must not be contacted; `ttl_s` is how long the guild keeps a presence.
    """

    endpoint: str
    token: Secret
    ttl_s: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one login gave. Times are monotonic seconds; `serial` is never used twice in a process."""

    serial: int
    user_id: str | None
    seats: Mapping[str, Seat] = field(repr=False)
    began_at: float
    expires_at: float = math.inf
    dropped: int = 0


class SessionInvalid(ValueError):
    """The center's answer is not a session; the text never repeats any of it."""


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class _Entry(msgspec.Struct, frozen=True):
    node_id: _Id
    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    token: Annotated[str, msgspec.Meta(min_length=1)]
    ttl_s: Annotated[float, msgspec.Meta(gt=0)] | None = None


class _Answer(msgspec.Struct, frozen=True):
    guilds: list[msgspec.Raw]
    user_id: _Id | None = None
    expires_at: float | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When the answer came, by both clocks."""

    now: float
    wall: float


def parse(body: bytes, *, serial: int, at: Moment, check: Callable[[str], str]) -> Session:
    """Read the center's answer, or raise SessionInvalid.

    An entry that is no guild, and all beyond the first 1,000, are left out and counted in `dropped`. `check` returns
    the endpoint in its normal form, or raises BadEndpoint.
    """
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        where = str(exc) if isinstance(exc, msgspec.ValidationError) else "it is not JSON"
        raise SessionInvalid(f"the center's answer is no session: {where}") from None
    seats: dict[str, Seat] = {}
    for raw in answer.guilds[:MAX_GUILDS]:
        entry = _entry(raw)
        if entry is not None:
            seats[sys.intern(entry.node_id)] = _seat(entry, check)
    return Session(
        serial=serial,
        user_id=answer.user_id,
        seats=seats,
        began_at=at.now,
        expires_at=_expiry(answer.expires_at, at),
        dropped=len(answer.guilds) - len(seats),
    )


def _entry(raw: msgspec.Raw) -> _Entry | None:
    try:
        return msgspec.json.decode(raw, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _seat(entry: _Entry, check: Callable[[str], str]) -> Seat:
    ttl_s = None if entry.ttl_s is None else max(entry.ttl_s, _LEAST_TTL_S)
    token = Secret(entry.token)
    try:
        return Seat(sys.intern(check(entry.endpoint)), token, ttl_s)
    except BadEndpoint as exc:
        return Seat("", token, ttl_s, exc.message)


def _expiry(stated: float | str | None, at: Moment) -> float:
    """Return the monotonic time of expiry; one already past means clocks that disagree, and is left to the next 401."""
    if isinstance(stated, str):
        try:
            date = datetime.fromisoformat(stated)
        except ValueError:
            return math.inf
        # A date without a zone would be read as this machine's local time, which the center cannot know.
        stated = date.timestamp() if date.tzinfo is not None else None
    if stated is None or stated <= at.wall:
        return math.inf
    return at.now + (stated - at.wall)
