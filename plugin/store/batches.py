"""Batches: what goes out together, under one key, until it is acknowledged or split. Inside a transaction."""

import hashlib
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import assert_never

import msgspec

from plugin.store import ledger
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
LONGEST_WAIT_MS = 310_000
DAMAGED = "the stored body is damaged: its checksum does not match"

_MEMBER = (
    "SELECT outbox.row, agent, record, fingerprint, fleet_node, body, sha256"
    " FROM outbox LEFT JOIN body ON body.row = outbox.row"
)


@dataclass(frozen=True, slots=True)
class _Member:
    row: int
    agent: str
    record: str
    fingerprint: str
    fleet_node: int | None
    body: bytes | None
    sha256: bytes | None

    def whole_body(self) -> bytes | None:
        """Return the body if it is what was stored."""
        if self.body is None or hashlib.sha256(self.body).digest() != self.sha256:
            return None
        return self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """A batch without its members; `id` is 0 while it is not recorded, which one set apart never is."""

    id: int = 0
    agent: str
    key: str
    failures: int = 0
    passes_at_failure: int = 0
    suspect: bool = False
    apart: bool = False

    @property
    def failing(self) -> bool:
        return self.failures >= (1 if self.suspect else ENOUGH_FAILURES)


def claim(
    db: sqlite3.Connection, *, busy: Collection[str], max_records: int, max_bytes: int, now_ms: int
) -> Batch | None:
    """Return the next batch to send; see `Store.claim` for the order."""
    while True:
        found = _next(db, busy=busy, max_records=max_records, max_bytes=max_bytes, now_ms=now_ms)
        if found is None:
            return None
        head, members = found
        bodies = {member.row: body for member in members if (body := member.whole_body()) is not None}
        if len(bodies) == len(members) and head.key == _key(head.agent, members):
            number = head.id if head.id or head.apart else _write(db, head, members)
            return Batch(
                id=number,
                agent_id=head.agent,
                key=head.key,
                bodies=tuple(bodies.values()),
                record_ids=tuple(member.record for member in members),
                rows=tuple(bodies),
                failures=head.failures,
                passes_at_failure=head.passes_at_failure,
                suspect=head.suspect,
                apart=head.apart,
                fleet_node_id=members[0].fleet_node,
            )
        # It cannot go out as it did: what is left of it becomes another batch, under another key.
        _dissolve(db, head.id)
        for member in members:
            if member.row not in bodies:
                _bury(db, member.row, Dead(reason=DAMAGED, status=None, answer=""))


def _next(
    db: sqlite3.Connection, *, busy: Collection[str], max_records: int, max_bytes: int, now_ms: int
) -> tuple[_Head, list[_Member]] | None:
    formed = _formed(db, busy)
    for head in formed:
        if not head.failing:
            return head, _members(db, head.id)
    members = _form(db, busy, max_records=max_records, max_bytes=max_bytes)
    if members:
        agent = members[0].agent
        return _Head(agent=agent, key=_key(agent, members)), members
    for head in formed:
        return head, _members(db, head.id)
    return _apart(db, busy, now_ms)


def _formed(db: sqlite3.Connection, busy: Collection[str]) -> list[_Head]:
    """Return the batches that are not in flight, oldest first."""
    found = db.execute("SELECT id, agent, key, failures, passes_at_failure, suspect FROM batch ORDER BY first_row")
    return [
        _Head(id=number, agent=agent, key=key, failures=failures, passes_at_failure=passes, suspect=bool(suspect))
        for number, agent, key, failures, passes, suspect in found
        if agent not in busy
    ]


def _members(db: sqlite3.Connection, number: int) -> list[_Member]:
    return [_Member(*values) for values in db.execute(f"{_MEMBER} WHERE batch = ? ORDER BY outbox.row", (number,))]


def _form(db: sqlite3.Connection, busy: Collection[str], *, max_records: int, max_bytes: int) -> list[_Member]:
    """Pick the agent whose next row is the oldest, and as many of its rows as fit and belong to one fleet node."""
    agent = _first_agent(db, busy)
    found = db.execute(
        f"{_MEMBER} WHERE agent = ? AND state = 'waiting' AND batch IS NULL ORDER BY outbox.row LIMIT ?",
        (agent, max_records),
    )
    members: list[_Member] = []
    size = 0
    for member in (_Member(*values) for values in found):
        size += len(member.body or b"")
        if members and (size > max_bytes or member.fleet_node != members[0].fleet_node):
            break
        members.append(member)
    return members


def _first_agent(db: sqlite3.Connection, busy: Collection[str]) -> str | None:
    found = db.execute(
        "SELECT agent, (SELECT row FROM outbox WHERE outbox.agent = totals.agent AND outbox.state = 'waiting'"
        " AND batch IS NULL ORDER BY row LIMIT 1) AS first FROM totals WHERE state = 'waiting'"
    )
    free = [(first, agent) for agent, first in found if first is not None and agent not in busy]
    return min(free)[1] if free else None


