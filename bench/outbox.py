"""A bare outbox: SQLite with a sync for each commit, one thread that writes, one commit for all that wait by then.

It does what the job asks and no more: a record that is queued already is not queued twice, each agent's order is kept,
and a caller goes on once its record is on the disk. It knows no caps, dead letters, full or damaged disks.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

MOST_TOGETHER = 256
_SETUP = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE outbox (row INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT, id TEXT, fingerprint TEXT, body BLOB);
CREATE INDEX identity ON outbox (id, fingerprint);
CREATE INDEX line ON outbox (agent, row);
"""

Row = tuple[str, str, str, bytes]  # agent, id, fingerprint, body
Job = tuple[Row, asyncio.Future[int]]


class Outbox:
    """The queue of one file."""

    def __init__(self, path: Path) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, row: Row) -> asyncio.Future[int]:
        """Queue a record; the future is done once it is on the disk, and says whether it was new."""
        future: asyncio.Future[int] = self._loop.create_future()
        self._jobs.put((row, future))
        return future

    def close(self) -> None:
        """Close the file, once all is written."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None)
        db.executescript(_SETUP)
        while (job := self._jobs.get()) is not None:
            jobs = [job, *self._waiting()]
            done = _write(db, [row for row, _ in jobs])
            self._loop.call_soon_threadsafe(_settle, jobs, done)
        db.close()

    def _waiting(self) -> list[Job]:
        jobs: list[Job] = []
        while len(jobs) < MOST_TOGETHER - 1 and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)
                break
            jobs.append(job)
        return jobs


def _write(db: sqlite3.Connection, rows: Sequence[Row]) -> list[int]:
    db.execute("BEGIN IMMEDIATE")
    done = [
        db.execute(
            "INSERT INTO outbox (agent, id, fingerprint, body) SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS"
            " (SELECT 1 FROM outbox WHERE id = ?2 AND fingerprint = ?3 AND +agent = ?1)",
            row,
        ).rowcount
        for row in rows
    ]
    db.execute("COMMIT")
    return done


def _settle(jobs: Sequence[Job], done: Sequence[int]) -> None:
    for (_, future), new in zip(jobs, done, strict=True):
        if not future.done():
            future.set_result(new)


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[Outbox]:
    """Open an outbox for a while."""
    outbox = Outbox(path)
    try:
        yield outbox
    finally:
        outbox.close()
