"""The outbox: what goes in, how much is there, and what people may do with dead letters. Inside a transaction."""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence

from plugin.errors import QueueFull
from plugin.store import ledger
from plugin.store.interface import Caps, Enqueued, QueueCounts, QueueRow, Record, RowState

LEFT = "state IN ('waiting', 'apart')"


def enqueue(
    db: sqlite3.Connection, agent: str, records: Sequence[Record], *, caps: Caps, now_ms: int, scanned_for: str | None
) -> Enqueued:
    """Add the records that are not known yet: all of them or, of scanned ones, as many as there is room for."""
    fresh = list(_fresh(db, agent, records, scanned_for))
    taken = _within(db, fresh, caps, partly=scanned_for is not None)
    rows = [insert(db, agent, record, queued_ms=now_ms) for record in taken]
    return Enqueued(
        added=len(taken),
        known=len(records) - len(fresh),
        left_out=len(fresh) - len(taken),
        last_row=rows[-1] if rows else _last_row(db, agent),
    )


def _last_row(db: sqlite3.Connection, agent: str) -> int:
    found = db.execute("SELECT max(row) FROM outbox WHERE agent = ? AND state = 'waiting'", (agent,))
    return found.fetchone()[0] or 0


def insert(db: sqlite3.Connection, agent: str, record: Record, *, queued_ms: int) -> int:
    """Add one row and its body; return its number."""
    row = db.execute(
        "INSERT INTO outbox (agent, record, fingerprint, core_fingerprint, fleet_node, size, queued_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            agent,
            record.id,
            record.fingerprint,
            record.core_fingerprint,
            record.fleet_node_id,
            len(record.body),
            queued_ms,
        ),
    ).lastrowid
    if row is None:
        raise RuntimeError("A row was written without a number")
    digest = hashlib.sha256(record.body).digest()
    db.execute("INSERT INTO body (row, body, sha256) VALUES (?, ?, ?)", (row, record.body, digest))
    return row


def is_queued(db: sqlite3.Connection, agent: str, record: Record) -> bool:
    """Say whether the agent's queue holds this very record, still to be sent."""
    found = db.execute(
        f"SELECT 1 FROM outbox WHERE record = ? AND fingerprint = ? AND agent = ? AND {LEFT}",  # noqa: S608 - a constant
        (record.id, record.fingerprint, agent),
    )
    return found.fetchone() is not None


def is_known(db: sqlite3.Connection, platform: str, mark: tuple[str, str, str | None]) -> bool:
    """Say whether a scanned record is delivered, queued for any agent, or a dead letter already."""
    record, fingerprint, _ = mark
    if ledger.has(db, platform, *mark):
        return True
    found = db.execute("SELECT 1 FROM outbox WHERE record = ? AND fingerprint = ?", (record, fingerprint))
    return found.fetchone() is not None


def _fresh(db: sqlite3.Connection, agent: str, records: Sequence[Record], scanned_for: str | None) -> Iterator[Record]:
    seen: set[tuple[str, str]] = set()
    for record in records:
        identity = (record.id, record.fingerprint)
        if identity in seen:
            continue
        seen.add(identity)
        if scanned_for is None:
            known = is_queued(db, agent, record)
        else:
            known = is_known(db, scanned_for, (*identity, record.core_fingerprint))
        if not known:
            yield record


def _within(db: sqlite3.Connection, records: Sequence[Record], caps: Caps, *, partly: bool) -> Sequence[Record]:
    count, size, dead = db.execute(
        "SELECT ifnull(sum(records), 0), ifnull(sum(bytes), 0), ifnull(sum(records) FILTER (WHERE state = 'dead'), 0)"
        " FROM totals"
    ).fetchone()
    for position, record in enumerate(records):
        count, size = count + 1, size + len(record.body)
        if count <= caps.records and size <= caps.bytes:
            continue
        if partly:
            return records[:position]
        what, cap = ("records", caps.records) if count > caps.records else ("bytes", caps.bytes)
        raise QueueFull(
            f"the outbox would hold more than queue.max_{what} = {cap}; nothing of this call was stored. "
            f"Let it drain, raise the cap, or retry or drop its {dead} dead letters"
        )
    return records


