"""The outbox: what goes in, how much is there, and what people may do with dead letters. Inside a transaction."""

import hashlib
import sqlite3
from collections.abc import Sequence

from plugin.errors import QueueFull
from plugin.store import ledger
from plugin.store.interface import Caps, Enqueued, QueueCounts, QueueRow, Record, RowState


def enqueue(
    db: sqlite3.Connection, agent: str, records: Sequence[Record], *, caps: Caps, now_ms: int, scanned_for: str | None
) -> Enqueued:
    """Add the records that are not known yet: all of them or, of scanned ones, as many as there is room for."""
    count, size = db.execute("SELECT sum(records), sum(bytes) FROM volume WHERE what <> 'ledger'").fetchone()
    fresh = _fresh(db, agent, records, scanned_for)
    fitting: list[Record] = []
    for record in fresh:
        if count < caps.records and size + len(record.body) <= caps.bytes:
            fitting.append(record)
            count += 1
            size += len(record.body)
        elif scanned_for is None:
            raise _full(db, caps, by_count=count >= caps.records)
    last = 0
    for record in fitting:
        last = insert(db, agent, record, queued_ms=now_ms)
    return Enqueued(
        added=len(fitting),
        known=len(records) - len(fresh),
        left_out=len(fresh) - len(fitting),
        last_row=last or _newest_waiting(db, agent),
    )


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
    digest = hashlib.sha256(record.body).digest()
    db.execute("INSERT INTO body (row, sha256, body) VALUES (?, ?, ?)", (row, digest, record.body))
    return row or 0


def is_queued(db: sqlite3.Connection, agent: str, record: str, fingerprint: str) -> bool:
    """Say whether the agent's queue holds this version, still to be sent."""
    found = db.execute(
        "SELECT 1 FROM outbox WHERE record = ? AND fingerprint = ? AND agent = ? AND state IN ('waiting', 'apart')",
        (record, fingerprint, agent),
    )
    return found.fetchone() is not None


def is_known(db: sqlite3.Connection, platform: str, mark: tuple[str, str, str | None]) -> bool:
    """Say whether a scanned record is delivered, queued for any agent, or a dead letter already."""
    return _has_row(db, *mark[:2]) or ledger.has(db, platform, *mark)


def _has_row(db: sqlite3.Connection, record: str, fingerprint: str) -> bool:
    found = db.execute("SELECT 1 FROM outbox WHERE record = ? AND fingerprint = ?", (record, fingerprint))
    return found.fetchone() is not None


def _fresh(db: sqlite3.Connection, agent: str, records: Sequence[Record], scanned_for: str | None) -> list[Record]:
    """Return the records that need a row, each version once."""
    fresh: dict[tuple[str, str], Record] = {}
    for record in records:
        if scanned_for is None:
            known = is_queued(db, agent, record.id, record.fingerprint)
        else:
            known = is_known(db, scanned_for, (record.id, record.fingerprint, record.core_fingerprint))
        if not known:
            fresh.setdefault((record.id, record.fingerprint), record)
    return list(fresh.values())


def _full(db: sqlite3.Connection, caps: Caps, *, by_count: bool) -> QueueFull:
    dead: int = db.execute("SELECT records FROM volume WHERE what = 'dead'").fetchone()[0]
    what, cap = ("records", caps.records) if by_count else ("bytes", caps.bytes)
    return QueueFull(
        f"the outbox would hold more than queue.max_{what} = {cap}, and nothing of this call was stored: let it drain, "
        f"raise the cap, or retry or drop its dead letters ({dead} now)"
    )


def _newest_waiting(db: sqlite3.Connection, agent: str) -> int:
    rows = (
        row
        for batched in ("IS NULL", "> 0")
        for (row,) in db.execute(
            f"SELECT max(row) FROM outbox WHERE agent = ? AND state = 'waiting' AND batch {batched}",  # noqa: S608 - two constants
            (agent,),
        )
    )
    return max(row or 0 for row in rows)


def counts(db: sqlite3.Connection, agent: str | None) -> QueueCounts:
    """Count one agent's rows or all."""
    found = (
        db.execute("SELECT what, records, bytes FROM volume WHERE what <> 'ledger'")
        if agent is None
        else db.execute("SELECT state, records, bytes FROM totals WHERE agent = ?", (agent,))
    )
    by_state = {state: (records, size) for state, records, size in found}
    dead = by_state.get("dead", (0, 0))[0]
    return QueueCounts(
        queued=sum(records for records, _ in by_state.values()) - dead,
        dead=dead,
        bytes=sum(size for _, size in by_state.values()),
        oldest_queued_ms=_oldest_ms(db, agent),
    )


