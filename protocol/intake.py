"""What comes in and is to be handled: admission, handlers as tasks, cancellation, one answer to each request.

The decisions are `protocol.session`'s and `protocol.lanes`'; here they are carried out. Handlers run in tasks that
belong to the intake until they end, by themselves or by `abandon`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, TypeAlias

from protocol.dispatch import Dispatcher, Unfinished
from protocol.eager import Rest, begin
from protocol.errors import CallCancelled, Code, ErrorData, PeerClosed, RpcError
from protocol.lanes import Lanes, Place
from protocol.messages import Notification, Params, Request, encode_error, encode_result
from protocol.methods import Context, MethodTable, Remote
from protocol.outlet import Outlet
from protocol.session import Answer, Fate, Gathering, Requests, Stage, Step, Work, cut_short, key_of
from protocol.stats import Stats

logger = logging.getLogger(__name__)

CANCELS: Final = {"$/cancelRequest": ("id", Fate.CANCELLED), "notifications/cancelled": ("requestId", Fate.SILENCED)}
"""The methods that cancel a request: which param names it, and how it ends."""

RETRY_AFTER_MS: Final = 1_000

Call: TypeAlias = Request | Notification
Task: TypeAlias = asyncio.Task[None]


class Intake:
    """Admits calls, runs their handlers, and sends the answers through the outlet."""

    def __init__(
        self,
        remote: Remote,
        table: MethodTable,
        dispatcher: Dispatcher,
        outlet: Outlet,
        lanes: Lanes[Task],
        stats: Stats,
        *,
        on_end: Callable[[Task], None],
    ) -> None:
        self._remote = remote
        self._table = table
        self._dispatcher = dispatcher
        self._outlet = outlet
        self._lanes = lanes
        self._stats = stats
        self._on_end = on_end
        self._requests: Requests[Task] = Requests()
        self._stopped = False
        self._settled = asyncio.Event()  # a pulse
        self._waiters = 0  # for the pulse

    def admit(self, call: Call, batch: Gathering | None) -> Work[Task] | RpcError | None:
        """Admit a call that is no cancel; return work whose turn it is, for the caller to `start` or `begin` at once.

        None when its turn comes later; why, when it is to be refused.
        """
        method = self._table.get(call.method)
        urgent = method is not None and method.urgent
        if self._stopped and not urgent:
            return PeerClosed("This side is closing")
        place = self._lanes.place(size=call.size, urgent=urgent)
        if place is Place.NOWHERE:
            return _busy()
        if isinstance(call, Request):
            request_id, key = call.id, key_of(call.id)
            if self._requests.taken(key):
                return _duplicate()
            self._stats.requests += 1
        else:
            request_id = key = None
            self._stats.notifications += 1
        work: Work[Task] = Work(call, Context(self._remote, call.method, request_id, call.params), key, urgent, batch)
        if place is Place.WAIT:
            self._requests.open(work)
            self._lanes.wait(work)
            return None
        return work

    def start(self, work: Work[Task]) -> None:
        """Serve work in a task of its own."""
        self._requests.open(work)
        self._lanes.start(work)
        self._spawn(work)

    def begin(self, work: Work[Task], task: Task | None) -> Rest[None] | None:
        """Serve work in the task that is at hand, up to where it waits; return the rest, to be awaited there.

        Most handlers never wait. Their work is over before anybody could ask for it, so it is entered nowhere.
        """
        work.stage, work.handle = Stage.RUNNING, task
        self._lanes.first = work
        try:
            outcome = self._dispatcher.begin(work.call, work.context)
        except asyncio.CancelledError as error:
            outcome = self._interrupted(work, error)
        finally:
            self._lanes.first = None
        if outcome is None or (isinstance(outcome, bytes) and (work.settled or not self._outlet.full)):
            if outcome is not None and not work.settled:
                self._outlet.send(outcome, work.context.callbacks)
            return None
        self._requests.open(work)
        self._lanes.enter(work)
        return begin(self._serve(work, outcome))

    def _spawn(self, work: Work[Task]) -> None:
        work.handle = asyncio.get_running_loop().create_task(self._run(work))
        work.handle.add_done_callback(self._on_end)

    async def _run(self, work: Work[Task]) -> None:
        begun = self._lanes.begin(work)
        await self._serve(work, self._dispatcher.run(work.call, work.context) if begun else self._ending(work))

    async def _serve(self, work: Work[Task], outcome: Unfinished | bytes | None) -> None:
        """See work through: its answer, or what it comes to, goes out; then start what waited for its place."""
        try:
            try:
                payload = outcome if outcome is None or isinstance(outcome, bytes) else await outcome
            except asyncio.CancelledError as error:
                payload = self._interrupted(work, error)
            work.stage = Stage.DONE
            if self._outlet.full:
                await self._outlet.room()
            answer = self._close(work, payload)
            if answer is not None:
                self._outlet.send(answer.payload, answer.callbacks)
            if self._waiters:
                self._pulse()
        finally:
            following = self._lanes.leave(work)
            if following is not None:
                self._spawn(following)

    async def reply(self, payload: bytes | None, batch: Gathering | None) -> None:
        """Answer a message that is no work, None if it needs no answer; waits for room."""
        answer = None if payload is None else Answer(payload)
        if batch is not None:
            answer = batch.add(answer)
        if answer is not None and await self._outlet.room():
            self._outlet.push(answer.payload, answer.callbacks)

    def stop(self) -> None:
        """Refuse what comes from now on, other than urgent methods and cancels."""
        self._stopped = True

    async def idle(self, besides: Context | None) -> None:
        """Wait until everything is settled that has come in, besides the call of that context, and then written."""
        self._waiters += 1
        try:
            while any(not work.settled and work.context is not besides for work in self._lanes):
                await self._settled.wait()
        finally:
            self._waiters -= 1
        await self._outlet.flush()

    def abandon(self, besides: Context | None = None) -> None:
        """Answer -32000 to what is not settled, besides the call of that context, and interrupt its handlers."""
        this = asyncio.current_task()
        for work in self._lanes:
            if work.context is besides or work.stage is Stage.DONE:
                continue
            step = cut_short(work, Fate.CLOSED)
            self._settle(work, self._ending(work))
            if step is Step.WITHDRAW:
                self._lanes.withdraw(work)
            elif work.stage is Stage.RUNNING and work.handle is not None and work.handle is not this:
                work.handle.cancel()  # also a handler that took no notice of a cancel before

    @property
    def tasks(self) -> set[Task]:
        """Return the tasks of the handlers that have not ended."""
        return {work.handle for work in self._lanes if work.handle is not None}

    async def refuse(self, call: Call, batch: Gathering | None, error: RpcError) -> None:
        """Answer a call that was not admitted; waits for room."""
        if isinstance(call, Notification):
            self._stats.dropped_in += 1
            logger.debug("A notification was dropped", extra={"fields": {"method": call.method, "code": error.code}})
            await self.reply(None, batch)
            return
        match error.code:
            case Code.BUSY:
                self._stats.busy += 1
            case Code.CLOSED:
                self._stats.refused += 1
            case _:
                self._stats.duplicates += 1
        await self.reply(encode_error(call.id, error), batch)

    def _interrupted(self, work: Work[Task], error: asyncio.CancelledError) -> bytes | None:
        """Return the answer of a handler that ended in a cancellation, also in one that nobody asked of it here."""
        if work.fate is not Fate.NATURAL:
            return self._ending(work)
        if (task := asyncio.current_task()) is not None and task.cancelling():
            self._settle(work, self._ending(work))  # the program is ending, and this task with it
            raise error
        failure = RuntimeError("A handler awaited something that was cancelled")
        failure.__cause__ = error
        answer = self._dispatcher.explain(failure, work.call.method)
        return encode_error(work.call.id, answer) if isinstance(work.call, Request) else None

    def _ending(self, work: Work[Task]) -> bytes | None:
        """Return the answer of work that has no result of its own."""
        if not isinstance(work.call, Request):
            return None
        return encode_error(work.call.id, CallCancelled() if work.fate is Fate.CANCELLED else PeerClosed())

    def _settle(self, work: Work[Task], payload: bytes | None) -> None:
        answer = self._close(work, payload)
        if answer is not None:
            self._outlet.push(answer.payload, answer.callbacks)
        self._pulse()

    def _close(self, work: Work[Task], payload: bytes | None) -> Answer | None:
        if work.settled:
            return None
        self._requests.close(work)
        return work.settle(payload)

    def _pulse(self) -> None:
        self._settled.set()
        self._settled.clear()

    async def cancel(self, call: Call, batch: Gathering | None) -> None:
        """Cancel what the call of one of the `CANCELS` names; waits for room."""
        name, fate = CANCELS[call.method]
        work = self._requests.find(_named(call.params, name))
        if work is not None and work.stage is Stage.WAITING:
            await self._outlet.room()  # for its answer, which is due at once; meanwhile it may start to run
        step = Step.NOTHING if work is None else cut_short(work, fate)
        if work is None or step is Step.NOTHING:
            logger.debug("A cancel came for no request in flight", extra={"fields": {"method": call.method}})
        else:
            self._stats.cancelled += 1
            self._interrupt(work, step)
        await self.reply(encode_result(call.id, None) if isinstance(call, Request) else None, batch)

    def _interrupt(self, work: Work[Task], step: Step) -> None:
        if step is Step.WITHDRAW:
            self._lanes.withdraw(work)
            self._settle(work, self._ending(work))
        elif step is Step.INTERRUPT and work.handle is not None:
            work.handle.cancel()


def _busy() -> RpcError:
    data = ErrorData(kind="busy", retryable=True, retry_after_ms=RETRY_AFTER_MS)
    return RpcError(Code.BUSY, "Too many requests are waiting", data)


def _duplicate() -> RpcError:
    data = ErrorData(kind="duplicate_id", detail="a request with this id is in flight")
    return RpcError(Code.INVALID_REQUEST, "Invalid Request", data)


def _named(params: Params, name: str) -> object:
    if isinstance(params, dict):
        return params.get(name)
    return params[0] if params else None
