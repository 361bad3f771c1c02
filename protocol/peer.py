"""One end of a JSON-RPC connection: reads, routes, calls. The same at both ends.

What waits for what, so that nothing grows and nobody waits for ever:

- The reader waits for no handler. It takes the first steps of a handler itself, which for most are all; when the
  handler waits, another task reads on. When half of the places are taken it gives handlers a turn before each message,
  so that quick ones keep up with any flood; once all are, requests are answered `busy` and notifications dropped.
- Where the other side does not read, `unsent_bytes` are kept. Then handlers wait with their answers, holding their
  slots, and callers wait with their calls. The reader goes on with answers, cancels, and requests that find a place;
  it stops only before a message that it must answer itself: a refusal. So two peers that both flood, and both read
  nothing but answers, stand still only after both have filled all their bounds.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from protocol.convert import Mismatch, convert
from protocol.dispatch import Dispatcher, Translate, new_trace_id, untranslated
from protocol.errors import BadResult, CallTimeout, Code, ErrorData, FrameError, PeerClosed, RpcError
from protocol.framing import Decoder, Frame, Framing
from protocol.intake import CANCELS, Intake
from protocol.lanes import Lanes
from protocol.messages import (
    Batch,
    Incoming,
    Invalid,
    Notification,
    Request,
    Response,
    decode,
    encode_error,
    encode_notification,
    encode_request,
)
from protocol.methods import Context, MethodTable
from protocol.outlet import Outlet
from protocol.session import Calls, Gathering
from protocol.stats import Stats
from protocol.stdio import ByteStream

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIB: Final = 1024 * 1024
_CALLS: Final = (Request, Notification)  # a tuple: their union would be made anew for each message
_SERVED_IN_A_ROW: Final = 32  # calls that the reader serves before others get a turn


class Limits(Struct, frozen=True, kw_only=True):
    """The bounds of one connection."""

    max_message_bytes: int = 16 * MIB  # of a message that comes in
    handlers: int = 8  # that run at once, besides urgent ones
    waiting: int = 1024  # calls that wait for a handler, and urgent ones that run
    waiting_bytes: int = 64 * MIB
    unsent_bytes: int = 16 * MIB  # of messages that the other side has not read


DEFAULT_LIMITS: Final = Limits()

FirstMessage: TypeAlias = Callable[[str | None], Awaitable[None]]


class Peer:
    """A connection over a byte stream, which it owns from now on.

    `run` it in a task; `drain` and `close` it when that has returned, or before. Without a forced `framing` the other
    side speaks first: until then notifications are held, and calls wait. `on_first_message` is awaited before the
    first message is handled, with the name of the method that it calls, if it calls one; it must not call back.
    """

    def __init__(
        self,
        stream: ByteStream,
        table: MethodTable,
        *,
        framing: Framing | None = None,
        limits: Limits = DEFAULT_LIMITS,
        translate: Translate = untranslated,
        trace_id: Callable[[], str] = new_trace_id,
        on_first_message: FirstMessage | None = None,
    ) -> None:
        self._stats = Stats()
        self._stream = stream
        self._decoder = Decoder(limits.max_message_bytes, framing)
        self._lanes: Lanes[asyncio.Task[None]] = Lanes(
            handlers=limits.handlers, waiting=limits.waiting, waiting_bytes=limits.waiting_bytes
        )
        self._outlet = Outlet(
            stream,
            max_unsent_bytes=limits.unsent_bytes,
            framing=framing,
            more=lambda: self._lanes.due > 0 or len(self._frames) > 0,
        )
        dispatcher = Dispatcher(table, translate=translate, trace_id=trace_id)
        self._intake = Intake(self, table, dispatcher, self._outlet, self._lanes, self._stats, on_end=self._on_end)
        self._calls: Calls[asyncio.Future[Response | None]] = Calls()
        self._on_first_message = on_first_message
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._defect: BaseException | None = None
        self._frames: deque[Frame] = deque()  # read, and not yet taken
        self._ended = False
        self._hung_up = False  # no answer can come any more
        self._closing = False
        self._closed = asyncio.Event()

    @property
    def framing(self) -> Framing | None:
        """Return the framing in use, None until it is known."""
        return self._decoder.framing

    @property
    def stats(self) -> Stats:
        """Return the counts so far."""
        return replace(
            self._stats,
            dropped_out=self._outlet.dropped,
            open_calls=len(self._calls),
            unsent_bytes=self._outlet.unsent_bytes,
        )

    async def run(self) -> None:
        """Read and handle messages until the other side has ended its stream, or stopped reading ours for good.

        Handlers that run go on, and their answers go out; calls that wait raise PeerClosed. Run it once. It raises
        what the hook for the first message raised, and what shows a defect of this program or of the stream.
        """
        if self._closing:
            return
        writer = self._writer = asyncio.create_task(self._outlet.run())
        writer.add_done_callback(self._on_end)
        self._reader = self._read_on()
        try:
            await self._over.wait()
        finally:
            self._hang_up()
            reader = self._reader
            reader.cancel()
            await asyncio.wait({reader})
        if self._defect is not None:
            raise self._defect

    async def call(self, method: str, params: object = None, *, timeout_s: float, result: type[T]) -> T:
        """Call the other side and return its answer as `result`.

        Raises RpcError for the error that it answers, CallTimeout after `timeout_s`, PeerClosed when no answer can
        come, BadResult for an answer of another type, EncodeError for params that JSON cannot carry. Timed out or
        cancelled, it sends `$/cancelRequest`, and a late answer is dropped.
        """
        waiter: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        call_id: int | None = None
        try:
            async with asyncio.timeout(timeout_s):
                if not await self._outlet.room(given_up=lambda: self._hung_up):
                    raise PeerClosed
                call_id = self._calls.open(waiter)
                self._outlet.push(encode_request(call_id, method, params))
                self._stats.calls += 1
                await waiter
        except TimeoutError:
            if not waiter.done() or waiter.cancelled():
                self._stats.timeouts += 1
                raise CallTimeout(method, timeout_s) from None
        finally:
            if self._calls.take(call_id) is not None and waiter.cancelled():
                self._outlet.push(encode_notification("$/cancelRequest", {"id": call_id}))
        return _result(method, waiter.result(), result)

    async def notify(self, method: str, params: object = None) -> None:
        """Tell the other side, waiting while it does not read. Raises PeerClosed and EncodeError."""
        payload = encode_notification(method, params)
        if not self._outlet.opened:
            self._outlet.hold(payload)
        elif await self._outlet.room():
            self._outlet.push(payload)
        else:
            raise PeerClosed

    def notify_soon(self, method: str, params: object = None) -> bool:
        """Tell the other side without waiting; False when it was dropped, since much is unsent. Raises EncodeError."""
        payload = encode_notification(method, params)
        if self._outlet.opened:
            return self._outlet.push_soon(payload)
        self._outlet.hold(payload)
        return True

    def limit(self, limits: Limits) -> None:
        """Put other bounds on what comes in from now on; that of what is unsent stays."""
        self._decoder.limit(limits.max_message_bytes)
        self._lanes.limit(handlers=limits.handlers, waiting=limits.waiting, waiting_bytes=limits.waiting_bytes)

    def stop_intake(self) -> None:
        """From now on answer -32000 to requests and drop notifications, other than those of urgent methods."""
        self._intake.stop()

    async def idle(self, *, besides: Context | None = None) -> None:
        """Wait until all that came in is answered and written; a handler that waits so gives its own context."""
        await self._intake.idle(besides)

    async def drain(self, timeout_s: float, *, besides: Context | None = None) -> bool:
        """Wait until idle, at most so long; return whether it came to that.

        What is not answered by then is answered -32000 and interrupted.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.idle(besides=besides)
        except TimeoutError:
            self._intake.abandon(besides)
            return False
        return True

    async def close(self, timeout_s: float = 0.5) -> None:
        """End it: answer -32000 to what is in flight, write what can be written in that time, let go of the stream.

        Calls that wait raise PeerClosed. It returns in time whatever a handler or the other side does. Idempotent.
        """
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self.stop_intake()
        self._hang_up()
        self._intake.abandon()
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._finish()
        finally:
            self._outlet.close()
            if self._writer is not None:
                self._writer.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._stream.close()
            self._closed.set()

    async def _finish(self) -> None:
        others = self._intake.tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)
        if self._writer is not None:
            await self._outlet.flush()

    def _read_on(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._read())
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, task: asyncio.Task[None]) -> None:
        defect = None if task.cancelled() else task.exception()
        if defect is not None:
            self._defect = self._defect or defect
            logger.error("A connection failed for a defect of this program", exc_info=defect)
        if defect is not None or task in (self._reader, self._writer):
            self._over.set()

    async def _read(self) -> None:
        me = asyncio.current_task()
        served = 0
        while self._frames or await self._fill():
            if self._lanes.crowded:
                await asyncio.sleep(0)
            frame = self._frames.popleft()
            message = decode(frame) if isinstance(frame, bytes) else _unframed(frame)
            if self._on_first_message is not None:
                await self._meet(message)
            if not isinstance(message, _CALLS) or message.method in CANCELS:
                await self._route(message, None)
                continue
            work = self._intake.admit(message, None)
            if work is None:
                continue
            if isinstance(work, RpcError):
                await self._intake.refuse(message, None, work)
                continue
            if self._lanes.due:
                self._intake.start(work)
                continue
            rest = self._intake.begin(work, me)
            if rest is not None:
                self._reader = self._read_on()  # this task is the handler's from now on
                await rest
                return
            served += 1
            if served % _SERVED_IN_A_ROW == 0:
                await asyncio.sleep(0)

    async def _fill(self) -> bool:
        """Read until there are frames; False at the end of the input."""
        while not self._frames and not self._ended:
            data = await self._stream.read()
            self._ended = not data
            self._frames.extend(self._decoder.feed(data) if data else self._decoder.end())
            if not self._outlet.opened and self._decoder.framing is not None:
                self._outlet.open(self._decoder.framing)
        return bool(self._frames)

    async def _meet(self, message: Incoming) -> None:
        hook, self._on_first_message = self._on_first_message, None
        if hook is not None:
            await hook(_method_of(message))

    async def _route(self, message: Incoming, batch: Gathering | None) -> None:
        """Take a message that is no call, a cancel, or a member of a batch; a member runs in a task of its own."""
        match message:
            case Request() | Notification() if message.method in CANCELS:
                await self._intake.cancel(message, batch)
            case Request() | Notification():
                work = self._intake.admit(message, batch)
                if isinstance(work, RpcError):
                    await self._intake.refuse(message, batch, work)
                elif work is not None:
                    self._intake.start(work)
            case Response():
                self._resolve(message)
                await self._intake.reply(None, batch)
            case Invalid():
                if message.void and self._resolve(Response(message.id, None, None)):
                    await self._intake.reply(None, batch)
                else:
                    self._stats.malformed += 1
                    await self._intake.reply(encode_error(message.id, message.error), batch)
            case Batch():
                await self._unpack(message)

    async def _unpack(self, batch: Batch) -> None:
        gathering = Gathering(len(batch.items))
        for item in batch.items:
            if self._lanes.crowded:
                await asyncio.sleep(0)
            await self._route(item, gathering)

    def _resolve(self, response: Response) -> bool:
        waiter = self._calls.take(response.id)
        if waiter is not None and not waiter.done():
            waiter.set_result(response)
            return True
        self._stats.dropped_late += 1
        logger.debug("An answer came that nobody waits for", extra={"fields": {"id": response.id}})
        return False

    def _hang_up(self) -> None:
        self._hung_up = True
        for waiter in self._calls.take_all():
            if not waiter.done():
                waiter.set_result(None)
        self._outlet.wake()


def _result(method: str, response: Response | None, result: type[T]) -> T:
    if response is None:
        raise PeerClosed
    if response.error is not None:
        raise response.error
    try:
        return convert(response.result, result)
    except Mismatch as misfit:
        raise BadResult(method, misfit.path, misfit.detail) from None


def _unframed(error: FrameError) -> Invalid:
    """Return what to answer to bytes that are no frame."""
    data = ErrorData(kind=error.kind, detail=str(error))
    if error.kind == "message_too_large":
        return Invalid(None, Code.INVALID_REQUEST, "Invalid Request", data)
    return Invalid(None, Code.PARSE_ERROR, "Parse error", data)


def _method_of(message: Incoming) -> str | None:
    first = message.items[0] if isinstance(message, Batch) else message
    return first.method if isinstance(first, Request | Notification) else None
