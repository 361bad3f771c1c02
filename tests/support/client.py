"""A client for tests of servers: the plugin's own HTTP layer, closed at the end; and what tests of the client ask."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from plugin.errors import NoAnswer
from plugin.loopback.platform import LoopbackPlatform
from plugin.secret import Secret
from plugin.web import Answer, Reach, Web

TOKEN = Secret("loopback-token")
PATIENT = Reach(timeout_s=20)
HASTY = Reach(timeout_s=0.2)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@contextlib.asynccontextmanager
async def opened(reach: Reach = PATIENT) -> AsyncGenerator[Web]:
    """Open a client that is as patient as a busy machine needs."""
    web = Web(reach)
    try:
        yield web
    finally:
        await web.close()


@contextlib.asynccontextmanager
async def raw_server(talk: Talk) -> AsyncGenerator[str]:
    """Serve each connection with `talk`, then close it; for what no HTTP server would do."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def no_answer(request: Awaitable[Answer]) -> NoAnswer:
    async with asyncio.timeout(50):
        with pytest.raises(NoAnswer) as caught:
            await request
    return caught.value


async def ask(web: Web, platform: LoopbackPlatform) -> Answer:
    return await web.request("GET", f"{platform.url}/v1/agent/status", query={"agent_id": "a"}, token=TOKEN)


async def push(web: Web, platform: LoopbackPlatform, body: bytes = b'{"agent_id":"a","dispatches":[]}') -> Answer:
    return await web.request("POST", f"{platform.url}/v1/agent/sync", token=TOKEN, body=body)
