"""A byte stream in memory, with the bounds and the endings of a real one."""

import asyncio
import os

from protocol.errors import StreamClosed

CHUNK_BYTES = 64 * 1024


class Pipe:
    """One direction: a writer waits while `limit_bytes` or more are unread."""

    def __init__(self, limit_bytes: int) -> None:
        self.unread = bytearray()
        self.limit_bytes = limit_bytes
        self.closed = False
        self.changed = asyncio.Condition()

    async def read(self) -> bytes:
        async with self.changed:
            await self.changed.wait_for(lambda: self.unread or self.closed)
            chunk = bytes(self.unread[:CHUNK_BYTES])
            del self.unread[:CHUNK_BYTES]
            self.changed.notify_all()
            return chunk

    async def write(self, data: bytes) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or len(self.unread) < self.limit_bytes)
            if self.closed:
                raise StreamClosed("The pipe is closed")
            self.unread += data
            self.changed.notify_all()

    async def close(self, *, drop: bool) -> None:
        async with self.changed:
            self.closed = True
            if drop:
                self.unread.clear()
            self.changed.notify_all()


class MemoryStream:
    """One end of a pair, a `protocol.stdio.ByteStream`."""

    def __init__(self, inbound: Pipe, outbound: Pipe) -> None:
        self.inbound = inbound
        self.outbound = outbound

    async def read(self) -> bytes:
        return await self.inbound.read()

    async def write(self, data: bytes) -> None:
        await self.outbound.write(data)

    async def close(self) -> None:
        """End both directions: the other side reads what was written, then EOF; its writes raise."""
        await self.outbound.close(drop=False)
        await self.inbound.close(drop=True)


def memory_pair(limit_bytes: int = CHUNK_BYTES) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected ends; each direction holds `limit_bytes` and one write more, then the writer waits."""
    there, back = Pipe(limit_bytes), Pipe(limit_bytes)
    return MemoryStream(back, there), MemoryStream(there, back)


def is_open(fd: int) -> bool:
    """Return whether a descriptor is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
