"""`agentic.sync.status`: how sync stands; the platform adds to it when it can, and is never waited for long."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from plugin.clock import Clock, rfc3339
from plugin.errors import BadEndpoint, NoAnswer, StoreUnavailable
from plugin.secret import Secret
from plugin.store.interface import AgentTimes, GateState, QueueCounts, Store, StoreHealth
from plugin.sync.params import StatusParams, StoreView, SyncStatus, agent_of
from plugin.sync.platform import Platform, Scope
from plugin.sync.record import instant
from plugin.sync.sender import Sender
from plugin.web import Answer

REMOTE_S = 30.0
REMOTE_TIMEOUT_S = 5.0
_MAX_AGENTS = 256
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """What the platform said of an agent, or why it said nothing."""

    agent_id: str | None = None
    status: str | None = None
    last_push_at: str | None = None
    last_pull_at: str | None = None
    error: str | None = None
    reached: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What came of a question at a monotonic time, and the token that it was asked with."""

    at: float
    token: Secret
    remote: _Remote


@dataclass(frozen=True, slots=True, kw_only=True)
class _Local:
    counts: QueueCounts
    times: AgentTimes
    ledger: int
    context: int


_NOTHING = _Local(
    counts=QueueCounts(queued=0, dead=0, bytes=0, oldest_queued_ms=None),
    times=AgentTimes(last_push_ms=None, last_pull_ms=None),
    ledger=0,
    context=0,
)


class Status:
    """Serve the action; what the platform says of an agent is asked for once in 30 s, however often it is polled."""

    def __init__(
        self, *, store: Store, sender: Sender, scope: Scope, clock: Clock, remote_timeout_s: float = REMOTE_TIMEOUT_S
    ) -> None:
        self._remote_timeout_s = remote_timeout_s
        self._store = store
        self._sender = sender
        self._scope = scope
        self._clock = clock
        self._asking = asyncio.Lock()
        self._said: OrderedDict[tuple[str, str | None], _Said] = OrderedDict()

    async def __call__(self, params: StatusParams) -> SyncStatus:
        """Put together what is known here and what the platform says; a failing part leaves its numbers at nothing."""
        named = next(filter(None, (params.agent_id, params.agent_id_dashed, params.arg)), None)
        agent_id = agent_of(named, default=self._scope.config.agent_id)
        self._sender.look()
        remote = await self._remote(self._scope.platform, agent_id)
        local = await self._local(agent_id, named)
        return self._answer(agent_id, local, remote)

    async def _local(self, agent_id: str, named: str | None) -> _Local:
        store = self._store
        try:
            context = await store.context(self._scope.platform.url, agent_id, now_ms=round(self._clock.now() * 1000))
            return _Local(
                counts=await store.counts(named),
                times=await store.times(agent_id),
                ledger=await store.ledger_size(),
                context=len(context.rows),
            )
        except StoreUnavailable:
            # `store` in the answer says what is wrong with it.
            return _NOTHING

    async def _remote(self, platform: Platform, agent_id: str) -> _Remote:
        """Return what the platform says, at most 30 s old, or why it was not asked.

        A closed gate answers for it, unless its time is over and there is nothing to probe it with. A platform that
        gave one agent no answer is not waited for again by the others.
        """
        gate, obstacle = self._sender.gate, self._sender.obstacle()
        if platform.token() is None:
            return _unasked(platform)
        if gate.state is not GateState.READY and (obstacle is not None or self._sender.in_flight):
            return _Remote(error=obstacle or f"{gate.reason}; it is being tried again")
        async with self._asking:
            token, now = platform.token(), self._clock.monotonic()
            if token is None:
                return _unasked(platform)
            for key in ((platform.url, agent_id), (platform.url, None)):
                said = self._said.get(key)
                if said is not None and said.token == token and now - said.at < REMOTE_S:
                    return said.remote
            remote = await self._ask(platform, agent_id, token)
            key = (platform.url, agent_id if remote.reached else None)
            self._said[key] = _Said(at=now, token=token, remote=remote)
            self._said.move_to_end(key)
            if len(self._said) > _MAX_AGENTS:
                self._said.popitem(last=False)
            return remote

    async def _ask(self, platform: Platform, agent_id: str, token: Secret) -> _Remote:
        try:
            async with asyncio.timeout(self._remote_timeout_s):
                answer = await platform.status(agent_id, token)
        except TimeoutError:
            return _Remote(error=f"no answer within {self._remote_timeout_s:g} s", reached=False)
        except (NoAnswer, BadEndpoint) as failure:
            return _Remote(error=failure.message, reached=False)
        await self._sender.overhear(platform.url, answer)
        return _read(answer)

    def _answer(self, agent_id: str, local: _Local, said: _Remote) -> SyncStatus:
        counts, times = local.counts, local.times
        return SyncStatus(
            agent_id=said.agent_id or agent_id,
            status=(said.status or "online") if said.error is None else "offline",
            queued=counts.queued,
            context_count=local.context,
            dead=counts.dead,
            bytes=counts.bytes,
            ledger=local.ledger,
            in_flight=self._sender.in_flight,
            enabled=self._scope.config.sync.enabled,
            gate=self._sender.gate,
            store=_store_view(self._store.health),
            last_push_at=said.last_push_at or _time(times.last_push_ms),
            last_pull_at=said.last_pull_at or _time(times.last_pull_ms),
            oldest_queued_at=_time(counts.oldest_queued_ms),
            remote_error=said.error or UNSET,
        )


def _unasked(platform: Platform) -> _Remote:
    return _Remote(error=f"no token for the platform: {platform.token_problem}")


def _read(answer: Answer) -> _Remote:
    """Read the platform's answer: `data`, `data.status` when that is an object, or the whole body."""
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return _Remote(error=f"the platform answered {answer.status}")
    try:
        values = msgspec.json.decode(answer.body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Remote(error="the platform answered with something other than JSON")
    for key in ("data", "status"):
        inner = values.get(key)
        if isinstance(inner, dict):
            values = cast("dict[str, object]", inner)
    return _Remote(
        agent_id=_text(values.get("agent_id")),
        status=_text(values.get("status")),
        last_push_at=_moment(values.get("last_push_at")),
        last_pull_at=_moment(values.get("last_pull_at")),
    )


def _text(value: object) -> str | None:
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None


def _moment(value: object) -> str | None:
    try:
        moment = instant(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if moment is None else rfc3339(round(moment.timestamp() * 1000))


def _time(ms: int | None) -> str | UnsetType:
    return UNSET if ms is None else rfc3339(ms)


def _store_view(health: StoreHealth) -> StoreView:
    return StoreView(
        state=health.state,
        reason=_or_unset(health.reason),
        salvaged=_or_unset(health.salvaged),
        lost=_or_unset(health.lost),
        set_aside=_or_unset(health.set_aside),
        pid=_or_unset(health.pid),
    )


_T = TypeVar("_T")


def _or_unset(value: _T | None) -> _T | UnsetType:
    return UNSET if value is None else value
