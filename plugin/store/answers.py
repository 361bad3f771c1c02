"""What an answer does to a batch. Inside a transaction."""

import sqlite3
from typing import assert_never

from plugin.crash import point
from plugin.store import batches, history, ledger
from plugin.store.interface import (
    Acknowledged,
    Batch,
    BatchChange,
    Dead,
    Failed,
    HistoryEntry,
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
            db.executemany(
                "UPDATE outbox SET state = 'apart', due_ms = ?, reason = ? WHERE row = ?",
                [(min(due_ms, now_ms + batches.FURTHEST_MS), reason, row) for row in _only_row(db, batch, number)],
            )
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
    members, damaged = batches.members(db, number)
    batches.bury(db, damaged, batches.DAMAGED)
    batches.dissolve(db, number)
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
    sent = (
        f"(VALUES {', '.join(['(?, ?)'] * len(batch.rows))})"
        " CROSS JOIN outbox ON row = column1 AND record = column2 AND agent = ?"
    )
    named = [*(value for pair in zip(batch.rows, batch.record_ids, strict=True) for value in pair), batch.agent_id]
    if not ledger.write(db, platform, sent, named, now_ms=now_ms):
        return False
    held = f"FROM {sent} WHERE batch IS NOT NULL"
    records, size, least, most = db.execute(
        f"SELECT count(*), sum(size), min(batch), max(batch) {held}", named
    ).fetchone()
    numbers = {least} if least == most else {number for (number,) in db.execute(f"SELECT batch {held}", named)}
    db.execute(f"DELETE FROM outbox WHERE row IN (SELECT row FROM {sent})", named)  # noqa: S608 - our own words
    point("record.begun")
    if records:
        _remove_traces(db, batch, records, size)
        for number in numbers:
            batches.dissolve(db, number)
    return True


def _remove_traces(db: sqlite3.Connection, batch: Batch, records: int, size: int) -> None:
    """Remove the bodies of rows that went with their batch, and count them out: no trigger does it for these."""
    db.execute(
        f"DELETE FROM body WHERE row IN ({batches.marks(batch.rows)}) AND row NOT IN (SELECT row FROM outbox)",  # noqa: S608 - question marks
        batch.rows,
    )
    gone = {"agent": batch.agent_id, "records": records, "size": size}
    db.execute("UPDATE volume SET records = records - :records, bytes = bytes - :size WHERE what = 'waiting'", gone)
    db.execute(
        "UPDATE totals SET records = records - :records, bytes = bytes - :size"
        " WHERE agent = :agent AND state = 'waiting'",
        gone,
    )
    db.execute("DELETE FROM totals WHERE agent = :agent AND state = 'waiting' AND records = 0", gone)
