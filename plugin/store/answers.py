"""What an answer does to a batch. Inside a transaction."""

import sqlite3
from typing import assert_never

from plugin.crash import point
from plugin.store import batches, history, ledger, outbox, totals
from plugin.store.interface import (
    Acknowledged,
    Batch,
    BatchChange,
    Dead,
    Failed,
    HistoryEntry,
    RowState,
    SetApart,
    Split,
)


def record(
    db: sqlite3.Connection,
    batch: Batch,
    change: BatchChange,
    *,
    platform: str,
    passes: int,
    unanswered: bool,
    now_ms: int,
) -> None:
    """Record what an answer did to a batch; nothing happens when its rows are no longer as they were sent.

    An acknowledgement counts for every row that is still there, in whatever batch it is by now.
    """
    number = None
    if not batch.apart and not isinstance(change, Acknowledged):
        number = batches.find(db, batch, unanswered=unanswered)
    match change:
        case Acknowledged():
            _acknowledge(db, batch, change, platform=platform, now_ms=now_ms)
        case Failed(counts=counts):
            if counts:
                _count_failure(db, number, passes)
        case Split(suspect=suspect):
            _split(db, batch, number, suspect=suspect)
        case Dead():
            batches.bury(db, _only_row(db, batch, number), change.reason, change.status, change.answer)
        case SetApart(due_ms=due_ms, reason=reason):
            due_ms = min(due_ms, now_ms + batches.FURTHEST_MS)
            outbox.move(db, _only_row(db, batch, number), RowState.APART, due_ms=due_ms, reason=reason)
        case _:
            assert_never(change)


def _only_row(db: sqlite3.Connection, batch: Batch, number: int | None) -> list[int]:
    """Dissolve a batch of one row; return the row unless it went another way meanwhile."""
    if len(batch.rows) != 1:
        raise ValueError("only a batch of one record can become a dead letter or be set apart")
    if batch.apart:
        found = db.execute("SELECT row FROM outbox WHERE row = ? AND state = 'apart'", batch.rows)
        return [row for (row,) in found]
    if number is None:
        return []
    batches.dissolve(db, number)
    return list(batch.rows)


def _count_failure(db: sqlite3.Connection, number: int | None, passes: int) -> None:
    db.execute(
        "UPDATE batch SET failures = failures + 1,"
        " passes_at_failure = CASE failures WHEN 0 THEN ? ELSE passes_at_failure END,"
        " rank = CASE WHEN suspect OR failures + 1 >= ? THEN failures + 1 ELSE 0 END WHERE id = ?",
        (passes, batches.ENOUGH_FAILURES, number),
    )


def _split(db: sqlite3.Connection, batch: Batch, number: int | None, *, suspect: bool) -> None:
    if len(batch.rows) == 1:
        raise ValueError("a batch of one record cannot be split")
    if number is None:
        return
    members = batches.members(db, number)
    batches.forget(db, number)
    middle = (len(members) + 1) // 2
    for half in (members[:middle], members[middle:]):
        if half:
            batches.write(db, batch.agent_id, half, suspect=suspect)


def _acknowledge(db: sqlite3.Connection, batch: Batch, change: Acknowledged, *, platform: str, now_ms: int) -> None:
    if not _deliver(db, batch, platform=platform, now_ms=now_ms):
        return
    history.touch(db, batch.agent_id, pushed_ms=now_ms)
    history.add(
        db,
        HistoryEntry(
            agent_id=batch.agent_id,
            fleet_node_id=batch.fleet_node_id,
            direction="push",
            payload_bytes=change.payload_bytes,
            items=change.synced,
            at_ms=now_ms,
        ),
    )


def _deliver(db: sqlite3.Connection, batch: Batch, *, platform: str, now_ms: int) -> bool:
    """Move the rows of a batch that are still there into the ledger; say whether there were any.

    Each statement does its part for all of them: fifty small ones would wait fifty times for the rest of the program.
    """
    rows, left = batch.rows, [(RowState.WAITING, len(batch.rows), sum(map(len, batch.bodies)))]
    if scattered := not batches.delete(db, batch):
        rows, left = _left(db, batch)
        if not rows:
            return False
        batches.release(db, batch)
    ledger.write(db, platform, rows, now_ms=now_ms)
    db.execute(f"DELETE FROM outbox WHERE row IN ({batches.marks(rows)})", rows)  # noqa: S608 - question marks
    point("record.begun")
    for state, records, size in left:
        totals.add(db, batch.agent_id, state, -records, -size)
    if scattered:
        totals.reach(db, batch.agent_id)
    return True


def _left(db: sqlite3.Connection, batch: Batch) -> tuple[tuple[int, ...], list[tuple[RowState, int, int]]]:
    """Return what is left of rows that are not in their batch any more, and what of them is counted where."""
    rows: list[int] = []
    left: list[tuple[RowState, int, int]] = []
    for named in zip(batch.rows, batch.record_ids, strict=True):
        found = db.execute(
            "SELECT state, length(body) FROM outbox WHERE row = ? AND record = ? AND agent = ?",
            (*named, batch.agent_id),
        ).fetchone()
        if found is not None:
            rows.append(named[0])
            left.append((found[0], 1, found[1]))
    return tuple(rows), left
