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
from typing import NamedTuple

import msgspec

from plugin.store import outbox, totals
from plugin.store.interface import Batch, RowState

ENOUGH_FAILURES = 3
FURTHEST_MS = 310_000  # no row waits longer: a time further away means that the clock was set back
DAMAGED = "the stored body is damaged: its checksum does not match, so it was never sent"


class Member(NamedTuple):
    """A row of a batch as it is read: fifty of them are made for each request."""

    row: int
    record: str
    fingerprint: str
    fleet_node: int | None
    sha256: bytes
    body: bytes
    loose: int


_MEMBER = ", ".join(Member._fields)


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
        "SELECT id, agent, key, failures, passes_at_failure, suspect FROM batch WHERE rank > 0 ORDER BY rank, id"
        if failing
        else "SELECT id, agent, key, failures, passes_at_failure, suspect FROM batch WHERE rank = 0 ORDER BY id"
    )
    for number, agent, key, failures, passes, suspect in found:
        if agent not in busy:
            return Formed(number, agent, key, failures, passes, bool(suspect))
    return None


def _next_agent(db: sqlite3.Connection, busy: Collection[str]) -> str | None:
    """Return the agent with the oldest row that is in no batch."""
    found: Iterator[tuple[str]] = db.execute("SELECT agent FROM totals WHERE head > 0 ORDER BY head")
    return next((agent for (agent,) in found if agent not in busy), None)


def _form(db: sqlite3.Connection, agent: str, *, max_records: int, max_bytes: int) -> Batch | None:
    """Put the agent's next rows of one fleet node into a batch, as many as fit; None when all were damaged."""
    fitting: list[Member] = []
    size = 0
    found = _free(db, agent)
    for member in map(Member._make, found):
        size += len(member.body)
        if fitting and (len(fitting) >= max_records or size > max_bytes or member.fleet_node != fitting[0].fleet_node):
            break
        fitting.append(member)
    found.close()
    whole = _whole(db, fitting)
    return _batch(write(db, agent, whole, suspect=False), whole) if whole else None


def _free(db: sqlite3.Connection, agent: str) -> sqlite3.Cursor:
    """Find the agent's rows that are in no batch, in their order: the loose ones, and all behind its last batch."""
    return db.execute(
        f"SELECT {_MEMBER} FROM outbox WHERE agent = :agent AND loose = 1"  # noqa: S608 - our own words
        f" UNION ALL SELECT {_MEMBER} FROM outbox WHERE agent = :agent AND state = 'waiting' AND loose = 0"
        " AND row > (SELECT batched FROM totals WHERE agent = :agent AND state = 'waiting') ORDER BY row",
        {"agent": agent},
    )


def _load(db: sqlite3.Connection, formed: Formed) -> Batch | None:
    """Read a batch that was formed; members whose bodies were damaged since leave it, and its key with them."""
    whole = members(db, formed.id)
    if not whole:
        dissolve(db, formed.id)
        return None
    key = _key(formed.agent, whole)
    if key != formed.key:
        named = [member.row for member in whole]
        db.execute("UPDATE batch SET key = ?, rows = ? WHERE id = ?", (key, _named(named), formed.id))
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
    found = db.execute(f"SELECT {_MEMBER} FROM outbox WHERE row = ?", (row,))  # noqa: S608 - our own words
    whole = _whole(db, list(map(Member._make, found)))
    if not whole:
        return None
    return _batch(Formed(0, agent, _key(agent, whole), ENOUGH_FAILURES, 0, suspect=True), whole, apart=True)


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


def members(db: sqlite3.Connection, batch: int) -> list[Member]:
    """Return a batch's members in the order of the rows; those with damaged bodies become dead letters."""
    found = db.execute(
        f"SELECT {_MEMBER} FROM batch CROSS JOIN json_each(batch.rows) CROSS JOIN outbox"  # noqa: S608 - our own words
        " ON outbox.row = value AND outbox.agent = batch.agent WHERE batch.id = ? AND state = 'waiting'",
        (batch,),
    )
    return _whole(db, list(map(Member._make, found)))


