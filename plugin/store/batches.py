"""Batches: what goes out together, under one key, until it is acknowledged or split. Inside a transaction."""

import hashlib
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import assert_never

import msgspec

from plugin.store import ledger, outbox
from plugin.store.cache import add_history, touch
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

ENOUGH_FAILURES = 3
DAMAGED = "the stored body is damaged: its checksum does not match"


@dataclass(frozen=True, slots=True)
class _Member:
    row: int
    record: str
    fingerprint: str
    fleet_node: int | None
    size: int
    agent: str


_MEMBER = "SELECT row, record, fingerprint, fleet_node, size, agent FROM outbox"


def claim(
    db: sqlite3.Connection, *, busy: Collection[str], max_records: int, max_bytes: int, now_ms: int
) -> Batch | None:
    """Return the next batch to send; see `Store.claim` for the order."""
    while True:
        batch, damaged = _next(db, busy=busy, max_records=max_records, max_bytes=max_bytes, now_ms=now_ms)
        if not damaged:
            return batch
        for row in damaged:
            _bury(db, row, Dead(reason=DAMAGED, status=None, answer=""))


def _next(
    db: sqlite3.Connection, *, busy: Collection[str], max_records: int, max_bytes: int, now_ms: int
) -> tuple[Batch | None, list[int]]:
    formed = _formed(db, busy)
    for number, failing in formed:
        if not failing:
            return _load(db, number)
    members = _form(db, busy, max_records=max_records, max_bytes=max_bytes)
    if members is not None:
        agent, rows = members
        _, damaged = _bodies(db, rows)
        # A batch gets its key only once all of its bodies are known to be whole.
        return (None, damaged) if damaged else _load(db, _write(db, agent, rows))
    for number, _ in formed:
        return _load(db, number)
    return _apart(db, busy, now_ms)


def _formed(db: sqlite3.Connection, busy: Collection[str]) -> list[tuple[int, bool]]:
    """Return the batches that are not in flight, oldest first, and whether each one fails time and again."""
    found = db.execute("SELECT id, agent, failures, suspect FROM batch ORDER BY first_row")
    return [
        (number, failures >= (1 if suspect else ENOUGH_FAILURES))
        for number, agent, failures, suspect in found
        if agent not in busy
    ]


def _form(
    db: sqlite3.Connection, busy: Collection[str], *, max_records: int, max_bytes: int
) -> tuple[str, list[_Member]] | None:
    """Pick the agent whose next row is the oldest, and as many of its rows as fit and belong to one fleet node."""
    first = [
        (row, agent)
        for agent in outbox.agents_with(db, "waiting")
        if agent not in busy
        for (row,) in db.execute(
            "SELECT min(row) FROM outbox WHERE agent = ? AND state = 'waiting' AND batch IS NULL", (agent,)
        )
        if row is not None
    ]
    if not first:
        return None
    agent = min(first)[1]
    found = db.execute(
        f"{_MEMBER} WHERE agent = ? AND state = 'waiting' AND batch IS NULL ORDER BY row LIMIT ?", (agent, max_records)
    )
    rows: list[_Member] = []
    size = 0
    for member in (_Member(*values) for values in found):
        size += member.size
        if rows and (size > max_bytes or member.fleet_node != rows[0].fleet_node):
            break
        rows.append(member)
    return agent, rows


def _write(db: sqlite3.Connection, agent: str, rows: Sequence[_Member], *, suspect: bool = False) -> int:
    number = db.execute(
        "INSERT INTO batch (agent, key, first_row, suspect) VALUES (?, ?, ?, ?)",
        (agent, _key(agent, rows), rows[0].row, suspect),
    ).lastrowid
    if number is None:
        raise RuntimeError("A batch was written without a number")
    db.executemany("UPDATE outbox SET batch = ? WHERE row = ?", [(number, member.row) for member in rows])
    return number


def _key(agent: str, rows: Sequence[_Member]) -> str:
    """Hash who sends what: the same content under the same name is the same effect, and nothing else is."""
    identity = [agent, sorted((member.record, member.fingerprint) for member in rows)]
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def _load(db: sqlite3.Connection, number: int) -> tuple[Batch | None, list[int]]:
    agent, key, failures, passes, suspect = db.execute(
        "SELECT agent, key, failures, passes_at_failure, suspect FROM batch WHERE id = ?", (number,)
    ).fetchone()
    rows = _members(db, number)
    bodies, damaged = _bodies(db, rows)
    if damaged:
        _dissolve(db, number)
        return None, damaged
    return (
        Batch(
            id=number,
            agent_id=agent,
            key=key,
            bodies=tuple(bodies),
            record_ids=tuple(member.record for member in rows),
            rows=tuple(member.row for member in rows),
            failures=failures,
            passes_at_failure=passes,
            suspect=bool(suspect),
            apart=False,
            fleet_node_id=rows[0].fleet_node,
        ),
        [],
    )


