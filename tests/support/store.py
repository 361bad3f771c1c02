"""Stores to test: short ways to make records, to claim and to record, on a folder that can be opened again."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from plugin.store.engine import Pace
from plugin.store.interface import (
    Acknowledged,
    Batch,
    BatchChange,
    Caps,
    Dead,
    Enqueued,
    Gate,
    Record,
    SetApart,
    Store,
)
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.clock import FakeClock

PATIENCE_S = 20.0
PLATFORM = "https://platform.test"
NOW_MS = 1_700_000_000_000
ROOM = Caps(records=100_000, bytes=512 * 1024 * 1024)
# Everything that the thread waits for comes at once, so that no test has to wait for it.
HASTE = Pace(idle_s=0.05, overlap_s=0.0, overlap_look_s=0.02, look_s=0.02)

# Every engine must pass the contract.
ENGINES: Mapping[str, Callable[[Path], Store]] = {"sqlite": lambda folder: open_store(folder, clock=FakeClock())}


def record(
    name: str,
    *,
    version: int = 1,
    size: int = 40,
    core_fingerprint: str | None = None,
    fleet_node_id: int | None = None,
) -> Record:
    """Make a record whose body has `size` bytes, unless its name needs more."""
    body = f'{{"id": "{name}", "version": {version}}}'.encode().ljust(size)
    return Record(
        id=name,
        fingerprint=hashlib.sha256(body).hexdigest(),
        body=body,
        core_fingerprint=core_fingerprint,
        fleet_node_id=fleet_node_id,
    )


@dataclass(slots=True)
class Shelf:
    """A store on a folder, with usual arguments for its calls."""

    open_: Callable[[], Store]
    store: Store

    async def reopen(self) -> Store:
        """Close the store and open it again."""
        await self.store.close()
        self.store = self.open_()
        return self.store

    async def put(
        self,
        *names: str,
        agent: str = "codex",
        caps: Caps = ROOM,
        now_ms: int = NOW_MS,
        scanned_for: str | None = None,
        size: int = 40,
    ) -> Enqueued:
        """Enqueue records with these names."""
        records = [record(name, size=size) for name in names]
        return await self.store.enqueue(agent, records, caps=caps, now_ms=now_ms, scanned_for=scanned_for)

    async def claim(
        self, *busy: str, max_records: int = 50, max_bytes: int = 1024 * 1024, now_ms: int = NOW_MS
    ) -> Batch | None:
        """Claim the next batch."""
        return await self.store.claim(PLATFORM, busy=busy, max_records=max_records, max_bytes=max_bytes, now_ms=now_ms)

    async def take(self, *busy: str, max_records: int = 50, max_bytes: int = 1024 * 1024) -> Batch:
        """Claim the next batch, which must be there."""
        batch = await self.claim(*busy, max_records=max_records, max_bytes=max_bytes)
        assert batch is not None
        return batch

    async def note(self, batch: Batch, change: BatchChange, *, gate: Gate | None = None, now_ms: int = NOW_MS) -> None:
        """Record what an answer did."""
        await self.store.record(batch, change, platform=PLATFORM, gate=gate, now_ms=now_ms)

    async def deliver(self, *names: str, agent: str = "codex") -> None:
        """Enqueue records and have them acknowledged; nothing else may wait."""
        await self.put(*names, agent=agent)
        await self.note(await self.take(), acknowledged(len(names)))

    async def bury(self, *names: str, agent: str = "codex") -> list[int]:
        """Enqueue records and have each refused; nothing else may wait."""
        return [await self._end(name, agent, Dead(reason="refused", status=422, answer="no")) for name in names]

    async def set_apart(self, *names: str, agent: str = "codex", due_ms: int = NOW_MS) -> list[int]:
        """Enqueue records and have each set apart; nothing else may wait."""
        return [await self._end(name, agent, SetApart(due_ms=due_ms, reason="500")) for name in names]

    async def _end(self, name: str, agent: str, change: BatchChange) -> int:
        row = (await self.put(name, agent=agent)).last_row
        batch = await self.take()
        assert batch.record_ids == (name,)
        await self.note(batch, change)
        return row

    async def names(self) -> list[str]:
        """The records in the outbox, in order."""
        return [row.record_id for row in await self.store.rows()]


def acknowledged(synced: int = 1) -> Acknowledged:
    """An answer that took everything."""
    return Acknowledged(synced=synced, payload_bytes=100)


@asynccontextmanager
async def shelf_on(folder: Path, open_: Callable[[Path], Store]) -> AsyncGenerator[Shelf]:
    """Open a store on a folder, close what is open at the end."""
    shelf = Shelf(lambda: open_(folder), open_(folder))
    try:
        yield shelf
    finally:
        await shelf.store.close()


@asynccontextmanager
async def opened(folder: Path, *, pace: Pace = HASTE) -> AsyncGenerator[SqliteStore]:
    """Open a store that waits for nothing; every wait inside is bounded."""
    store = open_store(folder, clock=FakeClock(), pace=pace)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield store
    finally:
        await store.close()


async def drain(store: Store, *, busy: Collection[str] = ()) -> list[str]:
    """Claim and acknowledge until nothing is left; return the ids in the order in which they were sent."""
    sent: list[str] = []
    while batch := await store.claim(PLATFORM, busy=busy, max_records=50, max_bytes=1024 * 1024, now_ms=NOW_MS):
        sent.extend(batch.record_ids)
        await store.record(batch, acknowledged(), platform=PLATFORM, gate=None, now_ms=NOW_MS)
    return sent


def ids(batches: Iterable[Batch]) -> list[tuple[str, ...]]:
    """What each batch holds."""
    return [batch.record_ids for batch in batches]