def _whole(db: sqlite3.Connection, read: list[Member]) -> list[Member]:
    """Return the members whose bodies are what was written; the others become dead letters."""
    damaged = [member.row for member in read if hashlib.sha256(member.body).digest() != member.sha256]
    bury(db, damaged, DAMAGED)
    return [member for member in read if member.row not in damaged] if damaged else read


def write(db: sqlite3.Connection, agent: str, of: Sequence[Member], *, suspect: bool) -> Formed:
    """Record rows, in their order, as a batch with its key."""
    key = _key(agent, of)
    rows = [member.row for member in of]
    if loose := [(member.row,) for member in of if member.loose]:
        db.executemany("UPDATE outbox SET loose = 0 WHERE row = ?", loose)
    db.execute(
        "INSERT INTO batch (id, agent, key, rows, suspect) VALUES (?, ?, ?, ?, ?)",
        (rows[0], agent, key, _named(rows), suspect),
    )
    totals.reach(db, agent, rows[-1])
    return Formed(rows[0], agent, key, 0, 0, suspect)


def _named(rows: Sequence[int]) -> str:
    return msgspec.json.encode(rows).decode()


def _key(agent: str, of: Sequence[Member]) -> str:
    """Hash who sends what: the same content under the same name is the same effect, and nothing else is."""
    identity = (agent, sorted([(member.record, member.fingerprint) for member in of]))
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
        f"SELECT {_MEMBER} FROM outbox WHERE row IN ({marks(batch.rows)}) AND state = 'waiting' AND agent = ?"  # noqa: S608 - our own words
        " AND (loose = 1 OR row > (SELECT batched FROM totals WHERE agent = ? AND state = 'waiting')) ORDER BY row",
        [*batch.rows, batch.agent_id, batch.agent_id],
    ).fetchall()
    if len(free) != len(batch.rows):
        return None
    return write(db, batch.agent_id, [Member._make(row) for row in free], suspect=batch.suspect).id


def marks(values: Sequence[object]) -> str:
    """Return the place-holders for so many values."""
    return ", ".join("?" * len(values))


def delete(db: sqlite3.Connection, batch: Batch) -> bool:
    """Forget a batch whose rows are all gone; False when it is not recorded just so."""
    return bool(
        db.execute(
            "DELETE FROM batch WHERE id = ? AND key = ? AND rows = ?", (batch.id, batch.key, _named(batch.rows))
        ).rowcount
    )


def release(db: sqlite3.Connection, batch: Batch) -> None:
    """Forget the batches that rows of this one are in by now."""
    # None that has one of them began behind the last.
    found = db.execute("SELECT id, rows FROM batch WHERE id <= ? AND agent = ?", (batch.rows[-1], batch.agent_id))
    for number, named in found.fetchall():
        if not set(batch.rows).isdisjoint(msgspec.json.decode(named)):
            dissolve(db, number)


def dissolve(db: sqlite3.Connection, number: int) -> None:
    """Forget a batch; what is left of its rows is free again, and lined up by who moves or deletes some of them."""
    db.execute(
        "UPDATE outbox SET loose = 1 WHERE row IN (SELECT value FROM batch, json_each(batch.rows) WHERE batch.id = ?)"
        " AND agent = (SELECT agent FROM batch WHERE id = ?) AND state = 'waiting'",
        (number, number),
    )
    forget(db, number)


def forget(db: sqlite3.Connection, number: int) -> None:
    """Forget a batch whose rows go another way."""
    db.execute("DELETE FROM batch WHERE id = ?", (number,))


def bury(
    db: sqlite3.Connection, rows: Sequence[int], reason: str, status: int | None = None, answer: str | None = None
) -> None:
    """Make dead letters of rows."""
    outbox.move(db, rows, RowState.DEAD, reason=reason, status=status, answer=answer)
