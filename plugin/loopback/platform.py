"""The platform's API on this machine: records, context and status, with or without deduplication.

POST /v1/agent/sync      {agent_id, dispatches: [...]}     201 {"data": {"synced": n}}
GET  /v1/agent/context   ?agent_id=&since=                 200 {"data": [row, ...], "total": n}
GET  /v1/agent/status    ?agent_id=                        200 {"data": {agent_id, status, last_push_at, last_pull_at}}
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from plugin.clock import Clock
from plugin.loopback.server import Arrival, Reply, Route, Server, Subject

MAX_ROWS = 25

Row = Mapping[str, Any]


class SyncBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is posted to the sync route."""

    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    dispatches: list[dict[str, Any]]


class _Dispatch(msgspec.Struct, frozen=True, kw_only=True):
    id: Any = ""


class _Posted(msgspec.Struct, frozen=True, kw_only=True):
    """The little that is read of any body, for the list of arrivals."""

    agent_id: str = ""
    dispatches: list[_Dispatch] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One effect: a row that the platform inserted, with the Idempotency-Key and the number of the arrival."""

    id: str
    agent: str
    body: Row
    key: str | None
    arrival: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateWindow:
    """So many calls for each token in so many seconds."""

    calls: int = 100
    seconds: float = 60.0


class LoopbackPlatform(Server):
    """A platform that keeps what it got. Its routes are called sync, context and status.

    `deduplicate` honours the Idempotency-Key (the public platform does not); with `strict_keys` a key that comes again
    with another body is refused with 422. Requests that hold a record of `poison` are refused whole, with 422.
    """

    def __init__(
        self,
        *,
        tokens: tuple[str, ...] = ("loopback-token",),
        deduplicate: bool = True,
        strict_keys: bool = True,
        rate: RateWindow | None = None,
        prefix: str = "",
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Describe the platform; nothing is opened before `start`."""
        route, checked = "/v1/agent/", self._checked
        super().__init__(
            (
                Route(name="sync", method="POST", path=f"{route}sync", subject=_posted, apply=checked(self._sync)),
                Route(name="context", method="GET", path=f"{route}context", subject=_asked, apply=checked(self._pull)),
                Route(name="status", method="GET", path=f"{route}status", subject=_asked, apply=checked(self._state)),
            ),
            clock=clock,
            tls=tls,
            prefix=prefix,
            lose=self.lose_rows,
            limits=self._rate_headers,
        )
        self.tokens = set(tokens)
        self.deduplicate = deduplicate
        self.strict_keys = strict_keys
        self.rate = rate
        self.records: list[Record] = []
        self.context_rows: list[Row] = []
        self.status: dict[str, str] = {}
        self.poison: set[str] = set()
        self.max_bytes: int | None = None
        self.max_records: int | None = None
        self._answers: dict[str, tuple[str, Reply]] = {}
        self._last_push: dict[str, str] = {}
        self._last_pull: dict[str, str] = {}
        self._window_ends = 0.0
        self._calls: dict[str, int] = {}

    @property
    def pushes(self) -> list[Arrival]:
        """The arrivals at the sync route."""
        return [arrival for arrival in self.arrivals if arrival.route == "sync"]

    def lose_rows(self) -> None:
        """Forget records, context and the answers kept for idempotency keys."""
        self.records.clear()
        self.context_rows.clear()
        self._answers.clear()

    def _checked(self, route: Callable[[Arrival, bytes], Reply]) -> Callable[[Arrival, bytes], Reply]:
        def apply(arrival: Arrival, body: bytes) -> Reply:
            if arrival.token not in self.tokens:
                return _refusal(401, error="unauthorised", message="The token is not known.")
            if self.rate is not None and not self._admit(self.rate, arrival.token or ""):
                wait_s = max(1, round(self._window_ends - self.clock.now()))
                reply = _refusal(429, error="rate_limited", message="Too many requests.")
                return Reply(status=reply.status, data=reply.data, headers={"Retry-After": str(wait_s)})
            return route(arrival, body)

        return apply

    def _admit(self, rate: RateWindow, token: str) -> bool:
        now = self.clock.now()
        if now >= self._window_ends:
            self._window_ends = now + rate.seconds
            self._calls = {}
        self._calls[token] = self._calls.get(token, 0) + 1
        return self._calls[token] <= rate.calls

    def _rate_headers(self) -> dict[str, str]:
        rate = self.rate or RateWindow()
        used = max(self._calls.values(), default=0)
        ends = self._window_ends or self.clock.now() + rate.seconds
        return {
            "X-RateLimit-Limit": str(rate.calls),
            "X-RateLimit-Remaining": str(max(0, rate.calls - used)),
            "X-RateLimit-Reset": str(round(ends)),
        }

    def _sync(self, arrival: Arrival, body: bytes) -> Reply:
        if self.max_bytes is not None and len(body) > self.max_bytes:
            return _refusal(413, error="too_large", message="The request is too large.")
        try:
            posted = msgspec.json.decode(body, type=SyncBody)
        except msgspec.ValidationError as exc:
            return _invalid("agent_id" if "agent_id" in str(exc) else "dispatches", str(exc))
        except msgspec.DecodeError as exc:
            return _refusal(400, error="bad_request", message=f"Not JSON: {exc}")
        if self.max_records is not None and len(posted.dispatches) > self.max_records:
            return _refusal(413, error="too_large", message="Too many records in one request.")
        return self._once(arrival, posted)

    def _once(self, arrival: Arrival, posted: SyncBody) -> Reply:
        key = arrival.key if self.deduplicate else None
        if key is not None and (stored := self._answers.get(key)):
            same = stored[0] == arrival.body_sha256
            return stored[1] if same or not self.strict_keys else _invalid("Idempotency-Key", "used for another body")
        for index, record in enumerate(posted.dispatches):
            if record.get("id") in self.poison:
                return _invalid(f"dispatches.{index}", "This record is not acceptable.")
        reply = self._insert(arrival, posted)
        if key is not None:
            self._answers[key] = (arrival.body_sha256, reply)
        return reply

    def _insert(self, arrival: Arrival, posted: SyncBody) -> Reply:
        kept = [record for record in posted.dispatches if record.get("repo") or record.get("workspace")]
        self.records += (
            Record(
                id=str(record.get("id", "")),
                agent=posted.agent_id,
                body=record,
                key=arrival.key,
                arrival=arrival.number,
            )
            for record in kept
        )
        self._last_push[posted.agent_id] = self._stamp()
        return Reply(status=201, data={"data": {"synced": len(kept)}})

    def _pull(self, arrival: Arrival, _body: bytes) -> Reply:
        if problem := _agent_problem(arrival):
            return problem
        since = _when(arrival.query.get("since"))
        now = datetime.fromtimestamp(self.clock.now(), UTC)
        rows = [row for row in self.context_rows if _served(row, arrival.agent, since, now)]
        rows.sort(key=lambda row: _when(row.get("created_at")) or now, reverse=True)
        self._last_pull[arrival.agent] = self._stamp()
        return Reply(data={"data": rows[:MAX_ROWS], "total": len(rows)})

    def _state(self, arrival: Arrival, _body: bytes) -> Reply:
        if problem := _agent_problem(arrival):
            return problem
        agent = arrival.agent
        data = {
            "agent_id": agent,
            "status": self.status.get(agent, "idle"),
            "last_push_at": self._last_push.get(agent),
            "last_pull_at": self._last_pull.get(agent),
        }
        return Reply(data={"data": data})

    def _stamp(self) -> str:
        return datetime.fromtimestamp(self.clock.now(), UTC).isoformat()


