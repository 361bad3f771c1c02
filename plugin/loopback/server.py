"""The server below the loopback platform, center and guilds: it listens, records, counts, and misbehaves on request."""

import asyncio
import hashlib
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Self, assert_never

import msgspec
from aiohttp import web

from plugin.clock import Clock, SystemClock
from plugin.loopback.faults import (
    Cut,
    Delay,
    Drip,
    Fault,
    FaultMenu,
    Hang,
    LostRows,
    NotHttp,
    RateLimit,
    Reset,
    RetryAfter,
    Status,
)
from plugin.loopback.sockets import bound, cut, drip, reset, write_raw

_BACKLOG = 1024
_MAX_BODY_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom and what a request is about, as far as it can be read."""

    agent: str = ""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request as it came, before any fault; `at` is monotonic seconds, `key` its Idempotency-Key."""

    number: int
    at: float
    route: str
    method: str
    path: str
    query: Mapping[str, str]
    host: str
    token: str | None = field(repr=False)
    key: str | None
    agent: str
    ids: tuple[str, ...]
    body_bytes: int
    body_sha256: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a route answers: `data` becomes JSON, None an empty body."""

    status: int = 200
    data: object = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route: `subject` reads whom it is about, `apply` takes effect and answers; neither waits.

    `subject` gets the parameters of query and path, both get the body.
    """

    name: str
    method: str
    path: str
    subject: Callable[[Mapping[str, str], bytes], Subject]
    apply: Callable[[Arrival, bytes], Reply]


# Requests to anywhere else are recorded too: what was not to be contacted must be seen when it is.
_UNKNOWN = Route(
    name="unknown",
    method="*",
    path="/",
    subject=lambda _params, _body: Subject(),
    apply=lambda _arrival, _body: Reply(status=404, data={"error": "not_found", "message": "There is no such route."}),
)


