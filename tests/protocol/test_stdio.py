import asyncio
import contextlib
import os
import selectors
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest

from protocol.errors import StreamClosed
from protocol.stdio import READ_BYTES, ByteStream, open_fds, wait_hung_up
from tests.support.clock import settle
from tests.support.streams import memory_pair

Pair: TypeAlias = tuple[ByteStream, ByteStream]
KIB_64 = 64 * 1024
MIB = 1024 * 1024


async def pipes(*, blocking: bool = True) -> Pair:
    fds = there, here, back, away = *os.pipe(), *os.pipe()
    for fd in fds:
        os.set_blocking(fd, blocking)
    return await open_fds(there, away), await open_fds(back, here)


async def nonblocking_pipes() -> Pair:
    return await pipes(blocking=False)


async def sockets() -> Pair:
    left, right = (end.detach() for end in socket.socketpair())
    return await open_fds(left, left), await open_fds(right, right)


async def memory() -> Pair:
    return memory_pair()


@pytest.fixture(params=[pipes, nonblocking_pipes, sockets, memory], ids=lambda opener: opener.__name__)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    opener: Callable[[], Awaitable[Pair]] = request.param
    left, right = await opener()
    async with asyncio.timeout(30):
        yield left, right
        await asyncio.gather(left.close(), right.close())


on_descriptors = pytest.mark.parametrize("pair", [pipes, sockets], ids=["pipes", "sockets"], indirect=True)


async def read_all(stream: ByteStream) -> bytes:
    chunks: list[bytes] = []
    while chunk := await stream.read():
        assert len(chunk) <= READ_BYTES
        chunks.append(chunk)
    return b"".join(chunks)


