"""The store over SQLite: each call is one operation of the engine."""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from plugin.clock import Clock
from plugin.crash import point
from plugin.errors import QueueFull
from plugin.store import answers, batches, context, gates, history, ledger, outbox, takeover
from plugin.store.engine import Engine, Kind
from plugin.store.interface import (
    AgentTimes,
    Batch,
    BatchChange,
    CachedContext,
    Caps,
    ContextRow,
    CoreState,
    Enqueued,
    Gate,
    HistoryEntry,
    QueueCounts,
    QueueRow,
    Record,
    RowState,
    StoreHealth,
)
from plugin.store.keeper import Keeper

T = TypeVar("T")


def open_store(state_dir: Path, *, clock: Clock) -> "SqliteStore":
    """Open the store of a folder; it never raises and never waits: `health` and the calls say what is wrong."""
    return SqliteStore(Engine(Keeper(state_dir, clock=clock)))


class SqliteStore:
    """`Store` over one SQLite file."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sent: dict[str, Batch] = {}  # what each agent's answer is awaited for, without the bodies

    @property
    def health(self) -> StoreHealth:
        """Return how the store is, without waiting."""
        return self.engine.health

    async def wait_ready(self) -> None:
        """Wait until this process owns the folder and the file is open."""
        await self.engine.wait(Kind.READY)

    async def wait_uncontested(self) -> None:
        """Wait until no other process owns the folder."""
        await self.engine.wait(Kind.UNCONTESTED)

    async def close(self) -> None:
        """Finish what was submitted, checkpoint, close and release the folder."""
        await self.engine.close()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self.engine.run(work, kind=Kind.READ)

    # -- the outbox ----------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        agent_id: str,
        records: Sequence[Record],
        *,
        caps: Caps,
        now_ms: int,
        scanned_for: str | None = None,
    ) -> Enqueued:
        """Add records to the agent's queue, in order, in one transaction."""
        arrival = outbox.Arrival(agent_id, records, caps, now_ms, scanned_for)
        enqueued = await self.engine.run_together(_enqueue, arrival, kind=Kind.TAKE)
        point("enqueue.committed")
        return enqueued

    async def known(self, platform: str, marks: Sequence[tuple[str, str, str | None]]) -> Collection[int]:
        """Return the positions of the marks that a scanned enqueue would find known."""
        return await self._read(
            lambda db: {place for place, mark in enumerate(marks) if outbox.is_known(db, platform, mark)}
        )

    async def claim(
        self,
        platform: str,
        *,
        busy: Collection[str],
        settling: Collection[str] = (),
        most: int = 1,
        max_records: int,
        max_bytes: int,
        now_ms: int,
    ) -> tuple[Batch, ...]:
        """Return the next batches to send, forming and recording them if need be."""
        del platform  # a batch belongs to the queue, whichever platform it goes to

        def work(db: sqlite3.Connection) -> tuple[Batch, ...]:
            # On a full disk one was sent that is not recorded yet: no other may be formed of its rows.
            standing = {batch.agent_id for batch in sent if batches.find(db, batch, unanswered=True) is not None}
            held = {*busy, *(agent for agent in settling if agent in standing or agent not in known)}
            claimed: list[Batch] = []
            while len(claimed) < most:
                batch = batches.claim(db, busy=held, max_records=max_records, max_bytes=max_bytes, now_ms=now_ms)
                if batch is None:
                    break
                claimed.append(batch)
                held.add(batch.agent_id)
            if claimed:
                point("batch.written")
            return tuple(claimed)

        sent = tuple(self._sent.values())
        known = frozenset(self._sent)
        claimed = await self.engine.run(work, kind=Kind.SEND)
        if claimed:
            point("batch.committed")
        for batch in claimed:
            if not batch.apart:
                self._sent[batch.agent_id] = replace(batch, bodies=())
        return claimed

    async def record(self, batch: Batch, change: BatchChange, *, platform: str, gate: Gate | None, now_ms: int) -> None:
        """Record what an answer did to a batch, and the platform's new gate with it."""
        sent = self._sent.get(batch.agent_id)
        unanswered = sent is not None and (sent.rows, sent.key) == (batch.rows, batch.key)

        def work(db: sqlite3.Connection) -> None:
            passes = (gate or gates.load(db, platform)).passes
            answers.record(db, batch, change, platform=platform, passes=passes, unanswered=unanswered, now_ms=now_ms)
            if gate is not None:
                gates.save(db, platform, gate)
            point("record.written")

        await self.engine.run(work)
        point("record.committed")
        if unanswered and self._sent.get(batch.agent_id) is sent:
            del self._sent[batch.agent_id]

    async def next_due_ms(self) -> int | None:
        """Return when the next row may go."""
        return await self._read(outbox.next_due_ms)

    async def unsettled(self, agent_id: str, *, up_to_row: int) -> int:
        """Count the agent's WAITING rows up to a row."""
        return await self._read(lambda db: outbox.unsettled(db, agent_id, up_to_row))

    async def counts(self, agent_id: str | None = None) -> QueueCounts:
        """Count the outbox."""
        return await self._read(lambda db: outbox.counts(db, agent_id))

    async def rows(self, *, state: RowState | None = None, after: int = 0, limit: int = 1000) -> tuple[QueueRow, ...]:
        """List outbox rows by row number."""
        return await self._read(lambda db: outbox.rows(db, state=state, after=after, limit=limit))

    async def retry_dead(self, rows: Sequence[int] | None, *, now_ms: int) -> int:
        """Move dead letters back to WAITING."""
        return await self.engine.run(lambda db: outbox.retry_dead(db, rows, now_ms=now_ms))

    async def drop_dead(self, rows: Sequence[int] | None) -> int:
        """Delete dead letters for good."""
        return await self.engine.run(lambda db: outbox.drop_dead(db, rows))

    # -- gates and the ledger ------------------------------------------------------------------------------------

    async def gate(self, platform: str) -> Gate:
        """Return the platform's gate."""
        return await self._read(lambda db: gates.load(db, platform))

    async def set_gate(self, platform: str, gate: Gate) -> None:
        """Record the platform's gate."""
        await self.engine.run(lambda db: gates.save(db, platform, gate))

    async def ledger_size(self) -> int:
        """Count the ledger's rows."""
        return await self._read(ledger.size)

    # -- context, history, times ---------------------------------------------------------------------------------

    async def replace_context(
        self, platform: str, agent_id: str, rows: Sequence[ContextRow], *, entry: HistoryEntry, keep: int = 1000
    ) -> None:
        """Make these rows the whole cache of (platform, agent)."""

        def work(db: sqlite3.Connection) -> None:
            context.replace(db, platform, agent_id, rows, keep=keep, at_ms=entry.at_ms)
            history.pulled(db, agent_id, entry)

        await self.engine.run(work, kind=Kind.TAKE)

    async def merge_context(
        self, platform: str, agent_id: str, rows: Sequence[ContextRow], *, entry: HistoryEntry, keep: int = 1000
    ) -> None:
        """Put these rows before the cached ones."""

        def work(db: sqlite3.Connection) -> None:
            context.merge(db, platform, agent_id, rows, keep=keep, at_ms=entry.at_ms)
            history.pulled(db, agent_id, entry)

        await self.engine.run(work, kind=Kind.TAKE)

    async def context(self, platform: str, agent_id: str, *, now_ms: int) -> CachedContext:
        """Return the cached rows that have not expired."""
        return await self._read(lambda db: context.load(db, platform, agent_id, now_ms=now_ms))

    async def times(self, agent_id: str) -> AgentTimes:
        """Return when the agent last pushed and pulled."""
        return await self._read(lambda db: history.times(db, agent_id))

    async def history(self, direction: str) -> tuple[HistoryEntry, ...]:
        """Return the entries of one direction."""
        return await self._read(lambda db: history.entries(db, direction))

    # -- the Go agent's state ------------------------------------------------------------------------------------

    async def import_core(self, state: CoreState, *, platform: str, agent_id: str, mark: str, now_ms: int) -> bool:
        """Import the Go agent's state in one transaction with its mark."""

        def work(db: sqlite3.Connection) -> bool:
            taken = takeover.take_over(db, state, platform=platform, agent=agent_id, mark=mark, now_ms=now_ms)
            point("import.written")
            return taken

        point("import.read")
        taken = await self.engine.run(work, kind=Kind.TAKE)
        point("import.committed")
        return taken

    async def imported(self, mark: str) -> bool:
        """Say whether an import with this mark was done."""
        return await self._read(lambda db: takeover.is_done(db, mark))


def _enqueue(db: sqlite3.Connection, arrivals: Sequence[outbox.Arrival]) -> Sequence[Enqueued | QueueFull]:
    done = outbox.enqueue(db, arrivals)
    point("enqueue.written")
    return done
