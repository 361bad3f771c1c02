import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from protocol.errors import StreamClosed
from protocol.framing import Framing
from protocol.outlet import MAX_HELD, MAX_HELD_BYTES, Outlet
from tests.support.clock import settle

NDJSON = Framing.NDJSON


class Sink:
    """A stream that takes a write when the gate is open, and breaks when it is told to."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False

    async def read(self) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        if self.broken:
            raise StreamClosed("broken")
        self.writes.append(data)

    def write_now(self, data: bytes) -> bool:
        if not self.gate.is_set():
            return False
        if self.broken:
            raise StreamClosed("broken")
        self.writes.append(data)
        return True

    async def close(self) -> None:
        pass


@asynccontextmanager
async def running(outlet: Outlet) -> AsyncGenerator[None]:
    task = asyncio.create_task(outlet.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def outlet_to(
    sink: Sink, framing: Framing | None = NDJSON, unsent: int = 1_000, more: Callable[[], bool] = lambda: False
) -> Outlet:
    return Outlet(sink, max_unsent_bytes=unsent, framing=framing, more=more)


async def test_messages_of_one_turn_go_out_in_one_write_and_in_order() -> None:
    sink = Sink()
    outlet = outlet_to(sink)
    async with running(outlet):
        for payload in (b"1", b"2", b"3"):
            outlet.push(payload)
        await outlet.flush()
        outlet.push(b"4")
        await outlet.flush()
    assert sink.writes == [b"1\n2\n3\n", b"4\n"]


async def test_a_message_alone_is_written_by_who_sends_it() -> None:
    sink = Sink()
    outlet = outlet_to(sink)
    told: list[str] = []
    outlet.send(b"1", (lambda: told.append("1"),))
    assert sink.writes == [b"1\n"]
    assert outlet.unsent_bytes == 0
    await settle()
    assert told == ["1"]


async def test_a_message_that_is_not_alone_joins_the_others() -> None:
    sink = Sink()
    outlet = outlet_to(sink)
    outlet.push(b"1")
    outlet.send(b"2", ())
    assert sink.writes == []
    async with running(outlet):
        await outlet.flush()
    assert sink.writes == [b"1\n2\n"]


async def test_what_cannot_be_written_at_once_is_written_later_and_what_is_sent_meanwhile_after_it() -> None:
    sink = Sink()
    outlet = outlet_to(sink)
    told: list[str] = []
    async with running(outlet):
        sink.gate.clear()
        outlet.send(b"1", (lambda: told.append("1"),))
        await settle()
        outlet.send(b"2")
        outlet.push(b"3")
        await settle()
        assert sink.writes == []
        assert told == []
        assert outlet.unsent_bytes == 3
        sink.gate.set()
        await outlet.flush()
    assert sink.writes == [b"1\n", b"2\n3\n"]
    assert told == ["1"]


async def test_a_write_waits_for_more_that_is_about_to_come_but_not_for_ever() -> None:
    sink = Sink()
    coming = True
    outlet = outlet_to(sink, more=lambda: coming)
    async with running(outlet):
        outlet.push(b"1")
        await settle(10)
        outlet.push(b"2")
        await settle(10)
        assert sink.writes == []
        coming = False
        await settle(5)
        assert sink.writes == [b"1\n2\n"]
        coming = True
        outlet.send(b"3", ())
        await outlet.flush()
        assert sink.writes == [b"1\n2\n", b"3\n"]
        outlet.push(b"x" * 100_000)
        await settle(5)
        assert len(sink.writes) == 3


async def test_a_large_backlog_is_written_in_pieces() -> None:
    sink = Sink()
    outlet = outlet_to(sink, unsent=10**9)
    async with running(outlet):
        for _ in range(100):
            outlet.push(b"x" * 10_000)
        await outlet.flush()
    assert sum(map(len, sink.writes)) == 100 * 10_001
    assert max(map(len, sink.writes)) < 100_000
    assert len(sink.writes) > 5


class TestRoom:
    async def test_there_is_room_until_the_bound_and_then_when_something_was_written(self) -> None:
        sink = Sink()
        outlet = outlet_to(sink, unsent=10)
        async with running(outlet):
            sink.gate.clear()
            outlet.push(b"x" * 9)
            assert await outlet.room()
            outlet.push(b"x" * 9)
            assert outlet.full
            waiting = asyncio.create_task(outlet.room())
            await settle()
            assert not waiting.done()
            sink.gate.set()
            assert await waiting

    async def test_there_is_none_before_the_framing_is_known(self) -> None:
        outlet = outlet_to(Sink(), None)
        waiting = asyncio.create_task(outlet.room())
        await settle()
        assert not waiting.done()
        outlet.open(NDJSON)
        assert await waiting

    async def test_who_gives_up_is_let_go(self) -> None:
        outlet = outlet_to(Sink(), None)
        gone = False
        waiting = asyncio.create_task(outlet.room(given_up=lambda: gone))
        await settle()
        gone = True
        outlet.wake()
        assert not await waiting

    async def test_there_is_none_once_it_is_closed(self) -> None:
        outlet = outlet_to(Sink(), None)
        waiting = asyncio.create_task(outlet.room())
        await settle()
        outlet.close()
        assert not await waiting
        assert not await outlet.room()


class TestBeforeTheFraming:
    async def test_notices_are_held_and_go_first(self) -> None:
        sink = Sink()
        outlet = outlet_to(sink, None)
        async with running(outlet):
            outlet.hold(b"1")
            outlet.push(b"2")
            outlet.send(b"3", ())
            await settle()
            assert sink.writes == []
            assert not outlet.opened
            outlet.open(Framing.CONTENT_LENGTH)
            outlet.open(NDJSON)
            await outlet.flush()
        assert b"".join(sink.writes).count(b"Content-Length: 1\r\n\r\n") == 3
        assert b"".join(sink.writes).endswith(b"1")

    @pytest.mark.parametrize(("size", "kept"), [(1, MAX_HELD), (MAX_HELD_BYTES // 4, 4)])
    async def test_the_oldest_held_go_where_there_are_too_many(self, size: int, kept: int) -> None:
        sink = Sink()
        outlet = outlet_to(sink, None)
        for at in range(kept + 3):
            outlet.hold(bytes([65 + at % 26]) * size)
        assert outlet.dropped == 3
        async with running(outlet):
            outlet.open(NDJSON)
            await outlet.flush()
        assert b"".join(sink.writes)[:1] == b"D"
        assert sum(map(len, sink.writes)) == kept * (size + 1)


class TestBroken:
    async def test_it_ends_the_writing_and_lets_everybody_go(self) -> None:
        sink = Sink()
        outlet = outlet_to(sink, unsent=1)
        writing = asyncio.create_task(outlet.run())
        sink.gate.clear()
        flushing = asyncio.create_task(outlet.flush())
        outlet.push(b"1")
        await settle()
        outlet.push(b"2")
        waiting = asyncio.create_task(outlet.room())
        sink.broken = True
        sink.gate.set()
        await writing
        await flushing
        assert not await waiting
        assert outlet.broken
        assert outlet.dropped == 1
        outlet.push(b"3")
        outlet.send(b"4", ())
        assert not outlet.push_soon(b"5")
        await outlet.flush()
        assert outlet.dropped == 4
        assert sink.writes == []

    async def test_who_finds_it_so_ends_it_for_all(self) -> None:
        sink = Sink()
        outlet = outlet_to(sink)
        writing = asyncio.create_task(outlet.run())
        await settle()
        sink.broken = True
        outlet.send(b"1", (pytest.fail,))
        assert outlet.broken
        assert not await outlet.room()
        await writing
        assert sink.writes == []
