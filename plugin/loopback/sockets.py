"""What a loopback server does below HTTP: take a port, and end a connection in ways no framework offers."""

import asyncio
import contextlib
import socket
import struct

from aiohttp import web

from plugin.clock import Clock
from plugin.loopback.faults import Drip

_LINGER_NONE = struct.pack("ii", 1, 0)


def bound(port: int) -> socket.socket:
    """Return a socket bound to this port of 127.0.0.1, 0 for any that is free; it doesn't listen yet."""
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    return taken


def reset(transport: asyncio.BaseTransport | None) -> None:
    """End the connection with a TCP reset, not an orderly close; None is a connection that has ended already."""
    if isinstance(transport, asyncio.Transport):
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        transport.abort()


def write_raw(transport: asyncio.BaseTransport | None, raw: bytes) -> None:
    """Write bytes past HTTP and close."""
    if isinstance(transport, asyncio.Transport):
        transport.write(raw)
        transport.close()


async def cut(request: web.Request) -> None:
    """Announce an answer of 1,000 bytes, send a few, and reset the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"data": {"syn')
    reset(request.transport)


async def drip(request: web.Request, kind: Drip, clock: Clock) -> None:
    """Answer with a body that never ends, until the caller has left."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        while True:
            await response.write(kind.piece)
            await clock.sleep(kind.interval_s)
