"""The floor: asyncio's own streams, msgspec's typed decoding, and nothing else that a plugin needs."""

import asyncio
import sys

import msgspec
from msgspec import Struct


class Params(Struct):
    """What is called with, and what comes back."""

    agent_id: str
    n: int


class Request(Struct):
    """The only message that this server knows."""

    id: int
    params: Params


async def serve() -> None:
    """Answer each line with its params."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    decoder, encoder = msgspec.json.Decoder(Request), msgspec.json.Encoder()
    while line := await reader.readline():
        request = decoder.decode(line)
        writer.write(encoder.encode({"jsonrpc": "2.0", "id": request.id, "result": request.params}) + b"\n")
        await writer.drain()


asyncio.run(serve())
