"""Batches: what goes out together, under one key, until it is acknowledged or split. Inside a transaction.

The order of sending, and why it is that:

    1. batches that were formed, oldest first: what was sent once is sent again, the same
    2. new batches, of the agent whose next row is the oldest
    3. batches that fail time and again (`rank` > 0), those with the fewest failures first: were the oldest always
       first, one that can never pass would keep all the others from being tried
    4. rows set apart, once they are due

A batch that could not be recorded (full disk) is still sent: `claim` then returns what it would have recorded, and
`record` looks for it by its key and rows, not by its number alone.
"""

import hashlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from plugin.store.interface import Batch

ENOUGH_FAILURES = 3
FURTHEST_MS = 310_000  # no row waits longer: a time further away means that the clock was set back
DAMAGED = "the stored body is damaged: its checksum does not match, so it was never sent"


@dataclass(frozen=True, slots=True)
class Member:
    """A row of a batch, with its body."""

    row: int
    record: str
    fingerprint: str
    fleet_node: int | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Formed:
    """A batch as it is recorded."""

    id: int
    agent: str
    key: str
    failures: int
    passes_at_failure: int
    suspect: bool


def claim(
    db: sqlite3.Connection, *, busy: Collection[str], max_records: int, max_bytes: int, now_ms: int
) -> Batch | None:
    """Return the next batch to send; damaged bodies met on the way become dead letters."""
    while True:
        if (formed := _formed(db, busy, failing=False)) is not None:
            batch = _load(db, formed)
        elif (agent := _next_agent(db, busy)) is not None:
            batch = _form(db, agent, max_records=max_records, max_bytes=max_bytes)
        elif (formed := _formed(db, busy, failing=True)) is not None:
            batch = _load(db, formed)
        elif (due := _due(db, busy, now_ms)) is not None:
            batch = _alone(db, *due)
        else:
            return None
        if batch is not None:
            return batch


def _formed(db: sqlite3.Connection, busy: Collection[str], *, failing: bool) -> Formed | None:
    found = db.execute(
        "SELECT id, agent, key, failures, passes_at_failure, suspect FROM batch WHERE rank > 0 ORDER BY rank, first_row"
        if failing
        else "SELECT id, agent, key, failures, passes_at_failure, suspect FROM batch WHERE rank = 0 ORDER BY first_row"
    )
    for number, agent, key, failures, passes, suspect in found:
        if agent not in busy:
            return Formed(number, agent, key, failures, passes, bool(suspect))
    return None


def _next_agent(db: sqlite3.Connection, busy: Collection[str]) -> str | None:
    """Return the agent with the oldest row that is in no batch."""
    found = db.execute(
        "SELECT agent, (SELECT row FROM outbox WHERE outbox.agent = totals.agent AND outbox.state = 'waiting'"
        " AND batch IS NULL ORDER BY row LIMIT 1) FROM totals WHERE state = 'waiting'"
    )
    heads = ((row, agent) for agent, row in found if row is not None and agent not in busy)
    return min(heads, default=(0, None))[1]


def _form(db: sqlite3.Connection, agent: str, *, max_records: int, max_bytes: int) -> Batch | None:
    """Put the agent's next rows of one fleet node into a batch, as many as fit; None when all were damaged."""
    found = db.execute(
        "SELECT row, record, fingerprint, fleet_node, sha256, body FROM outbox LEFT JOIN body USING (row)"
        " WHERE agent = ? AND state = 'waiting' AND batch IS NULL ORDER BY row",
        (agent,),
    )
    chosen: list[Member] = []
    damaged: list[int] = []
    size = 0
    for row, record_id, fingerprint, fleet_node, sha256, body in found:
        if not _is_whole(body, sha256):
            damaged.append(row)
            continue
        size += len(body)
        if chosen and (len(chosen) >= max_records or size > max_bytes or fleet_node != chosen[0].fleet_node):
            break
        chosen.append(Member(row, record_id, fingerprint, fleet_node, body))
    found.close()
    bury(db, damaged, DAMAGED)
    if not chosen:
        return None
    return _batch(write(db, agent, chosen, suspect=False), chosen)


def _load(db: sqlite3.Connection, formed: Formed) -> Batch | None:
    """Read a batch that was formed; members whose bodies were damaged since leave it, and its key with them."""
    whole, damaged = members(db, formed.id)
    bury(db, damaged, DAMAGED)
    if not whole:
        dissolve(db, formed.id)
        return None
    key = _key(formed.agent, whole)
    if key != formed.key:
        db.execute("UPDATE batch SET key = ?, first_row = ? WHERE id = ?", (key, whole[0].row, formed.id))
        formed = replace(formed, key=key)
    return _batch(formed, whole)


def _due(db: sqlite3.Connection, busy: Collection[str], now_ms: int) -> tuple[str, int] | None:
    found: Iterator[tuple[str, int]] = db.execute(
        "SELECT agent, row FROM outbox WHERE state = 'apart' AND due_ms <= ?"
        " UNION ALL SELECT agent, row FROM outbox WHERE state = 'apart' AND due_ms > ?",
        (now_ms, now_ms + FURTHEST_MS),
    )
    return next(((agent, row) for agent, row in found if agent not in busy), None)


