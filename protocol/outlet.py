"""The way out: messages that wait to be written, bounded, in order, many to a write.

Nothing is written before the framing is known. What is pushed earlier waits; of held notices, the oldest goes first.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from protocol.errors import StreamClosed
from protocol.framing import Framing, encode
from protocol.stdio import ByteStream

MAX_HELD: Final = 256
MAX_HELD_BYTES: Final = 1024 * 1024
SOON_BYTES: Final = 1024 * 1024
_WRITE_BYTES: Final = 64 * 1024  # messages are joined to writes of about this size
_MOST_TURNS: Final = 32  # of the loop that a write waits for more to join it


class Outlet:
    """Writes messages in the order in which they are pushed, from a task that `run` is.

    Those who can wait ask for `room` first, so that at most `max_unsent_bytes` and one message each are unsent. While
    `more` says that further messages are about to come, a write waits for them, for a few turns of the loop.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        max_unsent_bytes: int,
        framing: Framing | None,
        more: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stream = stream
        self._framing = framing
        self._max_unsent = max_unsent_bytes
        self._more = more
        self._queue: deque[tuple[bytes, tuple[Callable[[], None], ...]]] = deque()
        self.unsent_bytes = 0  # of messages pushed and not yet written
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._writing = False
        self._pending = asyncio.Event()
        self._changed = asyncio.Event()  # a pulse: whoever waits looks again
        self.broken = False
        self.dropped = 0  # messages held or pushed that can no longer be sent

    @property
    def full(self) -> bool:
        """Return whether who has a message should wait for room."""
        return self.unsent_bytes >= self._max_unsent

    @property
    def opened(self) -> bool:
        """Return whether the framing is known."""
        return self._framing is not None

    def open(self, framing: Framing) -> None:
        """Begin to write, in this framing, unless another is in use; held notices go first."""
        if self._framing is not None:
            return
        self._framing = framing
        self._pending.set()  # for what was pushed before
        for payload in self._held:
            self.push(payload)
        self._held.clear()
        self._held_bytes = 0
        self.wake()

    def hold(self, payload: bytes) -> None:
        """Keep a notice until the framing is known; where there is no room, the oldest are dropped."""
        self._held.append(payload)
        self._held_bytes += len(payload)
        while len(self._held) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
            self._held_bytes -= len(self._held.popleft())
            self.dropped += 1

    def push(self, payload: bytes, callbacks: tuple[Callable[[], None], ...] = ()) -> None:
        """Send a message, after all that were pushed before; `callbacks` run once it was written."""
        if self.broken:
            self.dropped += 1
            return
        if not self._queue:
            self._pending.set()
        self._queue.append((payload, callbacks))
        self.unsent_bytes += len(payload)

    def push_soon(self, payload: bytes) -> bool:
        """Send a message that matters little; False when much is unsent already."""
        if self.broken or self.unsent_bytes >= SOON_BYTES:
            self.dropped += 1
            return False
        self.push(payload)
        return True

    def send(self, payload: bytes, callbacks: tuple[Callable[[], None], ...] = ()) -> None:
        """Push a message; if it would go out alone, and nobody waits for it, write it here and now."""
        if self._queue or self._writing or self._framing is None or self.broken or self._more():
            self.push(payload, callbacks)
            return
        try:
            written = self._stream.write_now(encode(payload, self._framing))
        except StreamClosed:
            self.close()
            return
        if written:
            _call_soon(callbacks)
        else:
            self.push(payload, callbacks)

    async def room(self, *, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until a message may be pushed; False when none can be sent any more, or `given_up` says so."""
        while not (self.broken or given_up()):
            if self._framing is not None and not self.full:
                return True
            await self._changed.wait()
        return False

    def wake(self) -> None:
        """Let all who wait look again."""
        self._changed.set()
        self._changed.clear()

    async def flush(self) -> None:
        """Wait until all that was pushed has been written, or never can be."""
        while self.unsent_bytes and not self.broken:
            await self._changed.wait()

    async def run(self) -> None:
        """Write until the other side stops taking it."""
        try:
            while not self.broken:
                if self._framing is None or self._writing or not self._queue:
                    self._pending.clear()
                    await self._pending.wait()
                else:
                    await self._gather()
                    await self._write(*self._join(self._framing))
        finally:
            self.close()

    def close(self) -> None:
        """Drop what is unsent and let go of all who wait."""
        self.broken = True
        self.dropped += len(self._queue) + len(self._held)
        self._queue.clear()
        self._held.clear()
        self.unsent_bytes = 0
        self._pending.set()
        self.wake()

    async def _gather(self) -> None:
        for _ in range(_MOST_TURNS):
            if self.unsent_bytes >= _WRITE_BYTES or not self._more():
                return
            await asyncio.sleep(0)

    def _join(self, framing: Framing) -> tuple[bytes, int, Sequence[Callable[[], None]]]:
        frames: list[bytes] = []
        callbacks: list[Callable[[], None]] = []
        size = 0
        while self._queue and size < _WRITE_BYTES:
            payload, after = self._queue.popleft()
            frames.append(payload if framing is Framing.NDJSON else encode(payload, framing))
            if after:
                callbacks += after
            size += len(payload)
        if framing is Framing.NDJSON:
            frames.append(b"")
            return b"\n".join(frames), size, callbacks
        return b"".join(frames), size, callbacks

    async def _write(self, data: bytes, size: int, callbacks: Sequence[Callable[[], None]]) -> None:
        self._writing = True
        try:
            await self._stream.write(data)
        except StreamClosed:
            self.close()
            return
        finally:
            self._writing = False
            if self._queue:
                self._pending.set()
        self.unsent_bytes -= size
        _call_soon(callbacks)
        self.wake()


def _call_soon(callbacks: Sequence[Callable[[], None]]) -> None:
    # From the loop: what goes wrong in one is the loop's to report, and does not end the writing.
    for callback in callbacks:
        asyncio.get_running_loop().call_soon(callback)
