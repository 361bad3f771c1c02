"""`agentic.sync.pull`: fleet context comes back, and stays readable offline."""

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import msgspec

from plugin.clock import Clock, rfc3339
from plugin.errors import BadEndpoint, NoAnswer, StoreUnavailable
from plugin.store.interface import ContextRow, HistoryEntry, Store
from plugin.sync.params import JsonObject, PullParams, PullResult, agent_of, node_of
from plugin.sync.platform import Platform, Scope
from plugin.sync.record import instant, text_of
from plugin.sync.sender import Sender
from plugin.web import Answer

MAX_ROWS = 1000
PATIENCE_S = 5.0

_LOG = logging.getLogger(__name__)
_KEYS = ("context", "items", "memories")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What a pull asks; who asks the same of the same connection waits for the same answer."""

    platform: Platform
    agent_id: str
    node: int | None
    since: str | None


class Pull:
    """Serve the action for any number of callers at once."""

    def __init__(
        self, *, store: Store, sender: Sender, scope: Scope, clock: Clock, patience_s: float = PATIENCE_S
    ) -> None:
        self._patience_s = patience_s
        self._store = store
        self._sender = sender
        self._scope = scope
        self._clock = clock
        self._problem: str | None = None
        self._flights: dict[_Question, asyncio.Task[PullResult | None]] = {}

    async def __call__(self, params: PullParams) -> PullResult:
        """Return fresh rows and keep them, or the kept ones when the platform gives none.

        With rows kept from an earlier pull, the platform is waited for 5 s at most; what it answers after that is kept
        for the next one. StoreUnavailable only when neither can be had.
        """
        agent_id = agent_of(params.agent_id, params.agent_id_dashed, params.arg, default=self._scope.config.agent_id)
        node = node_of(params.fleet_node_id, params.fleet_node_id_dashed)
        since = (params.since or "").strip() or None
        platform = self._scope.platform
        self._sender.look()
        fresh = await self._wait(_Question(platform=platform, agent_id=agent_id, node=node, since=since))
        return await self._cached(platform, agent_id) if fresh is None else fresh

    async def finish(self) -> None:
        """Give up what nobody waits for any more."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _wait(self, question: _Question) -> PullResult | None:
        """Ask, or join who asks the same already; None when it takes too long or the platform gives nothing."""
        patience_s = self._patience_s if await self._has_cache(question.platform, question.agent_id) else None
        flight = self._flights.get(question)
        if flight is None:
            flight = self._flights[question] = asyncio.create_task(self._ask(question))
            flight.add_done_callback(lambda _: self._flights.pop(question))
        done, _ = await asyncio.wait((flight,), timeout=patience_s)
        if not done:
            self._tell(f"no answer within {self._patience_s:g} s")
        return flight.result() if done else None

    async def _ask(self, question: _Question) -> PullResult | None:
        platform = question.platform
        token = platform.token()
        if token is None or self._sender.limited:
            return None
        try:
            answer = await platform.context(question.agent_id, question.since, token)
        except (NoAnswer, BadEndpoint) as failure:
            self._tell(failure.message)
            return None
        await self._sender.overhear(platform.url, answer)
        found = recognise(answer)
        if found is None:
            self._tell(f"the platform answered {answer.status} without a list of rows")
            return None
        self._tell(None)
        now_ms = round(self._clock.now() * 1000)
        rows = [row for row in found if not _expired(row, now_ms)][:MAX_ROWS]
        await self._keep(question, rows, payload_bytes=len(answer.body), now_ms=now_ms)
        return PullResult(success=True, count=len(rows), context=rows, stale=False, fetched_at=rfc3339(now_ms))

    async def _has_cache(self, platform: Platform, agent_id: str) -> bool:
        try:
            cached = await self._store.context(platform.url, agent_id, now_ms=round(self._clock.now() * 1000))
        except StoreUnavailable:
            # What cannot be read answers nobody: the platform may take its time.
            return False
        return cached.fetched_ms is not None

    def _tell(self, problem: str | None) -> None:
        """Log what keeps context from coming, once for as long as it is the same, and when it comes again."""
        before, self._problem = self._problem, problem
        if problem is None and before is not None:
            _LOG.info("fleet context comes again", extra={"fields": {"problem": before}})
        elif problem != before:
            _LOG.warning("no fleet context came; the cache answers", extra={"fields": {"problem": problem}})

    async def _keep(self, question: _Question, rows: list[JsonObject], *, payload_bytes: int, now_ms: int) -> None:
        """Write the cache; rows that cannot be kept are still good to be answered."""
        url, agent_id = question.platform.url, question.agent_id
        entry = HistoryEntry(
            agent_id=agent_id,
            fleet_node_id=question.node,
            direction="pull",
            payload_bytes=payload_bytes,
            items=len(rows),
            at_ms=now_ms,
        )
        kept = [_kept(row) for row in rows]
        try:
            if question.since is None:
                await self._store.replace_context(url, agent_id, kept, entry=entry)
            else:
                await self._store.merge_context(url, agent_id, kept, entry=entry, keep=MAX_ROWS)
        except StoreUnavailable as error:
            _LOG.warning("fleet context cannot be kept", extra={"fields": {"problem": error.message}})

    async def _cached(self, platform: Platform, agent_id: str) -> PullResult:
        cached = await self._store.context(platform.url, agent_id, now_ms=round(self._clock.now() * 1000))
        rows = [msgspec.json.decode(body, type=JsonObject) for body in cached.rows]
        fetched_at = None if cached.fetched_ms is None else rfc3339(cached.fetched_ms)
        return PullResult(success=True, count=len(rows), context=rows, stale=True, fetched_at=fetched_at)


def recognise(answer: Answer) -> list[JsonObject] | None:
    """Return the rows of an answer; None when it has no list of them, so that nothing may be concluded from it.

    The list is `data`, else `data.context|items|memories`, else the same keys at the top; one with rows goes before an
    empty one. What is no object in it is left out, and a list of nothing else is none.
    """
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    try:
        body: object = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    lists = [found for found in map(_objects, _lists(cast("JsonObject", body))) if found is not None]
    return next((found for found in lists if found), lists[0] if lists else None)


def _lists(body: JsonObject) -> Iterator[list[object]]:
    data: object = body.get("data")
    if isinstance(data, list):
        yield cast("list[object]", data)
    nested = cast("JsonObject", data) if isinstance(data, dict) else {}
    for place in (nested, body):
        yield from (place[key] for key in _KEYS if isinstance(place.get(key), list))


def _objects(values: list[object]) -> list[JsonObject] | None:
    objects = [cast("JsonObject", value) for value in values if isinstance(value, dict)]
    left_out = len(values) - len(objects)
    if left_out:
        _LOG.warning("fleet context holds what is no row", extra={"fields": {"left_out": left_out}})
    return objects if objects or not values else None


def _kept(row: JsonObject) -> ContextRow:
    body = msgspec.json.encode(row)
    row_id = text_of(row.get("id")) or hashlib.sha256(body).hexdigest()
    return ContextRow(id=row_id, body=body, expires_ms=_expires_ms(row))


def _expired(row: JsonObject, now_ms: int) -> bool:
    expires_ms = _expires_ms(row)
    return expires_ms is not None and expires_ms <= now_ms


def _expires_ms(row: JsonObject) -> int | None:
    """Read `expires_at`; a row whose text says no time is served until it is replaced."""
    text = row.get("expires_at")
    try:
        moment = instant(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return None if moment is None else round(moment.timestamp() * 1000)