def _refusal(status: int, *, error: str, message: str) -> Reply:
    return Reply(status=status, data={"error": error, "message": message})


def _invalid(path: str, problem: str) -> Reply:
    return Reply(status=422, data={"message": "The given data was invalid.", "errors": {path: [problem]}})


def _agent_problem(arrival: Arrival) -> Reply | None:
    if not arrival.agent:
        return _invalid("agent_id", "The agent id is required.")
    return _invalid("agent_id", "The agent id is too long.") if len(arrival.agent) > 255 else None  # noqa: PLR2004


def _posted(_params: Mapping[str, str], body: bytes) -> Subject:
    try:
        posted = msgspec.json.decode(body, type=_Posted)
    except msgspec.DecodeError:
        return Subject()
    return Subject(agent=posted.agent_id, ids=tuple(str(dispatch.id) for dispatch in posted.dispatches))


def _asked(params: Mapping[str, str], _body: bytes) -> Subject:
    return Subject(agent=params.get("agent_id", ""))


def _when(text: object) -> datetime | None:
    try:
        when = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when is not None and when.tzinfo is None else when


def _served(row: Row, agent: str, since: datetime | None, now: datetime) -> bool:
    """Say whether a row is for this agent, has not expired, and is not older than `since` (inclusive)."""
    created, expires = _when(row.get("created_at")), _when(row.get("expires_at"))
    return (
        row.get("agent_id") in (None, agent)
        and (expires is None or expires > now)
        and (since is None or created is None or created >= since)
    )