class Server:
    """One origin on 127.0.0.1; `async with` starts and stops it.

    The port stays the same over `down` and `up`, and changes with `move`. Stopping is abrupt, as a crash is: open
    connections are reset. `lose` forgets what the server holds; `limits` gives headers that every answer carries.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        clock: Clock | None,
        tls: ssl.SSLContext | None,
        prefix: str,
        lose: Callable[[], None],
        limits: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.menu = FaultMenu()
        self.arrivals: list[Arrival] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.most_in_flight_of: Counter[str] = Counter()
        self.clock = clock or SystemClock()
        self._routes = tuple(routes)
        self._tls = tls
        self._prefix = prefix
        self._lose = lose
        self._limits = limits
        self._in_flight_of: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._reserved: socket.socket | None = None
        self._port = 0
        self._late: set[asyncio.Task[Reply]] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash; valid once started."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self._port}{self._prefix}"

    @property
    def listening(self) -> bool:
        """Whether connections are accepted."""
        return self._runner is not None

    async def start(self) -> None:
        """Listen on a free port."""
        self._reserve()
        await self.up()

    async def stop(self) -> None:
        """Stop for good and give the port back; what is in flight is reset. May be called again."""
        await self.down()
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    async def down(self) -> None:
        """Stop listening and reset every connection; callers are refused until `up`."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        if runner.server is not None:
            for connection in runner.server.connections:
                reset(connection.transport)
        await runner.cleanup()

    async def up(self) -> None:
        """Listen again on the same port."""
        if self._runner is not None:
            return
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        for route in self._routes:
            app.router.add_route(route.method, self._prefix + route.path, self._handler(route))
        app.router.add_route("*", "/{path:.*}", self._handler(_UNKNOWN))
        # A caller that leaves ends its handler, so that what is counted in flight is.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, bound(self._port), ssl_context=self._tls, backlog=_BACKLOG).start()
        self._runner = runner

    async def move(self) -> str:
        """Go down and come up on another port; return the new URL."""
        await self.down()
        left = self._reserved
        self._reserve()
        if left is not None:
            left.close()
        await self.up()
        return self.url

    async def wait_until(self, predicate: Callable[[Self], bool], timeout_s: float = 20.0) -> None:
        """Wait until the predicate holds for this server; it is asked after every request and effect, and `notify`.

        TimeoutError when it doesn't hold in time.
        """
        async with asyncio.timeout(timeout_s):
            while not predicate(self):
                await self._changed.wait()

    def notify(self) -> None:
        """Have those who wait ask their predicates again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _reserve(self) -> None:
        """Take a free port; on Linux a bound socket that never listens keeps it ours while the server is down."""
        reserved = bound(0)
        self._port = reserved.getsockname()[1]
        if sys.platform == "linux":
            self._reserved = reserved
        else:
            reserved.close()

    def _handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            arrival = self._record(route, request, body)
            self._enter(arrival.agent)
            try:
                fault = self.menu.take(arrival)
                self.notify()
                if fault is None:
                    return self._answer(route.apply(arrival, body))
                return await self._misbehave(fault, request, lambda: route.apply(arrival, body))
            finally:
                self._leave(arrival.agent)
                self.notify()

        return handle

    def _record(self, route: Route, request: web.Request, body: bytes) -> Arrival:
        subject = route.subject({**request.query, **request.match_info}, body)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        arrival = Arrival(
            number=len(self.arrivals),
            at=self.clock.monotonic(),
            route=route.name,
            method=request.method,
            path=request.raw_path.partition("?")[0],
            query=dict(request.query),
            host=request.host,
            token=token if scheme == "Bearer" else None,
            key=request.headers.get("Idempotency-Key"),
            agent=subject.agent,
            ids=subject.ids,
            body_bytes=len(body),
            body_sha256=hashlib.sha256(body).hexdigest(),
            headers={name.lower(): value for name, value in request.headers.items()},
        )
        self.arrivals.append(arrival)
        return arrival

    def _enter(self, agent: str) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._in_flight_of[agent] += 1
        self.most_in_flight_of[agent] = max(self.most_in_flight_of[agent], self._in_flight_of[agent])

    def _leave(self, agent: str) -> None:
        self.in_flight -= 1
        self._in_flight_of[agent] -= 1

    def _answer(self, reply: Reply, extra: Mapping[str, str] | None = None) -> web.Response:
        body = b"" if reply.data is None else msgspec.json.encode(reply.data)
        headers = {**self._limits(), "Content-Type": "application/json", **reply.headers, **(extra or {})}
        return web.Response(status=reply.status, body=body, headers=headers)

    async def _misbehave(self, fault: Fault, request: web.Request, apply: Callable[[], Reply]) -> web.StreamResponse:
        reply = apply() if fault.applied else None
        match fault.kind:
            case Status() | RetryAfter() as kind:
                return self._refuse(kind)
            case RateLimit() as kind:
                return self._answer(reply or apply(), self._exhausted(kind))
            case LostRows():
                self._lose()
                return self._answer(reply or apply())
            case Delay() as kind:
                return self._answer(await self._delayed(kind, reply, apply))
            case Hang():
                await asyncio.Event().wait()
            case Reset():
                reset(request.transport)
            case Cut():
                await cut(request)
            case Drip() as kind:
                await drip(request, kind, self.clock)
            case NotHttp() as kind:
                write_raw(request.transport, kind.raw)
            case _:
                assert_never(fault.kind)
        # The connection is gone: aiohttp notices, and writes nothing of this.
        return web.Response()

    def _refuse(self, kind: Status | RetryAfter) -> web.Response:
        if isinstance(kind, Status):
            return web.Response(status=kind.code, headers={**self._limits(), **kind.headers}, body=kind.body)
        after = formatdate(self.clock.now() + kind.seconds, usegmt=True) if kind.as_date else str(kind.seconds)
        data = {"error": "rate_limited", "message": "Too many requests."}
        return self._answer(Reply(status=kind.code, data=data, headers={"Retry-After": after}))

    def _exhausted(self, kind: RateLimit) -> dict[str, str]:
        resets = int(self.clock.now()) + kind.reset_s if kind.as_epoch else kind.reset_s
        return {"X-RateLimit-Remaining": str(kind.remaining), "X-RateLimit-Reset": str(resets)}

    async def _delayed(self, kind: Delay, reply: Reply | None, apply: Callable[[], Reply]) -> Reply:
        async def wait_and_apply() -> Reply:
            await (self.clock.sleep(kind.seconds) if kind.until is None else kind.until.wait())
            result = reply or apply()
            self.notify()
            return result

        if not kind.late:
            return await wait_and_apply()
        task = asyncio.create_task(wait_and_apply())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return await asyncio.shield(task)
