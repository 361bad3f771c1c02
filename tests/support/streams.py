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
        self.changed = asyncio.Event()  # a pulse

    async def read(self) -> bytes:
        while not self.unread and not self.closed:
            await self.changed.wait()
        chunk = bytes(self.unread[:CHUNK_BYTES])
        del self.unread[:CHUNK_BYTES]
        self.pulse()
        return chunk

    async def write(self, data: bytes) -> None:
        while not self.write_now(data):
            await self.changed.wait()

    def write_now(self, data: bytes) -> bool:
        if self.closed:
            raise StreamClosed("The pipe is closed")
        if len(self.unread) >= self.limit_bytes:
            return False
        self.unread += data
        self.pulse()
        return True

    async def close(self, *, drop: bool) -> None:
        self.closed = True
        if drop:
            self.unread.clear()
        self.pulse()

    def pulse(self) -> None:
        self.changed.set()
        self.changed.clear()


class MemoryStream:
    """One end of a pair, a `protocol.stdio.ByteStream`."""

    def __init__(self, inbound: Pipe, outbound: Pipe) -> None:
        self.inbound = inbound
        self.outbound = outbound

    async def read(self) -> bytes:
        return await self.inbound.read()

    async def write(self, data: bytes) -> None:
        await self.outbound.write(data)

    def write_now(self, data: bytes) -> bool:
        return self.outbound.write_now(data)

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
