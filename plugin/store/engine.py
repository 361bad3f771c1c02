"""The one writer thread: it owns the folder and the connection, and commits what waits together.

Callers hand over functions of a connection and wait for their results. The thread takes all that wait, commits once,
and only then lets the callers go on; when that fails, it serves each by itself. It is the only thread that touches the
file.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from enum import Enum, auto
from itertools import groupby
from typing import Any, Generic, TypeVar, cast

from plugin.errors import StoreUnavailable
from plugin.store.interface import StoreHealth, StoreState
from plugin.store.keeper import CONTESTED_S, Keeper

R = TypeVar("R")
T = TypeVar("T")

LOG = logging.getLogger(__name__)
MOST_TOGETHER = 256
TOGETHER_S = 0.002
IDLE_S = 2.0


class Kind(Enum):
    """What a job needs."""

    READ = auto()  # any connection
    WRITE = auto()
    TAKE = auto()  # like WRITE, but it never uses the room that is set aside so that the outbox can drain
    SEND = auto()  # like WRITE, but on a full disk its result counts though nothing was stored
    READY = auto()  # that the file is open for writing
    UNCONTESTED = auto()  # that no other process owns the folder
    CLOSE = auto()


_OF_THE_FILE = (Kind.READ, Kind.WRITE, Kind.TAKE, Kind.SEND)  # no set: a Kind's hash is dear, and asked for each job


class _Uncovered(Exception):
    """New work would take the room in which what is queued can leave on a full disk."""


class _Unfinished(Exception):
    """A job stopped half-way, for a reason of its own."""


Share = Callable[[sqlite3.Connection, Sequence[R]], Sequence[T | Exception]]


class Job(Generic[R, T]):
    """One call: what it wants done, and who waits for it. Calls of one `share` that come together are done as one."""

    __slots__ = ("_future", "_value", "changed", "error", "kind", "performed", "request", "share")

    def __init__(self, kind: Kind, share: Share[R, T], request: R, future: asyncio.Future[T]) -> None:
        self.kind = kind
        self.share = share
        self.request = request
        self.error: Exception | None = None
        self.performed = False
        self.changed = False
        self._future = future
        self._value: T | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the caller."""
        return self._future.get_loop()

    def answer(self, answer: T | Exception, *, changed: bool) -> None:
        """Keep the result, or an error of the caller's own."""
        if isinstance(answer, Exception):
            self.error, self.performed = answer, False
        else:
            self.error, self.performed, self._value = None, True, answer
        self.changed = changed

    def settle(self) -> None:
        """Let the caller go on, in its own thread; it may have gone away."""
        if self._future.done():
            return
        if self.error is None:
            self._future.set_result(cast("T", self._value))
        else:
            self._future.set_exception(self.error)


