"""Byte streams over file descriptors: pipes, sockets, terminals, regular files, in any mix.

Blocking mode belongs to the open file, not to the descriptor, and our standard output may be the same open file as
somebody's standard error, or the terminal of a shell. So it is left as it came, and nothing here ever blocks the loop:

- A pipe, socket or terminal is read when the loop says that it can be, once each time.
- A pipe or socket takes PIPE_BUF bytes without blocking whenever `poll` says that it can be written, so it is written
  in pieces of that size. A pipe that is empty takes as many as it has room for.
- Anything else (regular files, devices; terminals when written) goes through the loop's threads.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import stat
import sys
import termios
from typing import Final, Protocol

from protocol.claim import Wire
from protocol.errors import StreamClosed

READ_BYTES: Final = 64 * 1024
UNSENT_BYTES: Final = 64 * 1024

_log = logging.getLogger(__name__)


class ByteStream(Protocol):
    """Two directions of bytes: one reader at a time, any number of writers, whose data never mix."""

    async def read(self) -> bytes:
        """Return the next bytes, at most 64 KiB, as soon as there are any; b"" at the end, then and ever after.

        A connection that broke has ended too. A cancelled read loses nothing.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Send `data`, whole and in turn; wait while 64 KiB or more are unsent, and return once it is sent or next.

        Cancelled, it has sent nothing. Raises StreamClosed when the other side is gone or this side closed.
        """
        ...

    def write_now(self, data: bytes) -> bool:
        """Do what `write` does, or nothing where that would wait; return whether it did. Raises StreamClosed."""
        ...

    async def close(self) -> None:
        """Send what is unsent, then let go of the descriptors. Cancel it to give up on the unsent. Idempotent."""
        ...


async def open_stream(wire: Wire) -> ByteStream:
    """Open the stream of a program over its own standard streams. It owns the descriptors from now on."""
    return await open_fds(wire.read_fd, wire.write_fd)


async def open_fds(read_fd: int, write_fd: int) -> ByteStream:
    """Open a stream over two descriptors, or twice the same. It owns them from now on. Raises OSError for a bad one."""
    if read_fd == write_fd:
        write_fd = os.dup(write_fd)
    return _FdStream(_Source(read_fd), _Sink(write_fd))


async def wait_hung_up(fd: int) -> None:
    """Return once the other side of a pipe or socket has closed its end, though bytes of it may still be unread.

    Only Linux tells: elsewhere, and for anything else, it never returns.
    """
    hung_up = asyncio.Event()
    if sys.platform != "linux" or not _is_stream(fd):
        await hung_up.wait()
        return
    loop = asyncio.get_running_loop()
    with select.epoll() as poller:
        poller.register(fd, select.EPOLLRDHUP)  # with EPOLLHUP, which always counts, but not EPOLLIN
        loop.add_reader(poller.fileno(), hung_up.set)
        try:
            await hung_up.wait()
        finally:
            loop.remove_reader(poller.fileno())


class _FdStream:
    def __init__(self, source: "_Source", sink: "_Sink") -> None:
        self._source = source
        self._sink = sink
        self.read = source.read
        self.write = sink.write
        self.write_now = sink.write_now

    async def close(self) -> None:
        try:
            await self._sink.close()
        finally:
            self._source.close()


class _Source:
    """The read side: at most one chunk is ahead of the reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._watched = _is_stream(fd) or os.isatty(fd)
        self._active = False  # the loop watches the descriptor, or a thread reads it
        self._chunk: bytes | None = None  # read and not yet taken; b"" stays
        self._arrival: asyncio.Future[None] | None = None  # what the reader waits for
        self._closed = False

    async def read(self) -> bytes:
        while self._chunk is None:
            self._start()
            self._arrival = self._loop.create_future()
            await self._arrival
        chunk = self._chunk
        if chunk:
            self._chunk = None
        return chunk

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._deliver(b"")
        if not self._active:
            os.close(self._fd)
        elif self._watched:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _start(self) -> None:
        if self._active:
            return
        self._active = True
        if self._watched:
            self._loop.add_reader(self._fd, self._on_readable)
        else:
            self._loop.run_in_executor(None, self._read).add_done_callback(self._on_read)

    def _on_readable(self) -> None:
        # Reading here and nowhere else: readiness is fresh, so that a blocking descriptor does not block.
        if self._chunk is None:
            chunk = self._read()
            if chunk is not None:
                self._deliver(chunk)
        else:
            self._loop.remove_reader(self._fd)
            self._active = False

    def _on_read(self, reading: asyncio.Future[bytes | None]) -> None:
        self._active = False
        if self._closed:
            os.close(self._fd)
        else:
            self._deliver(reading.result() or b"")

    def _read(self) -> bytes | None:
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return None  # the descriptor came non-blocking, and another reader of the same pipe was quicker
        except OSError as error:
            _log.debug("the stream broke while it was read", extra={"fields": {"error": str(error)}})
            return b""

    def _deliver(self, chunk: bytes) -> None:
        self._chunk = chunk
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class _Sink:
    """The write side: one message may be past the bound of what is unsent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._watched = _is_stream(fd)
        self._is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        self._writable = select.poll()
        self._writable.register(fd, select.POLLOUT)
        self._active = False  # the loop watches the descriptor, or a thread writes to it
        self._unsent = bytearray()
        self._turn = asyncio.Lock()
        self._progress = asyncio.Event()
        self._closed: str | None = None  # why nothing can be written any more
        self._released = False

    async def write(self, data: bytes) -> None:
        async with self._turn:
            await self._until_below(UNSENT_BYTES)
            self._take(data)

    def write_now(self, data: bytes) -> bool:
        if self._turn.locked() or len(self._unsent) >= UNSENT_BYTES:
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._refuse_if_closed()
        self._unsent += data
        self._start()
        self._refuse_if_closed()

    async def close(self) -> None:
        try:
            async with self._turn:
                await self._until_below(1)
        finally:
            self._release()

    async def _until_below(self, count: int) -> None:
        while len(self._unsent) >= count:
            self._progress.clear()
            await self._progress.wait()

    def _refuse_if_closed(self) -> None:
        if self._closed is not None:
            raise StreamClosed(self._closed)

    def _start(self) -> None:
        if self._active or not self._unsent:
            return
        if self._watched:
            self._send()
            if self._unsent:
                self._active = True
                self._loop.add_writer(self._fd, self._on_writable)
        else:
            self._active = True
            self._loop.run_in_executor(None, self._send_all, bytes(self._unsent)).add_done_callback(self._on_sent)

    def _send(self) -> None:
        try:
            while self._unsent and self._writable.poll(0):
                sent = os.write(self._fd, self._unsent[: self._sure_bytes()])
                del self._unsent[:sent]
        except BlockingIOError:
            pass  # the descriptor came non-blocking, and another writer of the same pipe was quicker
        except OSError as error:
            self._end(f"The other side is gone: {error.strerror}")

    def _sure_bytes(self) -> int:
        """Return how many bytes can be written without blocking, now that some can."""
        if sys.platform == "linux" and self._is_pipe and len(self._unsent) > select.PIPE_BUF:
            unread = bytearray(4)
            fcntl.ioctl(self._fd, termios.FIONREAD, unread)
            if not any(unread):  # else nobody knows how many of its pages are begun
                return max(select.PIPE_BUF, fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ))
        return select.PIPE_BUF

    def _on_writable(self) -> None:
        self._send()
        if not self._unsent:
            self._loop.remove_writer(self._fd)
            self._active = False
        self._progress.set()

    def _send_all(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            self._writable.poll()  # a terminal may have come non-blocking
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._fd, rest) :]
        return len(data)

    def _on_sent(self, sending: asyncio.Future[int]) -> None:
        self._active = False
        try:
            del self._unsent[: sending.result()]
        except OSError as error:
            self._end(f"The other side is gone: {error.strerror}")
        if self._released:
            os.close(self._fd)
            return
        self._start()
        self._progress.set()

    def _end(self, reason: str) -> None:
        self._closed = self._closed or reason
        self._unsent.clear()
        self._progress.set()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._end("This side closed the stream")
        if self._active and not self._watched:
            return  # a thread writes: the descriptor goes when it has come back
        if self._active:
            self._loop.remove_writer(self._fd)
        os.close(self._fd)


def _is_stream(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
