"""Stores under test: how to open one, what to put in, and what an answer to a batch is."""

import asyncio
import hashlib
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from plugin.clock import Clock, SystemClock
from plugin.store import outbox
from plugin.store.interface import Acknowledged, Batch, Caps, Enqueued, Gate, Record, Store
from plugin.store.sqlite import SqliteStore, open_store

PLATFORM = "https://platform.example"
OTHER_PLATFORM = "https://other.example"
AGENT = "codex"
NOW_MS = 1_700_000_000_000
CAPS = Caps(records=10_000, bytes=64 * 1024 * 1024)
PATIENCE_S = 20.0

OpenStore = Callable[[Path], Store]


def open_sqlite(folder: Path) -> Store:
    """Open the engine that ships."""
    return open_store(folder, clock=SystemClock())


# Every engine that claims to be a store is listed here, and passes the suites in tests/contract.
ENGINES: dict[str, OpenStore] = {"sqlite": open_sqlite}


@asynccontextmanager
async def opened(folder: Path, *, clock: Clock | None = None) -> AsyncGenerator[SqliteStore]:
    """Open a store that can be used at once, and close it."""
    store = open_store(folder, clock=clock or SystemClock())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await store.wait_ready()
        yield store
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await store.close()


def new_folder_in_memory() -> Path:
    """Make a folder where nothing waits for a disk, if this machine has such; for tests that open many stores."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return Path(tempfile.mkdtemp(prefix="agentic-sync-", dir=memory if memory.is_dir() else None))


def record(name: str, version: int = 1, *, size: int = 0, core: str | None = None, node: int | None = None) -> Record:
    """A record with this id; another version is other content. Its body has at least `size` bytes."""
    body = f'{{"id":"{name}","version":{version}}}'.encode().ljust(size)
    fingerprint = hashlib.sha256(body).hexdigest()
    return Record(id=name, fingerprint=fingerprint, body=body, core_fingerprint=core, fleet_node_id=node)


async def put(
    store: Store,
    *names: str,
    agent: str = AGENT,
    caps: Caps = CAPS,
    size: int = 0,
    node: int | None = None,
    now_ms: int = NOW_MS,
) -> Enqueued:
    """Enqueue explicit records with these ids."""
    records = [record(name, size=size, node=node) for name in names]
    return await store.enqueue(agent, records, caps=caps, now_ms=now_ms)


async def scan(store: Store, *records: Record, platform: str = PLATFORM, caps: Caps = CAPS) -> Enqueued:
    """Enqueue what a scan found."""
    return await store.enqueue(AGENT, records, caps=caps, now_ms=NOW_MS, scanned_for=platform)


async def claim(
    store: Store, *busy: str, max_records: int = 50, max_bytes: int = 1024 * 1024, now_ms: int = NOW_MS
) -> Batch | None:
    """Ask for the next batch."""
    found = await store.claim(PLATFORM, busy=busy, max_records=max_records, max_bytes=max_bytes, now_ms=now_ms)
    return found[0] if found else None


async def take(store: Store, *busy: str, max_records: int = 50, now_ms: int = NOW_MS) -> Batch:
    """Ask for the next batch, of which there must be one."""
    batch = await claim(store, *busy, max_records=max_records, now_ms=now_ms)
    assert batch is not None
    return batch


async def acknowledge(store: Store, batch: Batch, *, gate: Gate | None = None, now_ms: int = NOW_MS) -> None:
    """Record that the platform took the whole batch."""
    change = Acknowledged(synced=len(batch.rows), payload_bytes=sum(map(len, batch.bodies)))
    await store.record(batch, change, platform=PLATFORM, gate=gate, now_ms=now_ms)


async def waiting(store: Store) -> list[str]:
    """The ids of all rows, in order."""
    return [row.record_id for row in await store.rows()]


def fill(db: sqlite3.Connection, megabytes: int) -> None:
    """Queue so many records of a mebibyte each, in a transaction."""
    intake = outbox.Intake(db)
    line = intake.line("codex")
    for _ in range(megabytes):
        intake.add(line, Record(id="large", fingerprint="f", body=bytes(1024 * 1024)), queued_ms=NOW_MS)
    intake.count()
