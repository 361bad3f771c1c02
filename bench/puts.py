"""The others: the same logins and PUTs as the plugin's, by clients that do nothing else."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import httpx
import msgspec

from bench.fleet import Guilds, Pairs

T = TypeVar("T")
Send = Callable[[str, str, dict[str, str], bytes], Awaitable[bytes]]  # method, url, headers, body -> body


class Seat(msgspec.Struct):
    """A guild in a session."""

    node_id: str
    endpoint: str
    token: str


class _Session(msgspec.Struct):
    user_id: str
    guilds: list[Seat]


@asynccontextmanager
async def with_httpx() -> AsyncGenerator[Send]:
    """One client of httpx with its own transport, shared by all guilds."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:

        async def send(method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
            answer = await client.request(method, url, headers=headers, content=body)
            return answer.raise_for_status().content

        yield send


@asynccontextmanager
async def with_aiohttp() -> AsyncGenerator[Send]:
    """One session of aiohttp."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
            async with session.request(method, url, headers=headers, data=body) as answer:
                answer.raise_for_status()
                return await answer.read()

        yield send


async def show_all(send: Send, town: Guilds, members: Pairs, *, in_flight: int) -> float:
    """Log every agent in, then PUT each of its presences once; return how long that took."""
    began = time.monotonic()
    sessions: dict[str, _Session] = {}

    async def login(agent: str) -> None:
        body = msgspec.json.encode({"agent_id": agent, "api_key": f"key-{agent}"})
        answer = await send("POST", f"{town.center_url}/api/auth/agent/session", _headers(), body)
        sessions[agent] = msgspec.json.decode(answer, type=_Session)

    async def put(pair: tuple[str, str]) -> None:
        session = sessions[pair[0]]
        await put_one(send, session.guilds[int(pair[1][1:])], session.user_id, "idle")

    await _spread(login, members, in_flight)
    await _spread(put, ((agent, guild) for agent in members for guild in members[agent]), in_flight)
    return time.monotonic() - began


async def put_one(send: Send, seat: Seat, user_id: str, status: str) -> None:
    """PUT one presence."""
    body = msgspec.json.encode({"status": status, "source": "plexum-host"})
    await send("PUT", f"{seat.endpoint}/api/agents/{user_id}/presence", _headers(seat.token), body)


async def seats(send: Send, town: Guilds) -> list[Seat]:
    """Return the guilds, with tokens that all of them take."""
    answer = await send("POST", f"{town.center_url}/api/auth/agent/session", _headers(), b'{"agent_id":"a"}')
    return msgspec.json.decode(answer, type=_Session).guilds


def _headers(token: str | None = None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return headers if token is None else {**headers, "authorization": f"Bearer {token}"}


async def _spread(work: Callable[[T], Awaitable[None]], jobs: Iterable[T], in_flight: int) -> None:
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            await work(job)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())