def _members(db: sqlite3.Connection, number: int) -> list[_Member]:
    return [_Member(*values) for values in db.execute(f"{_MEMBER} WHERE batch = ? ORDER BY row", (number,))]


def _apart(db: sqlite3.Connection, busy: Collection[str], now_ms: int) -> tuple[Batch | None, list[int]]:
    found = db.execute(f"{_MEMBER} WHERE state = 'apart' AND due_ms <= ? ORDER BY due_ms", (now_ms,))
    for member in [_Member(*values) for values in found]:
        if member.agent in busy:
            continue
        bodies, damaged = _bodies(db, [member])
        if damaged:
            return None, damaged
        batch = Batch(
            id=0,
            agent_id=member.agent,
            key=_key(member.agent, [member]),
            bodies=tuple(bodies),
            record_ids=(member.record,),
            rows=(member.row,),
            failures=ENOUGH_FAILURES,
            passes_at_failure=0,
            suspect=True,
            apart=True,
            fleet_node_id=member.fleet_node,
        )
        return batch, []
    return None, []


def _bodies(db: sqlite3.Connection, rows: Sequence[_Member]) -> tuple[list[bytes], list[int]]:
    """Return the bodies, and the rows whose body is gone or not what was stored."""
    bodies: list[bytes] = []
    damaged: list[int] = []
    for member in rows:
        found = db.execute("SELECT body, sha256 FROM body WHERE row = ?", (member.row,)).fetchone()
        if found is None or hashlib.sha256(found[0]).digest() != found[1]:
            damaged.append(member.row)
        else:
            bodies.append(found[0])
    return bodies, damaged


def record(
    db: sqlite3.Connection, batch: Batch, change: BatchChange, *, platform: str, passes: int, now_ms: int
) -> None:
    """Record what an answer did to a batch; a batch that is no more as it was sent stays as it is."""
    if not _is_current(db, batch):
        return
    match change:
        case Acknowledged():
            _acknowledge(db, batch, change, platform=platform, now_ms=now_ms)
        case Failed(counts=counts):
            if counts:
                db.execute(
                    "UPDATE batch SET failures = failures + 1,"
                    " passes_at_failure = CASE failures WHEN 0 THEN ? ELSE passes_at_failure END WHERE id = ?",
                    (passes, batch.id),
                )
        case Split(suspect=suspect):
            rows = _members(db, batch.id)
            _dissolve(db, batch.id)
            middle = (len(rows) + 1) // 2
            for half in (rows[:middle], rows[middle:]):
                if half:
                    _write(db, batch.agent_id, half, suspect=suspect)
        case Dead():
            _dissolve(db, batch.id)
            _bury(db, batch.rows[0], change)
        case SetApart(due_ms=due_ms, reason=reason):
            _dissolve(db, batch.id)
            db.execute(
                "UPDATE outbox SET state = 'apart', due_ms = ?, reason = ? WHERE row = ?",
                (due_ms, reason, batch.rows[0]),
            )
        case _:
            assert_never(change)


def _is_current(db: sqlite3.Connection, batch: Batch) -> bool:
    if batch.apart:
        found = db.execute("SELECT 1 FROM outbox WHERE row = ? AND state = 'apart'", (batch.rows[0],))
    else:
        found = db.execute("SELECT 1 FROM batch WHERE id = ?", (batch.id,))
    return found.fetchone() is not None


def _acknowledge(db: sqlite3.Connection, batch: Batch, change: Acknowledged, *, platform: str, now_ms: int) -> None:
    for row in batch.rows:
        mark = db.execute(
            "DELETE FROM outbox WHERE row = ? RETURNING record, fingerprint, core_fingerprint", (row,)
        ).fetchone()
        ledger.write(db, platform, *mark, now_ms=now_ms)
    _dissolve(db, batch.id)
    touch(db, batch.agent_id, pushed_ms=now_ms)
    add_history(
        db,
        HistoryEntry(
            agent_id=batch.agent_id,
            fleet_node_id=batch.fleet_node_id,
            direction="push",
            payload_bytes=change.payload_bytes,
            items=len(batch.rows),
            at_ms=now_ms,
        ),
    )


def _dissolve(db: sqlite3.Connection, number: int) -> None:
    db.execute("UPDATE outbox SET batch = NULL WHERE batch = ?", (number,))
    db.execute("DELETE FROM batch WHERE id = ?", (number,))


def _bury(db: sqlite3.Connection, row: int, dead: Dead) -> None:
    db.execute(
        "UPDATE outbox SET state = 'dead', batch = NULL, reason = ?, status = ?, answer = ? WHERE row = ?",
        (dead.reason, dead.status, dead.answer, row),
    )