def counts(db: sqlite3.Connection, agent: str | None) -> QueueCounts:
    """Count one agent's rows or all."""
    queued, dead, size = db.execute(
        "SELECT ifnull(sum(records) FILTER (WHERE state <> 'dead'), 0),"
        " ifnull(sum(records) FILTER (WHERE state = 'dead'), 0), ifnull(sum(bytes), 0)"
        " FROM totals WHERE ? IS NULL OR agent = ?",
        (agent, agent),
    ).fetchone()
    oldest_ms = [
        db.execute(
            "SELECT min((SELECT queued_ms FROM outbox WHERE outbox.agent = totals.agent"  # noqa: S608 - our own names
            f" AND outbox.state = '{state}' ORDER BY row LIMIT 1))"
            f" FROM totals WHERE state = '{state}' AND (? IS NULL OR agent = ?)",
            (agent, agent),
        ).fetchone()[0]
        for state in (RowState.WAITING, RowState.APART)
    ]
    return QueueCounts(
        queued=queued,
        dead=dead,
        bytes=size,
        oldest_queued_ms=min((ms for ms in oldest_ms if ms is not None), default=None),
    )


def unsettled(db: sqlite3.Connection, agent: str, up_to_row: int) -> int:
    """Count the agent's WAITING rows up to a row: all of them but the newer ones, which are few."""
    return db.execute(
        "SELECT ifnull((SELECT records FROM totals WHERE agent = ?1 AND state = 'waiting'), 0)"
        " - (SELECT count(*) FROM outbox WHERE agent = ?1 AND state = 'waiting' AND row > ?2)",
        (agent, up_to_row),
    ).fetchone()[0]


def next_due_ms(db: sqlite3.Connection) -> int | None:
    """Return when the next row may go."""
    if db.execute("SELECT 1 FROM totals WHERE state = 'waiting' LIMIT 1").fetchone() is not None:
        return 0
    return db.execute("SELECT min(due_ms) FROM outbox WHERE state = 'apart'").fetchone()[0]


def rows(db: sqlite3.Connection, *, state: RowState | None, after: int, limit: int) -> tuple[QueueRow, ...]:
    """List rows by number; of a body that is gone, an empty one."""
    which = "" if state is None else f" AND state = '{state}'"
    found = db.execute(
        "SELECT row, agent, record, fingerprint, state, queued_ms, fleet_node,"  # noqa: S608 - our own words
        " ifnull(body, x''), reason, status, answer"
        f" FROM outbox LEFT JOIN body USING (row) WHERE row > ?{which} ORDER BY row LIMIT ?",
        (after, limit),
    )
    return tuple(
        QueueRow(
            row=row,
            agent_id=agent,
            record_id=record,
            fingerprint=fingerprint,
            state=RowState(state),
            queued_ms=queued_ms,
            fleet_node_id=fleet_node,
            body=body,
            reason=reason,
            status=status,
            answer=answer,
        )
        for row, agent, record, fingerprint, state, queued_ms, fleet_node, body, reason, status, answer in found
    )


def retry_dead(db: sqlite3.Connection, numbers: Sequence[int] | None) -> int:
    """Move dead letters back to WAITING, at their old place in the order."""
    return db.executemany(
        "UPDATE outbox SET state = 'waiting', batch = NULL, due_ms = NULL, reason = NULL, status = NULL, answer = NULL"
        " WHERE row = ? AND state = 'dead'",
        _dead(db, numbers),
    ).rowcount


def drop_dead(db: sqlite3.Connection, numbers: Sequence[int] | None, *, now_ms: int) -> int:
    """Delete dead letters; the ledger remembers them, so that a scan does not bring them back."""
    dropped = 0
    for row in _dead(db, numbers):
        mark = db.execute(
            "DELETE FROM outbox WHERE row = ? AND state = 'dead' RETURNING record, fingerprint, core_fingerprint", row
        ).fetchone()
        if mark is not None:
            ledger.write(db, ledger.EVERYWHERE, *mark, now_ms=now_ms)
            dropped += 1
    return dropped


def _dead(db: sqlite3.Connection, numbers: Sequence[int] | None) -> list[tuple[int]]:
    if numbers is not None:
        return [(row,) for row in numbers]
    return db.execute("SELECT row FROM outbox WHERE state = 'dead'").fetchall()