def _alone(db: sqlite3.Connection, agent: str, row: int) -> Batch | None:
    """Make the batch of a row set apart; it is not recorded, as its key and bytes follow from the row."""
    record_id, fingerprint, fleet_node, sha256, body = db.execute(
        "SELECT record, fingerprint, fleet_node, sha256, body FROM outbox LEFT JOIN body USING (row) WHERE row = ?",
        (row,),
    ).fetchone()
    if not _is_whole(body, sha256):
        bury(db, [row], DAMAGED)
        return None
    member = Member(row, record_id, fingerprint, fleet_node, body)
    formed = Formed(0, agent, _key(agent, [member]), ENOUGH_FAILURES, 0, suspect=True)
    return _batch(formed, [member], apart=True)


def _batch(formed: Formed, of: Sequence[Member], *, apart: bool = False) -> Batch:
    return Batch(
        id=formed.id,
        agent_id=formed.agent,
        key=formed.key,
        bodies=tuple(member.body for member in of),
        record_ids=tuple(member.record for member in of),
        rows=tuple(member.row for member in of),
        failures=formed.failures,
        passes_at_failure=formed.passes_at_failure,
        suspect=formed.suspect,
        apart=apart,
        fleet_node_id=of[0].fleet_node,
    )


def members(db: sqlite3.Connection, batch: int) -> tuple[list[Member], list[int]]:
    """Return a batch's members in the order of the rows, and the rows whose bodies are damaged."""
    found = db.execute(
        "SELECT row, record, fingerprint, fleet_node, sha256, body FROM outbox LEFT JOIN body USING (row)"
        " WHERE agent = (SELECT agent FROM batch WHERE id = ?) AND state = 'waiting' AND batch = ? ORDER BY row",
        (batch, batch),
    )
    whole: list[Member] = []
    damaged: list[int] = []
    for row, record_id, fingerprint, fleet_node, sha256, body in found:
        if _is_whole(body, sha256):
            whole.append(Member(row, record_id, fingerprint, fleet_node, body))
        else:
            damaged.append(row)
    return whole, damaged


def _is_whole(body: bytes | None, sha256: bytes | None) -> bool:
    return body is not None and hashlib.sha256(body).digest() == sha256


def write(db: sqlite3.Connection, agent: str, of: Sequence[Member], *, suspect: bool) -> Formed:
    """Record rows as a batch, with its key."""
    key = _key(agent, of)
    number = db.execute(
        "INSERT INTO batch (agent, key, first_row, suspect) VALUES (?, ?, ?, ?)",
        (agent, key, of[0].row, suspect),
    ).lastrowid
    rows = [member.row for member in of]
    db.execute(f"UPDATE outbox SET batch = ? WHERE row IN ({marks(rows)})", (number, *rows))  # noqa: S608 - question marks
    return Formed(number or 0, agent, key, 0, 0, suspect)


def _key(agent: str, of: Sequence[Member]) -> str:
    """Hash who sends what: the same content under the same name is the same effect, and nothing else is."""
    identity = (agent, sorted((member.record, member.fingerprint) for member in of))
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def find(db: sqlite3.Connection, batch: Batch, *, unanswered: bool) -> int | None:
    """Return the number of the batch as recorded; None when its rows went another way.

    One that was handed out and is `unanswered` is recorded now if that could not be done then.
    """
    found = db.execute("SELECT 1 FROM batch WHERE id = ? AND key = ?", (batch.id, batch.key)).fetchone()
    if found is not None:
        return batch.id
    if not unanswered:
        return None
    free = db.execute(
        "SELECT row, record, fingerprint, fleet_node, body FROM outbox JOIN body USING (row)"  # noqa: S608 - question marks
        f" WHERE row IN ({marks(batch.rows)})"
        " AND state = 'waiting' AND batch IS NULL ORDER BY row",
        batch.rows,
    )
    whole = [Member(*values) for values in free]
    if len(whole) != len(batch.rows):
        return None
    return write(db, batch.agent_id, whole, suspect=batch.suspect).id


def marks(values: Sequence[object]) -> str:
    """Return the place-holders for so many values."""
    return ", ".join("?" * len(values))


def dissolve(db: sqlite3.Connection, number: int) -> None:
    """Forget a batch; its rows are free again."""
    db.execute(
        "UPDATE outbox SET batch = NULL"
        " WHERE agent = (SELECT agent FROM batch WHERE id = ?) AND state = 'waiting' AND batch = ?",
        (number, number),
    )
    db.execute("DELETE FROM batch WHERE id = ?", (number,))


def bury(
    db: sqlite3.Connection, rows: Sequence[int], reason: str, status: int | None = None, answer: str | None = None
) -> None:
    """Make dead letters of rows."""
    db.executemany(
        "UPDATE outbox SET state = 'dead', batch = NULL, due_ms = NULL, reason = ?, status = ?, answer = ?"
        " WHERE row = ?",
        [(reason, status, answer, row) for row in rows],
    )