async def read_exactly(stream: ByteStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = await stream.read()
        assert chunk
        data += chunk
    return data


async def fill(stream: ByteStream, message: bytes) -> tuple[int, asyncio.Task[None]]:
    """Write until a write waits; return how many did not, and the one that does."""
    for count in range(100):
        writing = asyncio.create_task(stream.write(message))
        await settle()
        if not writing.done():
            return count, writing
        await writing
    pytest.fail("a stream took 100 messages that nobody read")


async def test_what_is_written_is_read_in_both_directions_at_once(pair: Pair) -> None:
    left, right = pair
    data = os.urandom(3 * MIB)
    async with asyncio.TaskGroup() as group:
        for start in range(0, len(data), MIB):
            group.create_task(left.write(data[start : start + MIB]))
            group.create_task(right.write(data[start : start + MIB]))
        there = group.create_task(read_exactly(right, len(data)))
        back = group.create_task(read_exactly(left, len(data)))
    assert there.result() == back.result() == data


async def test_writers_do_not_mix_their_data(pair: Pair) -> None:
    left, right = pair
    size = 100_000
    async with asyncio.TaskGroup() as group:
        for letter in b"abcdefgh" * 2:
            group.create_task(left.write(bytes([letter]) * size))
        data = await read_exactly(right, 16 * size)
    assert all(len(set(data[start : start + size])) == 1 for start in range(0, len(data), size))


async def test_a_slow_reader_holds_the_writer_back_and_loses_nothing(pair: Pair) -> None:
    left, right = pair
    await left.write(b"first")
    assert await right.read() == b"first"
    count, waiting = await fill(left, b"x" * KIB_64)
    assert len(await read_exactly(right, (count + 1) * KIB_64)) == (count + 1) * KIB_64
    await waiting


async def test_what_would_wait_is_not_written_now(pair: Pair) -> None:
    left, right = pair
    taken = next(count for count in range(100) if not left.write_now(b"x" * KIB_64))
    assert await read_exactly(right, taken * KIB_64) == b"x" * taken * KIB_64
    assert left.write_now(b"1")
    await left.close()
    assert await read_all(right) == b"1"
    with pytest.raises(StreamClosed):
        left.write_now(b"2")


@on_descriptors
async def test_nobody_overtakes_a_write_that_waits(pair: Pair) -> None:
    left, right = pair
    count, waiting = await fill(left, b"x" * KIB_64)
    reading = asyncio.create_task(read_exactly(right, (count + 1) * KIB_64))
    while not waiting.done():
        assert not left.write_now(b"2")
        await asyncio.sleep(0)  # the write takes its turn in one of the loop's, this test in each
    assert await reading == b"x" * (count + 1) * KIB_64


async def test_a_cancelled_write_has_sent_nothing(pair: Pair) -> None:
    left, right = pair
    count, waiting = await fill(left, b"x" * KIB_64)
    queued = asyncio.create_task(left.write(b"z" * 10))
    await settle()
    waiting.cancel()
    await settle()
    queued.cancel()
    reading = asyncio.create_task(read_all(right))
    await left.write(b"last")
    await left.close()
    assert await reading == b"x" * KIB_64 * count + b"last"
    assert waiting.cancelled()
    assert queued.cancelled()


async def test_a_cancelled_read_loses_nothing(pair: Pair) -> None:
    left, right = pair
    got = b""
    for turns in range(8):
        reading = asyncio.create_task(right.read())
        await settle()
        await left.write(b"%d" % turns)
        await settle(turns)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            got += await reading
    await left.close()
    assert got + await read_all(right) == b"01234567"


async def test_after_a_close_the_other_side_reads_the_rest_and_then_the_end(pair: Pair) -> None:
    left, right = pair
    await left.write(b"rest")
    await left.close()
    await left.close()
    assert await right.read() == b"rest"
    assert [await right.read(), await right.read()] == [b"", b""]
    with pytest.raises(StreamClosed):
        await right.write(b"x")
    with pytest.raises(StreamClosed):
        await left.write(b"x")
    assert [await left.read(), await left.read()] == [b"", b""]


async def test_a_close_sends_what_is_unsent(pair: Pair) -> None:
    left, right = pair
    await left.write(b"x" * MIB)
    closing = asyncio.create_task(left.close())
    assert await read_all(right) == b"x" * MIB
    await closing


@on_descriptors
async def test_a_close_waits_for_the_reader_and_gives_up_when_it_is_cancelled(pair: Pair) -> None:
    left, right = pair
    await left.write(b"x" * MIB)
    closing = asyncio.create_task(left.close())
    late = asyncio.create_task(left.write(b"late"))
    await settle()
    assert not closing.done()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(StreamClosed):
        await late
    assert 0 < len(await read_all(right)) < MIB


@on_descriptors
async def test_a_close_that_is_cancelled_ends_the_write_that_waits(pair: Pair) -> None:
    left, _ = pair
    _, waiting = await fill(left, b"x" * KIB_64)
    closing = asyncio.create_task(left.close())
    await settle()
    closing.cancel()
    with pytest.raises(StreamClosed):
        await waiting


@pytest.mark.parametrize("opener", [pipes, sockets])
async def test_the_numbers_of_descriptors_let_go_can_be_used_again(opener: Callable[[], Awaitable[Pair]]) -> None:
    for _ in range(3):
        left, right = await opener()
        reading = asyncio.create_task(left.read())
        await fill(left, b"x" * KIB_64)
        closing = asyncio.create_task(left.close())
        await settle()
        closing.cancel()
        await asyncio.wait([closing, reading])
        await right.close()


async def test_a_close_ends_the_read_that_waits(pair: Pair) -> None:
    left, _ = pair
    reading = asyncio.create_task(left.read())
    await settle()
    await left.close()
    assert await reading == b""


async def test_a_write_that_waits_ends_when_the_other_side_goes(pair: Pair) -> None:
    left, right = pair
    _, waiting = await fill(left, b"x" * KIB_64)
    await right.close()
    with pytest.raises(StreamClosed):
        await waiting


async def test_a_connection_that_is_reset_has_ended() -> None:
    left, right = await sockets()
    await left.write(b"never read")
    await right.close()
    assert await left.read() == b""
    await left.close()


@on_descriptors
async def test_a_chunk_that_nobody_takes_and_the_end_behind_it_both_arrive(pair: Pair) -> None:
    left, right = pair
    for data in (b"one", b"two"):
        await left.write(data)
        if data == b"one":
            assert await right.read() == b"one"
        await settle()
    await left.close()
    await settle()
    assert await read_all(right) == b"two"


async def test_the_blocking_mode_of_the_descriptors_is_left_alone() -> None:
    (there, here), (other, same) = os.pipe(), os.pipe()
    shared = [os.dup(fd) for fd in (there, here)]  # as standard error may share the pipe of standard output
    reader, writer = await open_fds(there, same), await open_fds(other, here)
    _, waiting = await fill(writer, b"x" * KIB_64)
    assert [os.get_blocking(fd) for fd in shared] == [True, True]
    reading = asyncio.create_task(reader.read())
    await waiting
    assert await reading
    assert [os.get_blocking(fd) for fd in shared] == [True, True]
    for fd in shared:
        os.close(fd)
    await asyncio.gather(reader.close(), writer.close())


async def test_a_reader_that_came_too_late_waits_on() -> None:
    (there, here), (back, away) = os.pipe(), os.pipe()
    os.set_blocking(there, False)
    one, other = await open_fds(there, away), await open_fds(os.dup(there), os.dup(away))
    reads = [asyncio.create_task(stream.read()) for stream in (one, other)]
    await settle()
    os.write(here, b"a")
    await settle()
    await asyncio.gather(one.close(), other.close())
    assert sorted(await asyncio.gather(*reads)) == [b"", b"a"]
    for fd in (here, back):
        os.close(fd)


async def test_an_empty_pipe_is_filled_at_once_and_one_that_is_not_by_pieces_that_do_not_block() -> None:
    there, here = os.pipe()
    stream = await open_fds(os.open(os.devnull, os.O_RDONLY), here)
    async with asyncio.timeout(30):
        await stream.write(b"x" * (KIB_64 - 1))
        if sys.platform == "linux":
            assert len(os.read(there, MIB)) == KIB_64 - 1
        # Now all but one of its pages are begun: less can be written than bytes are missing.
        for _ in range(KIB_64 // 4096 - 1):
            await stream.write(b"y")
            await stream.write(b"y" * 4095)
        os.read(there, 1)
        await stream.write(b"z" * (KIB_64 - 1))
        rest = b"y" * (KIB_64 - 4096 - 1) + b"z" * (KIB_64 - 1)
        while rest:
            piece = await asyncio.to_thread(os.read, there, 5000)
            assert rest.startswith(piece)
            rest = rest[len(piece) :]
        await stream.close()
    os.close(there)


async def test_a_descriptor_that_is_not_open_is_refused() -> None:
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    with pytest.raises(OSError, match="descriptor"):
        await open_fds(read_fd, write_fd)
    os.close(read_fd)


class CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop wakes up."""

    wakes = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.wakes += 1
        return super().select(timeout)


@pytest.mark.parametrize("opener", [pipes, sockets])
def test_a_stream_that_nobody_reads_or_that_has_ended_costs_nothing(opener: Callable[[], Awaitable[Pair]]) -> None:
    selector = CountingSelector()

    async def idle() -> int:
        before = selector.wakes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()
        return selector.wakes - before

    async def scenario() -> list[int]:
        left, right = await opener()
        await left.write(b"one")
        await right.read()
        waits = [await idle()]
        await left.write(b"two")
        waits.append(await idle())
        await left.write(b"three")
        waits.append(await idle())
        await left.close()
        assert await read_all(right) == b"twothree"
        waits.append(await idle())
        await right.close()
        return waits

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert max(runner.run(scenario())) < 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_that_the_other_side_has_hung_up_is_known_before_its_last_bytes_are_read() -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"unread")
    waiting = asyncio.create_task(wait_hung_up(read_fd))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    os.close(write_fd)
    async with asyncio.timeout(20):
        await waiting
    assert os.read(read_fd, 100) == b"unread"
    os.close(read_fd)
