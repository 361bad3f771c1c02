"""The one writer thread: it owns the folder and the connection, and commits what waits together.

Callers hand over functions of a connection and wait for their results. The thread takes all that wait, gives each its
own savepoint, commits once, and only then lets the callers go on. It is the only thread that touches the file.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from plugin.errors import StoreInUse, StoreUnavailable
from plugin.store.interface import StoreHealth
from plugin.store.keeper import Keeper, Trouble

T = TypeVar("T")

LOG = logging.getLogger(__name__)
MOST_TOGETHER = 256
IDLE_S = 3.0
CONTESTED_S = 0.25
OVERLAP_S = 2.0


@dataclass(frozen=True, slots=True)
class _Operation(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    writes: bool
    future: asyncio.Future[T]


class Engine:
    """Run operations on a folder's database; construct it inside the event loop that will wait for them."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Operation[object] | None] = queue.SimpleQueue()
        self._closing = False
        self._ended = asyncio.Event()
        self.ready = asyncio.Event()
        self.uncontested = asyncio.Event()
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def health(self) -> StoreHealth:
        """Return how the store is, without waiting."""
        return self._keeper.health

    async def run(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Run `work` in a transaction of its own or with others; return its result after the commit.

        Raises what `work` raised (then nothing of it is stored), StoreInUse or StoreUnavailable.
        """
        if self._closing:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Operation(work, writes, future))  # type: ignore[arg-type]
        return await future

    async def close(self) -> None:
        """Finish what was submitted, checkpoint, close, and let go of the folder."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await self._ended.wait()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve(self._own())
        finally:
            self._keeper.close()
            self._call(self._ended.set)

    def _own(self) -> list[_Operation[object] | None]:
        """Become the owner of the folder; return what was submitted meanwhile. For a while callers wait, too."""
        waiting: list[_Operation[object] | None] = []
        waited_s = 0.0
        while not self._keeper.own():
            if waited_s >= OVERLAP_S:
                self._refuse(waiting)
                waiting = []
            try:
                waiting.append(self._queue.get(timeout=CONTESTED_S))
            except queue.Empty:
                waited_s += CONTESTED_S
            if None in waiting:
                self._refuse(waiting)
                return [None]
        self._call(self.uncontested.set)
        return waiting

    def _refuse(self, operations: list[_Operation[object] | None]) -> None:
        health = self._keeper.health
        error = StoreInUse(
            f"the state folder is in use by another agentic-sync (pid {health.pid}); this one takes over when it ends",
            pid=health.pid,
        )
        self._settle([(operation, None, error) for operation in operations if operation is not None])

    def _serve(self, waiting: list[_Operation[object] | None]) -> None:
        for operation in waiting:
            self._queue.put(operation)
        self._keeper.open()
        ready = False
        while True:
            if self._keeper.writable and not ready:
                ready = True
                self._call(self.ready.set)
            together, last = self._take()
            self._perform(together)
            if last:
                return
            if not together:
                self._keeper.rest()

    def _take(self) -> tuple[list[_Operation[object]], bool]:
        """Wait for an operation and take all that wait with it; say whether the end was among them."""
        together: list[_Operation[object]] = []
        try:
            operation = self._queue.get(timeout=IDLE_S if self._keeper.busy else None)
            while operation is not None and len(together) < MOST_TOGETHER - 1:
                together.append(operation)
                operation = self._queue.get_nowait()
        except queue.Empty:
            return together, False
        if operation is not None:
            together.append(operation)
            return together, False
        return together, True

    def _perform(self, together: list[_Operation[object]]) -> None:
        if not together:
            return
        writes = any(operation.writes for operation in together)
        try:
            db = self._keeper.connection(writes=writes)
            with self._keeper.translating():
                results = self._transact(db, together) if writes else [self._attempt(db, one) for one in together]
        except Trouble as trouble:
            if trouble.again:
                self._perform(together)
                return
            self._settle([(operation, None, trouble.error) for operation in together])
        else:
            self._settle(results)

    def _transact(self, db: sqlite3.Connection, together: list[_Operation[object]]) -> "list[_Result]":
        db.execute("BEGIN IMMEDIATE")
        try:
            results = [self._guarded(db, operation) for operation in together]
            db.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite may have rolled back by itself.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.commits += 1
        self._keeper.wrote()
        return results

    def _guarded(self, db: sqlite3.Connection, operation: _Operation[object]) -> "_Result":
        db.execute("SAVEPOINT operation")
        result = self._attempt(db, operation)
        if result[2] is not None:
            db.execute("ROLLBACK TO operation")
        db.execute("RELEASE operation")
        return result

    def _attempt(self, db: sqlite3.Connection, operation: _Operation[object]) -> "_Result":
        try:
            return operation, operation.work(db), None
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            if type(error) is sqlite3.DatabaseError:
                raise
            return operation, None, error

    def _settle(self, results: "list[_Result]") -> None:
        self._call(lambda: _resolve(results))

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is gone and nobody waits any more; what was committed is committed.
            LOG.debug("the store outlived its event loop")


_Result = tuple[_Operation[object], object, Exception | None]


def _resolve(results: list[_Result]) -> None:
    for operation, value, error in results:
        if operation.future.done():
            continue
        if error is None:
            operation.future.set_result(value)
        else:
            operation.future.set_exception(error)
