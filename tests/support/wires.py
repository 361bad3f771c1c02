"""Connected byte streams of several kinds, and the other side of a wire as raw messages."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

from protocol.dispatch import new_trace_id
from protocol.framing import Decoder, Framing, encode
from protocol.methods import MethodTable
from protocol.peer import DEFAULT_LIMITS, FirstMessage, Limits, Peer
from protocol.stdio import ByteStream, open_fds
from tests.support.streams import memory_pair

PATIENCE_S = 20.0

Json: TypeAlias = Any  # what json.loads gives


class Wire(NamedTuple):
    """Two connected ends; `end_input` ends what `theirs` sends, while it may still read."""

    ours: ByteStream
    theirs: ByteStream
    end_input: Callable[[], Awaitable[None]]


MakeWire = Callable[[], Awaitable[Wire]]


async def memory_wire() -> Wire:
    ours, theirs = memory_pair()
    return Wire(ours, theirs, lambda: theirs.outbound.close(drop=False))


async def pipe_wire() -> Wire:
    """Join two ends by two real pipes."""
    (we_read, they_write), (they_read, we_write) = os.pipe(), os.pipe()
    theirs = Split(
        await open_fds(they_read, os.open(os.devnull, os.O_WRONLY)),
        await open_fds(os.open(os.devnull, os.O_RDONLY), they_write),
    )
    return Wire(await open_fds(we_read, we_write), theirs, theirs.output.close)


class Split:
    """A stream of two halves, each of which can be closed by itself."""

    def __init__(self, source: ByteStream, output: ByteStream) -> None:
        self.source = source
        self.output = output
        self.read = source.read
        self.write = output.write
        self.write_now = output.write_now

    async def close(self) -> None:
        await self.output.close()
        await self.source.close()


WIRES: dict[str, MakeWire] = {"memory": memory_wire, "pipes": pipe_wire}


class Raw:
    """The other side, message by message: it sends whatever it is told to, and reads only when it is told to."""

    def __init__(self, stream: ByteStream, framing: Framing = Framing.NDJSON) -> None:
        self.stream = stream
        self.framing = framing
        self._decoder = Decoder(256 * 1024 * 1024, framing)
        self._frames: list[bytes] = []

    async def send(self, *messages: object) -> None:
        """Send messages in one write."""
        await self.send_bytes(b"".join(encode(json.dumps(one).encode(), self.framing) for one in messages))

    async def send_bytes(self, data: bytes) -> None:
        await self.stream.write(data)

    async def request(self, method: str, id_: object, params: object = None) -> None:
        await self.send(request(method, id_, params))

    async def receive(self) -> Json:
        """Return the next message; None at the end."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._frames:
                data = await self.stream.read()
                if not data:
                    return None
                self._frames += [frame for frame in self._decoder.feed(data) if isinstance(frame, bytes)]
        return json.loads(self._frames.pop(0))

    async def receive_many(self, count: int) -> list[Json]:
        return [await self.receive() for _ in range(count)]

    async def answers(self, count: int) -> dict[Json, Json]:
        """Return the next answers by id; each id once."""
        found = await self.receive_many(count)
        by_id = {one["id"]: one.get("error", one.get("result")) for one in found}
        assert len(by_id) == count, found
        return by_id

    async def nothing_before(self, marker: str = "marker") -> None:
        """Assert that nothing is on its way: the answer to a ping sent now is the next message."""
        await self.request("ping", marker)
        assert await self.receive() == {"jsonrpc": "2.0", "id": marker, "result": {}}


def request(method: str, id_: object, params: object = None) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "method": method, **({} if params is None else {"params": params})}


def notification(method: str, params: object = None) -> dict[str, object]:
    return {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})}


@asynccontextmanager
async def running(peer: Peer) -> AsyncGenerator[Peer]:
    """Run a peer, and close it in the end."""
    async with asyncio.timeout(PATIENCE_S * 2), asyncio.TaskGroup() as group:
        reading = group.create_task(peer.run())
        try:
            yield peer
        finally:
            await peer.close(timeout_s=2)
            await reading


@asynccontextmanager
async def served(
    wire: Wire,
    table: MethodTable,
    *,
    framing: Framing | None = None,
    limits: Limits = DEFAULT_LIMITS,
    trace_id: Callable[[], str] = new_trace_id,
    on_first_message: FirstMessage | None = None,
) -> AsyncGenerator[tuple[Raw, Peer]]:
    """Serve a table at one end of a wire; the other end is raw."""
    peer = Peer(wire.ours, table, framing=framing, limits=limits, trace_id=trace_id, on_first_message=on_first_message)
    try:
        async with running(peer):
            yield Raw(wire.theirs), peer
    finally:
        await wire.theirs.close()


@asynccontextmanager
async def joined(wire: Wire, table: MethodTable, host_table: MethodTable) -> AsyncGenerator[tuple[Peer, Peer]]:
    """Run a peer at each end: the host, which speaks first, and the plugin."""
    async with (
        running(Peer(wire.ours, table)) as plugin,
        running(Peer(wire.theirs, host_table, framing=Framing.NDJSON)) as host,
    ):
        yield host, plugin


async def until(ready: Callable[[], bool]) -> None:
    """Let the loop turn until something has happened, looking at each turn."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if ready():
                return
            await asyncio.sleep(0)
