"""jsonrpcserver as it comes, with its default validator, over lines on asyncio's streams."""

import asyncio
import sys

from jsonrpcserver import Result, Success, async_dispatch, method


@method
async def initialize(agent_id: str, n: int) -> Result:
    """Answer the first request."""
    return Success({"agent_id": agent_id, "n": n})


@method
async def echo(agent_id: str, n: int) -> Result:
    """Answer with the params."""
    return Success({"agent_id": agent_id, "n": n})


async def serve() -> None:
    """Answer each line."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    while line := await reader.readline():
        if answer := await async_dispatch(line.decode()):
            writer.write(answer.encode() + b"\n")
            await writer.drain()


asyncio.run(serve())