def _apart(db: sqlite3.Connection, busy: Collection[str], now_ms: int) -> tuple[_Head, list[_Member]] | None:
    """Pick a row that was set apart and is due; one that is due too late was dated before the clock was put back."""
    for condition, when_ms in (("due_ms <= ?", now_ms), ("due_ms > ?", now_ms + LONGEST_WAIT_MS)):
        for values in db.execute(f"{_MEMBER} WHERE state = 'apart' AND {condition} ORDER BY due_ms", (when_ms,)):
            member = _Member(*values)
            if member.agent not in busy:
                key = _key(member.agent, [member])
                head = _Head(agent=member.agent, key=key, failures=ENOUGH_FAILURES, suspect=True, apart=True)
                return head, [member]
    return None


def _write(db: sqlite3.Connection, head: _Head, members: Sequence[_Member]) -> int:
    number = db.execute(
        "INSERT INTO batch (agent, key, first_row, suspect) VALUES (?, ?, ?, ?)",
        (head.agent, head.key, members[0].row, head.suspect),
    ).lastrowid
    if number is None:
        raise RuntimeError("A batch was written without a number")
    db.executemany("UPDATE outbox SET batch = ? WHERE row = ?", [(number, member.row) for member in members])
    return number


def _key(agent: str, members: Sequence[_Member]) -> str:
    """Hash who sends what: the same content under the same name is the same effect, and nothing else is."""
    identity = [agent, sorted((member.record, member.fingerprint) for member in members)]
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def record(
    db: sqlite3.Connection, batch: Batch, change: BatchChange, *, platform: str, passes: int, now_ms: int
) -> None:
    """Record what an answer did to a batch.

    What was acknowledged leaves in any case; anything else is for a batch that is still as it was sent.
    """
    if isinstance(change, Acknowledged):
        _acknowledge(db, batch, change, platform=platform, now_ms=now_ms)
    elif _is_current(db, batch):
        _change(db, batch, change, passes=passes)


def _is_current(db: sqlite3.Connection, batch: Batch) -> bool:
    if batch.apart:
        where = (batch.rows[0], batch.record_ids[0])
        found = db.execute("SELECT 1 FROM outbox WHERE row = ? AND record = ? AND state = 'apart'", where)
    else:
        found = db.execute("SELECT 1 FROM batch WHERE id = ? AND key = ?", (batch.id, batch.key))
    return found.fetchone() is not None


def _acknowledge(db: sqlite3.Connection, batch: Batch, change: Acknowledged, *, platform: str, now_ms: int) -> None:
    delivered = 0
    for row, name in zip(batch.rows, batch.record_ids, strict=True):
        mark = db.execute(
            "DELETE FROM outbox WHERE row = ? AND record = ? RETURNING record, fingerprint, core_fingerprint",
            (row, name),
        ).fetchone()
        if mark is not None:
            ledger.write(db, platform, *mark, now_ms=now_ms)
            delivered += 1
    if not delivered:
        return
    if _is_current(db, batch):
        _dissolve(db, batch.id)
    touch(db, batch.agent_id, pushed_ms=now_ms)
    add_history(
        db,
        HistoryEntry(
            agent_id=batch.agent_id,
            fleet_node_id=batch.fleet_node_id,
            direction="push",
            payload_bytes=change.payload_bytes,
            items=delivered,
            at_ms=now_ms,
        ),
    )


def _change(db: sqlite3.Connection, batch: Batch, change: Failed | Split | Dead | SetApart, *, passes: int) -> None:
    match change:
        case Failed(counts=counts):
            if counts:
                db.execute(
                    "UPDATE batch SET failures = failures + 1,"
                    " passes_at_failure = CASE failures WHEN 0 THEN ? ELSE passes_at_failure END WHERE id = ?",
                    (passes, batch.id),
                )
        case Split(suspect=suspect):
            members = _members(db, batch.id)
            _dissolve(db, batch.id)
            middle = (len(members) + 1) // 2
            for half in (members[:middle], members[middle:]):
                if half:
                    agent = batch.agent_id
                    _write(db, _Head(agent=agent, key=_key(agent, half), suspect=suspect), half)
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


def _dissolve(db: sqlite3.Connection, number: int) -> None:
    db.execute("UPDATE outbox SET batch = NULL WHERE batch = ?", (number,))
    db.execute("DELETE FROM batch WHERE id = ?", (number,))


def _bury(db: sqlite3.Connection, row: int, dead: Dead) -> None:
    db.execute(
        "UPDATE outbox SET state = 'dead', batch = NULL, reason = ?, status = ?, answer = ? WHERE row = ?",
        (dead.reason, dead.status, dead.answer, row),
    )