class Engine:
    """Run jobs on a folder's database, from a thread that starts at once and never keeps a process alive."""

    def __init__(self, keeper: Keeper, *, together_s: float = TOGETHER_S) -> None:
        self.commits = 0
        self._together_s = together_s
        self._keeper = keeper
        self._queue: queue.SimpleQueue[Job[Any, Any]] = queue.SimpleQueue()
        self._backlog: deque[Job[Any, Any]] = deque()
        self._waiting: list[Job[Any, Any]] = []
        self._closing: asyncio.Future[None] | None = None
        self._serving: list[Job[Any, Any]] = []
        self._last: Job[Any, Any] | None = None
        threading.Thread(target=self._run, name="store", daemon=True).start()

    @property
    def health(self) -> StoreHealth:
        """Return how the store is, without waiting."""
        return self._keeper.health

    async def run(self, work: Callable[[sqlite3.Connection], T], *, kind: Kind = Kind.WRITE) -> T:
        """Run `work` in a transaction, alone or with others; return its result after the commit.

        Raises what `work` raised (then nothing of it is stored), StoreInUse or StoreUnavailable. A caller that is
        cancelled takes nothing back.
        """
        return await self.run_together(_one, work, kind=kind)

    def run_together(self, share: Share[R, T], request: R, *, kind: Kind) -> Awaitable[T]:
        """Like `run`, for calls of which many come at once: `share` does several in the order they came.

        It returns what became of each; an error among them is that call's alone, and nothing of it may be stored.
        """
        if self._closing is not None:
            raise StoreUnavailable("the store is closed")
        return self._submit(kind, share, request)

    async def wait(self, kind: Kind) -> None:
        """Wait until the store is READY, or UNCONTESTED; StoreUnavailable when it is closed before."""
        keeper = self._keeper
        usable = keeper.writer is not None and keeper.health.state is not StoreState.UNUSABLE
        if kind is Kind.READY and usable and self._closing is None:
            return  # asked before every claim: not worth a turn of the thread
        await self.run(_nothing, kind=kind)

    async def close(self) -> None:
        """Finish what was submitted, close the file and let go of the folder."""
        if self._closing is None:
            self._closing = self._submit(Kind.CLOSE, _one, _nothing)
        await asyncio.shield(self._closing)

    def _submit(self, kind: Kind, share: Share[R, T], request: R) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(Job(kind, share, request, future))
        return future

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._last is None:
                self._turn()
        except Exception:
            # A defect of this program: nobody must wait for a thread that is gone.
            LOG.exception("the store's thread has failed")
            self._keeper.give_up("the store's thread has failed: see the log, and start the plugin again")
            self._last = self._refuse_until_closed()
        left = [*self._backlog, *self._waiting]
        for job in left:
            job.error = StoreUnavailable("the store is closed")
        try:
            self._keeper.close()
        finally:
            _settle([*left, self._last])

    def _turn(self) -> None:
        self._keeper.attend()
        if self._waiting:
            self._answer_waiting()
        job = self._next()
        if job is None:
            self._keeper.rest()
        else:
            self._serving = [job]
            self._serve(job)
            self._serving = []

    def _refuse_until_closed(self) -> Job[Any, Any]:
        last = [] if self._last is None else [self._last]
        jobs = [*self._serving, *self._backlog, *self._waiting, *last]
        self._backlog.clear()
        self._waiting.clear()
        while True:
            for job in jobs:
                if job.kind is Kind.CLOSE:
                    return job
                job.error = self._keeper.refusal()
                _settle([job])
            jobs = [self._queue.get()]

    def _next(self) -> Job[Any, Any] | None:
        """Return the next job, or None after a while without one."""
        if self._backlog and not self._keeper.overlapping:
            return self._backlog.popleft()
        idle_s = IDLE_S if self._keeper.dirty else None
        timeout_s = CONTESTED_S if self._keeper.writer is None else idle_s
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _answer_waiting(self) -> None:
        keeper = self._keeper
        fulfilled = {Kind.READY: keeper.writer is not None, Kind.UNCONTESTED: keeper.uncontested}
        _settle([job for job in self._waiting if fulfilled[job.kind]])
        self._waiting = [job for job in self._waiting if not fulfilled[job.kind]]

    def _serve(self, job: Job[Any, Any]) -> None:
        keeper = self._keeper
        if job.kind is Kind.CLOSE:
            self._last = job
        elif job.kind in {Kind.READY, Kind.UNCONTESTED}:
            self._waiting.append(job)
        elif keeper.writer is not None:
            self._serve_together(keeper.writer, job)
        elif keeper.overlapping:
            self._backlog.append(job)
        elif keeper.reader is not None and job.kind is Kind.READ:
            self._read(keeper.reader, job)
        else:
            job.error = keeper.refusal()
            _settle([job])

    def _read(self, db: sqlite3.Connection, job: Job[Any, Any]) -> None:
        try:
            _perform(db, [job])
        except sqlite3.Error as error:
            job.error = self._keeper.refusal(error)
        _settle([job])

    def _serve_together(self, db: sqlite3.Connection, first: Job[Any, Any]) -> None:
        """Commit a job and all that wait behind it at once; when that fails, each by itself."""
        jobs = self._serving
        try:
            if first.kind is Kind.READ:
                _perform(db, [first])
            else:
                self._transact(db, first)
        except (sqlite3.Error, _Uncovered, _Unfinished):
            for job in jobs:
                self._serve_alone(job)
        else:
            self._worked(changed=any(job.changed for job in jobs))
        _settle(jobs)

    def _transact(self, db: sqlite3.Connection, first: Job[Any, Any]) -> None:
        """Do a job and those that wait or arrive behind it, for a moment, and commit."""
        until = time.monotonic() + self._together_s
        with _transaction(db):
            jobs = [first, *self._arrived()]
            while jobs:
                for _, together in groupby(jobs, key=_shared):
                    _do(db, list(together))
                jobs = self._arrived() if time.monotonic() < until else []
            if any(map(_takes, self._serving)) and not self._keeper.admits():
                raise _Uncovered

    def _arrived(self) -> list[Job[Any, Any]]:
        """Return the jobs that wait behind those that are served, which are now served as well."""
        jobs: list[Job[Any, Any]] = []
        most = MOST_TOGETHER - len(self._serving)
        while len(jobs) < most and self._last is None and (self._backlog or not self._queue.empty()):
            job = self._backlog.popleft() if self._backlog else self._queue.get()
            if job.kind in _OF_THE_FILE:
                jobs.append(job)
            else:
                self._serve(job)
        self._serving += jobs
        return jobs

    def _serve_alone(self, job: Job[Any, Any]) -> None:
        """Run a job in a transaction of its own; once more if what went wrong could be mended."""
        for final in (False, True):
            db = self._keeper.writer
            if db is None:
                job.error = self._keeper.refusal()
                return
            try:
                self._perform_alone(db, job)
            except _Uncovered:
                job.error = self._keeper.refusal()
                return
            except sqlite3.Error as error:
                if self._keeper.failed(error, final=final, drains=job.kind is not Kind.TAKE):
                    continue
                if job.kind is Kind.SEND and job.performed and self._keeper.health.state is StoreState.FULL:
                    return
                job.error = self._keeper.refusal(error)
                return
            self._worked(changed=job.changed and job.performed)
            return

    def _perform_alone(self, db: sqlite3.Connection, job: Job[Any, Any]) -> None:
        """Run a job in a transaction of its own; a read needs none, nor what keeps others from writing."""
        if job.kind is Kind.READ:
            _perform(db, [job])
            return
        with contextlib.suppress(_Unfinished), _transaction(db):
            _do(db, [job])
            if _takes(job) and not self._keeper.admits():
                raise _Uncovered

    def _worked(self, *, changed: bool) -> None:
        self.commits += changed
        self._keeper.worked(changed=changed)


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Generator[None]:
    """Commit what is done within; undo it on an error, unless SQLite did so by itself."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _takes(job: Job[Any, Any]) -> bool:
    """Say whether a job has taken new work in."""
    return job.kind is Kind.TAKE and job.changed


def _shared(job: Job[Any, Any]) -> object:
    """Return what jobs have in common that can be done as one."""
    return job if job.share is _one else job.share


def _one(db: sqlite3.Connection, works: Sequence[Callable[[sqlite3.Connection], T]]) -> Sequence[T]:
    return [work(db) for work in works]


def _do(db: sqlite3.Connection, jobs: Sequence[Job[Any, Any]]) -> None:
    """Do jobs as one, maybe among others; raise when an error of their own left something to undo.

    That is rare, so it may be dear: what was done with them is undone and done again, each job by itself. A savepoint
    for each job would be paid by all.
    """
    _perform(db, jobs)
    if any(job.error is not None and job.changed for job in jobs):
        raise _Unfinished


def _perform(db: sqlite3.Connection, jobs: Sequence[Job[Any, Any]]) -> None:
    """Do jobs as one and keep the results; errors of the database go through, any other is the callers'."""
    before = db.total_changes
    answers: Sequence[object]
    try:
        answers = jobs[0].share(db, [job.request for job in jobs])
    except Exception as error:  # the way from one thread to another: whatever it is, the caller gets it
        if _is_of_the_database(error):
            raise
        answers = [error] * len(jobs)
        if len(jobs) > 1:
            raise _Unfinished from error  # by itself each shows whose error it was
    changed = db.total_changes != before
    for job, answer in zip(jobs, answers, strict=True):
        job.answer(answer, changed=changed and not (len(jobs) > 1 and isinstance(answer, Exception)))


def _is_of_the_database(error: Exception) -> bool:
    """Say whether the file or the disk is to blame; a value that does not fit a column is the caller's."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _settle(jobs: Sequence[Job[Any, Any]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Job[Any, Any]]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, its in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_all, its)
        except RuntimeError:
            # The loop is gone and nobody waits any more; what was committed is committed.
            LOG.debug("the store outlived its event loop")


def _settle_all(jobs: list[Job[Any, Any]]) -> None:
    for job in jobs:
        job.settle()


def _nothing(_: sqlite3.Connection) -> None:
    """Do nothing: what is waited for is that the thread comes so far."""
