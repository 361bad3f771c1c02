"""The one writer thread: it owns the folder and the connection, and commits what waits together.

Callers hand over functions of a connection and wait for their results. The thread takes all that wait, gives each its
own savepoint, commits once, and only then lets the callers go on. It is the only thread that touches the file.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from plugin.errors import StoreUnavailable
from plugin.store import file
from plugin.store.interface import StoreHealth, StoreState
from plugin.store.keeper import Keeper, Trouble

T = TypeVar("T")

LOG = logging.getLogger(__name__)
MOST_TOGETHER = 256
ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the thread waits: without work before it tidies up, for another owner to end, between two looks."""

    idle_s: float = 3.0
    overlap_s: float = 2.0
    overlap_look_s: float = 0.1
    look_s: float = 1.0


USUAL = Pace()


class Need(Enum):
    """What an operation asks of the store."""

    READ = auto()
    WRITE = auto()  # changes or frees what is there: goes on while the disk is full
    ROOM = auto()  # takes something in


class _Operation:
    """A function of a connection, and who waits for its end."""

    def __init__(self, work: Callable[[sqlite3.Connection], None], need: Need, future: asyncio.Future[None]) -> None:
        self.need = need
        self.error: Exception | None = None
        self._work = work
        self._future = future

    def attempt(self, db: sqlite3.Connection) -> bool:
        """Do it; what it raised is its own, unless the store is to blame: then everybody's attempt fails."""
        try:
            self._work(db)
        except sqlite3.Error as error:
            if file.is_foreseen(error):
                raise
            self.error = error
        except Exception as error:  # noqa: BLE001 - carried to the caller, whatever it is
            self.error = error
        else:
            self.error = None
        return self.error is None

    def settle(self) -> None:
        """Let the caller go on, if it still waits; only in its event loop."""
        if self._future.done():
            return
        if self.error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(self.error)


class Engine:
    """Run operations on a folder's database; construct it inside the event loop that will wait for them."""

    def __init__(self, keeper: Keeper, *, pace: Pace = USUAL) -> None:
        self.commits = 0
        self._keeper = keeper
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._taken: list[_Operation] = []
        self._patient_until = time.monotonic() + pace.overlap_s
        self._closed = False
        self._failed = False
        self._ended = asyncio.Event()
        self._ready = asyncio.Event()
        self._uncontested = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def health(self) -> StoreHealth:
        """Return how the store is, without waiting."""
        if self._failed:
            return StoreHealth(state=StoreState.UNUSABLE, reason="the store's thread has failed: see the log; restart")
        return self._keeper.health

    async def wait_ready(self) -> None:
        """Wait until the file is open for writing; StoreUnavailable once closed."""
        await self._wait(self._ready)

    async def wait_uncontested(self) -> None:
        """Wait until no other process is known to own the folder; StoreUnavailable once closed."""
        await self._wait(self._uncontested)

    async def run(self, work: Callable[[sqlite3.Connection], T], *, need: Need = Need.WRITE) -> T:
        """Run `work` in a transaction of its own or with others; return its result after the commit.

        It may be run a second time, after all of the first was undone. Raises what `work` raised (then nothing of it
        is stored), StoreInUse or StoreUnavailable. A caller that is cancelled does not stop it.
        """
        self._check_open()
        results: list[T] = []
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(_Operation(lambda db: results.append(work(db)), need, future))
        await future
        return results[-1]

    async def close(self) -> None:
        """Finish what was submitted, close, and let go of the folder."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._ended.wait()

    async def _wait(self, event: asyncio.Event) -> None:
        self._check_open()
        await event.wait()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception:
            self._failed = True
            LOG.exception("the store's thread has failed")
        finally:
            self._keeper.close()
            self._call(self._end)

    def _turn(self) -> bool:
        """Look after the folder, take what waits and do it; False at the end."""
        keeper, pace = self._keeper, self._pace
        patient = time.monotonic() < self._patient_until
        keeper.look(every_s=pace.overlap_look_s if patient else pace.look_s)
        if not keeper.contested and not self._uncontested.is_set():
            self._call(self._uncontested.set)
        if keeper.writable and not self._ready.is_set():
            self._call(self._ready.set)
        goes_on = self._take(self._wait_s(patient=patient))
        if self._taken and not (keeper.contested and patient and goes_on):
            self._perform([one for one in self._taken if one.need is not Need.READ])
            self._perform([one for one in self._taken if one.need is Need.READ])
            self._taken = []
        elif not self._taken and keeper.busy:
            keeper.rest()
        return goes_on and not self._loop.is_closed()

    def _wait_s(self, *, patient: bool) -> float | None:
        """Return how long to wait for work: forever when the store is well and tidy."""
        keeper, pace = self._keeper, self._pace
        if keeper.contested and patient:
            return pace.overlap_look_s
        if keeper.full or not keeper.writable:
            return pace.look_s
        return pace.idle_s if keeper.busy else None

    def _take(self, wait_s: float | None) -> bool:
        """Wait for an operation and take all that wait with it; False when the end was among them."""
        try:
            operation = self._queue.get(timeout=wait_s)
            while operation is not None:
                self._taken.append(operation)
                if len(self._taken) >= MOST_TOGETHER:
                    return True
                operation = self._queue.get_nowait()
        except queue.Empty:
            return True
        return False

    def _perform(self, operations: Sequence[_Operation]) -> None:
        error = self._keeper.refusal()
        for _ in range(ATTEMPTS):
            if self._keeper.full:
                self._refuse([one for one in operations if one.need is Need.ROOM], self._keeper.refusal())
                operations = [one for one in operations if one.need is not Need.ROOM]
            if not operations:
                return
            try:
                self._attempt(operations)
            except Trouble as trouble:
                error = trouble.error
                if not trouble.again:
                    break
            else:
                self._settle(operations)
                return
        self._refuse(operations, error)

    def _attempt(self, operations: Sequence[_Operation]) -> None:
        writes = operations[0].need is not Need.READ
        with self._keeper.using(writes=writes) as db:
            if writes:
                self._transact(db, operations)
            else:
                for operation in operations:
                    operation.attempt(db)

    def _transact(self, db: sqlite3.Connection, operations: Sequence[_Operation]) -> None:
        changes = db.total_changes
        db.execute("BEGIN IMMEDIATE")
        try:
            for operation in operations:
                db.execute("SAVEPOINT operation")
                if not operation.attempt(db):
                    db.execute("ROLLBACK TO operation")
                db.execute("RELEASE operation")
            db.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite may have rolled back by itself.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.commits += 1
        if db.total_changes != changes:
            self._keeper.busy = True

    def _refuse(self, operations: Sequence[_Operation], error: StoreUnavailable) -> None:
        for operation in operations:
            operation.error = error
        self._settle(operations)

    # -- back to the event loop ----------------------------------------------------------------------------------

    def _settle(self, operations: Sequence[_Operation]) -> None:
        self._call(lambda: [operation.settle() for operation in operations])

    def _end(self) -> None:
        """Tell everybody who still waits that it is over; nobody can ask for anything after that."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                operation = self._queue.get_nowait()
                if operation is not None:
                    self._taken.append(operation)
        for operation in self._taken:
            operation.error = StoreUnavailable("the store is closed")
            operation.settle()
        for event in (self._ended, self._ready, self._uncontested):
            event.set()

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is gone and nobody waits any more; what was committed is committed.
            LOG.debug("the store outlived its event loop")
