"""Streams over what is no pipe and no socket: files, devices, terminals."""

import asyncio
import contextlib
import os
import pty
import tty
from collections.abc import Generator
from pathlib import Path

import pytest

from protocol.claim import Wire
from protocol.errors import StreamClosed
from protocol.stdio import open_fds, open_stream, wait_hung_up
from tests.support.clock import settle
from tests.support.streams import is_open

KIB_64 = 64 * 1024
MIB = 1024 * 1024


async def test_a_regular_file_is_read_to_its_end_and_another_is_written(tmp_path: Path) -> None:
    data = os.urandom(5 * KIB_64 + 17)
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    stream = await open_stream(Wire(os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY | os.O_CREAT)))
    while chunk := await stream.read():
        await stream.write(chunk)
        await stream.write(b"")
    assert await stream.read() == b""
    await stream.close()
    assert target.read_bytes() == data


async def test_what_is_written_while_a_file_is_busy_follows(tmp_path: Path) -> None:
    target = tmp_path / "out"
    stream = await open_fds(os.open(os.devnull, os.O_RDONLY), os.open(target, os.O_WRONLY | os.O_CREAT))
    for number in range(10):
        await stream.write(b"%d" % number * 20_000)
    await stream.close()
    assert target.read_bytes() == b"".join(b"%d" % number * 20_000 for number in range(10))


async def test_a_file_is_let_go_only_when_its_read_has_come_back(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"x" * MIB)
    fd = os.open(source, os.O_RDONLY)
    stream = await open_fds(fd, os.open(os.devnull, os.O_WRONLY))
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    await stream.close()
    assert await reading == b""
    async with asyncio.timeout(15):
        while is_open(fd):
            await settle()


async def test_the_null_device_is_at_its_end_and_takes_everything() -> None:
    stream = await open_fds(os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
    assert await stream.read() == b""
    await stream.write(b"x" * MIB)
    await stream.write(b"x")
    await stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
async def test_a_disk_that_is_full_closes_the_stream() -> None:
    stream = await open_fds(os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY))
    await stream.write(b"x" * KIB_64)
    with pytest.raises(StreamClosed):
        await stream.write(b"x")
    await stream.close()


@contextlib.contextmanager
def terminal() -> Generator[tuple[int, int], None, None]:
    """Yield the far and the near side of a terminal; the near side is for a stream to own."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        yield master, slave
    finally:
        os.close(master)  # hangs up: no thread stays in a write


def drain(master: int) -> int:
    """Read a terminal until nobody holds its other side; return how many bytes came."""
    count = 0
    with contextlib.suppress(OSError):
        while data := os.read(master, KIB_64):
            count += len(data)
    return count


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_terminal_is_read_and_written(*, blocking: bool) -> None:
    with terminal() as (master, slave):
        os.set_blocking(slave, blocking)
        stream = await open_fds(slave, slave)
        os.write(master, b'{"a":1}\n')
        async with asyncio.timeout(15):
            assert await stream.read() == b'{"a":1}\n'
            await stream.write(b"x" * MIB)
            reading = asyncio.create_task(asyncio.to_thread(drain, master))
            await stream.close()
            assert await reading == MIB


async def test_a_terminal_that_stands_still_does_not_keep_a_close_waiting() -> None:
    with terminal() as (master, slave):
        write_fd = os.dup(slave)
        stream = await open_fds(slave, write_fd)
        await stream.write(b"x" * MIB)
        closing = asyncio.create_task(stream.close())
        await settle()
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert is_open(write_fd)  # as long as the thread writes
        async with asyncio.timeout(15):
            assert await asyncio.to_thread(drain, master) == MIB


async def test_a_terminal_where_nobody_types_is_let_go_at_once() -> None:
    with terminal() as (_, slave):
        stream = await open_fds(slave, slave)
        reading = asyncio.create_task(stream.read())
        await settle()
        await stream.close()
        assert await reading == b""
        assert not is_open(slave)


async def test_a_file_never_hangs_up(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        done, _ = await asyncio.wait({waiting := asyncio.create_task(wait_hung_up(file.fileno()))}, timeout=0.05)
        assert not done
        waiting.cancel()