def _oldest_ms(db: sqlite3.Connection, agent: str | None) -> int | None:
    """Return when the oldest of the first rows was queued: of those in no batch, in one, and set apart."""
    found = db.execute(
        "SELECT min(queued_ms) FROM outbox WHERE row IN ("
        " SELECT (SELECT row FROM outbox WHERE outbox.agent = totals.agent AND outbox.state = 'waiting'"
        "         AND batch IS NULL ORDER BY row LIMIT 1)"
        "           FROM totals WHERE state = 'waiting' AND agent = ifnull(:agent, agent)"
        " UNION ALL SELECT (SELECT min(first_row) FROM batch WHERE batch.agent = totals.agent)"
        "           FROM totals WHERE state = 'waiting' AND agent = ifnull(:agent, agent)"
        " UNION ALL SELECT (SELECT min(row) FROM outbox WHERE outbox.agent = totals.agent AND outbox.state = 'apart')"
        "           FROM totals WHERE state = 'apart' AND agent = ifnull(:agent, agent))",
        {"agent": agent},
    )
    oldest_ms: int | None = found.fetchone()[0]
    return oldest_ms


def unsettled(db: sqlite3.Connection, agent: str, up_to_row: int) -> int:
    """Count the agent's WAITING rows up to a row.

    What lies beyond it is counted instead: a push asks again and again while the rows up to it drain.
    """
    (count,) = db.execute(
        "SELECT ifnull((SELECT records FROM totals WHERE agent = :agent AND state = 'waiting'), 0)"
        " - (SELECT count(*) FROM outbox WHERE agent = :agent AND state = 'waiting' AND batch IS NULL AND row > :row)"
        " - (SELECT count(*) FROM outbox WHERE agent = :agent AND state = 'waiting' AND batch > 0 AND row > :row)",
        {"agent": agent, "row": up_to_row},
    ).fetchone()
    return int(count)


def next_due_ms(db: sqlite3.Connection) -> int | None:
    """Return when the next row may go."""
    due: int | None = db.execute(
        "SELECT CASE WHEN (SELECT records FROM volume WHERE what = 'waiting') THEN 0"
        " ELSE (SELECT min(due_ms) FROM outbox WHERE state = 'apart') END"
    ).fetchone()[0]
    return due


def rows(db: sqlite3.Connection, *, state: RowState | None, after: int, limit: int) -> tuple[QueueRow, ...]:
    """List rows by number; a body that is gone is empty."""
    # Written out, since only then an index of the rows in one state can be used.
    which = "" if state is None else f" AND state = '{state}'"
    found = db.execute(
        "SELECT row, agent, record, fingerprint, state, queued_ms, fleet_node,"  # noqa: S608 - our own words
        " ifnull(body, x''), reason, status, answer FROM outbox LEFT JOIN body USING (row)"
        f" WHERE row > ?{which} ORDER BY row LIMIT ?",
        (after, limit),
    )
    return tuple(
        QueueRow(
            row=row,
            agent_id=agent,
            record_id=record,
            fingerprint=fingerprint,
            state=RowState(stands),
            queued_ms=queued_ms,
            fleet_node_id=fleet_node,
            body=body,
            reason=reason,
            status=status,
            answer=answer,
        )
        for row, agent, record, fingerprint, stands, queued_ms, fleet_node, body, reason, status, answer in found
    )


def retry_dead(db: sqlite3.Connection, numbers: Sequence[int] | None, *, now_ms: int) -> int:
    """Move dead letters back to WAITING, at their old place in the order.

    One whose record was queued anew meanwhile goes away instead: it is sent once.
    """
    retried = 0
    for row in _dead(db, numbers):
        agent, record, fingerprint = db.execute(
            "SELECT agent, record, fingerprint FROM outbox WHERE row = ?", (row,)
        ).fetchone()
        if is_queued(db, agent, record, fingerprint):
            db.execute("DELETE FROM outbox WHERE row = ?", (row,))
        else:
            db.execute(
                "UPDATE outbox SET state = 'waiting', queued_ms = ?, due_ms = NULL, reason = NULL, status = NULL,"
                " answer = NULL WHERE row = ?",
                (now_ms, row),
            )
        retried += 1
    return retried


def drop_dead(db: sqlite3.Connection, numbers: Sequence[int] | None) -> int:
    """Delete dead letters; the ledger remembers them, so that a scan does not bring them back."""
    dead = _dead(db, numbers)
    for row in dead:
        record, fingerprint = db.execute(
            "DELETE FROM outbox WHERE row = ? RETURNING record, fingerprint", (row,)
        ).fetchone()
        ledger.drop(db, record, fingerprint)
    return len(dead)


def _dead(db: sqlite3.Connection, numbers: Sequence[int] | None) -> list[int]:
    if numbers is None:
        return [row for (row,) in db.execute("SELECT row FROM outbox WHERE state = 'dead' ORDER BY row")]
    return [
        row
        for number in dict.fromkeys(numbers)
        for (row,) in db.execute("SELECT row FROM outbox WHERE row = ? AND state = 'dead'", (number,))
    ]
