"""The outbox: what goes in, how much is there, and what people may do with dead letters. Inside a transaction."""

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plugin.errors import QueueFull
from plugin.store import ledger, totals
from plugin.store.interface import Caps, Enqueued, QueueCounts, QueueRow, Record, RowState

_INSERT = (
    "INSERT INTO outbox (agent, record, fingerprint, core_fingerprint, fleet_node, queued_ms, sha256, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class Arrival(NamedTuple):
    """What one call brings for an agent; `scanned_for` is the platform of scanned work, None of explicit."""

    agent: str
    records: Sequence[Record]
    caps: Caps
    now_ms: int
    scanned_for: str | None


def enqueue(db: sqlite3.Connection, arrivals: Sequence[Arrival]) -> list[Enqueued | QueueFull]:
    """Take in what calls bring that come together, one after the other; return what became of each.

    Of explicit records all that are not known yet go in or none, of scanned ones as many as there is room for.
    """
    intake = Intake(db)
    done = [_take(intake, arrival) for arrival in arrivals]
    intake.count()
    return done


def _take(intake: "Intake", arrival: Arrival) -> Enqueued | QueueFull:
    caps, fresh = arrival.caps, _fresh(intake.db, arrival)
    count, size = intake.records, intake.bytes
    fitting: list[Record] = []
    for record in fresh:
        if count < caps.records and size + len(record.body) <= caps.bytes:
            fitting.append(record)
            count += 1
            size += len(record.body)
        elif arrival.scanned_for is None:
            return _full(intake.db, caps, by_count=count >= caps.records)
    line = intake.line(arrival.agent)
    for record in fitting:
        intake.add(line, record, queued_ms=arrival.now_ms)
    return Enqueued(
        added=len(fitting),
        known=len(arrival.records) - len(fresh),
        left_out=len(fresh) - len(fitting),
        last_row=intake.newest_waiting(line),
        queued=line.queued + line.added,
        dead=line.dead,
    )


@dataclass(slots=True)
class Line:
    """What an agent has in the outbox: before, and what is added."""

    agent: str
    queued: int
    dead: int
    added: int = 0
    added_bytes: int = 0
    first: int = 0  # of the rows that are added
    newest: int | None = None  # of the rows that wait; None until somebody looked


class Intake:
    """Rows on their way into the outbox: written one by one, counted at once."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.records, self.bytes = totals.volume(db)
        self._cursor = db.cursor()  # one for all: a connection's own `execute` makes one each time
        self._lines: dict[str, Line] = {}

    def line(self, agent: str) -> Line:
        """Return the agent's line."""
        line = self._lines.get(agent)
        if line is None:
            line = self._lines[agent] = Line(agent, *totals.standing(self.db, agent))
        return line

    def add(self, line: Line, record: Record, *, queued_ms: int) -> None:
        """Give a record the next row."""
        body = record.body
        digest = hashlib.sha256(body).digest()
        ours = (line.agent, record.id, record.fingerprint, record.core_fingerprint, record.fleet_node_id)
        line.newest = self._cursor.execute(_INSERT, (*ours, queued_ms, digest, body)).lastrowid
        line.first = line.first or line.newest or 0
        line.added += 1
        line.added_bytes += len(body)
        self.records += 1
        self.bytes += len(body)

    def newest_waiting(self, line: Line) -> int:
        """Return the agent's newest WAITING row; 0 when it has none."""
        if line.newest is None:
            found = self.db.execute("SELECT max(row) FROM outbox WHERE agent = ? AND state = 'waiting'", (line.agent,))
            line.newest = found.fetchone()[0]
        return line.newest or 0

    def count(self) -> None:
        """Count what was added."""
        for line in self._lines.values():
            if line.added:
                totals.add(self.db, line.agent, RowState.WAITING, line.added, line.added_bytes)
                totals.queue(self.db, line.agent, line.first)


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


def _fresh(db: sqlite3.Connection, arrival: Arrival) -> list[Record]:
    """Return the records that need a row, each version once."""
    fresh: dict[tuple[str, str], Record] = {}
    for record in arrival.records:
        if arrival.scanned_for is None:
            known = is_queued(db, arrival.agent, record.id, record.fingerprint)
        else:
            mark = (record.id, record.fingerprint, record.core_fingerprint)
            known = is_known(db, arrival.scanned_for, mark)
        if not known:
            fresh.setdefault((record.id, record.fingerprint), record)
    return list(fresh.values())


def _full(db: sqlite3.Connection, caps: Caps, *, by_count: bool) -> QueueFull:
    (dead,) = db.execute("SELECT ifnull(sum(records), 0) FROM totals WHERE state = 'dead'").fetchone()
    what, cap = ("records", caps.records) if by_count else ("bytes", caps.bytes)
    return QueueFull(
        f"the outbox would hold more than queue.max_{what} = {cap}, and nothing of this call was stored: let it drain, "
        f"raise the cap, or retry or drop its dead letters ({dead} now)"
    )


def counts(db: sqlite3.Connection, agent: str | None) -> QueueCounts:
    """Count one agent's rows or all."""
    by_state = totals.by_state(db, agent)
    dead = by_state.get(RowState.DEAD, (0, 0))[0]
    return QueueCounts(
        queued=sum(records for records, _ in by_state.values()) - dead,
        dead=dead,
        bytes=sum(size for _, size in by_state.values()),
        oldest_queued_ms=_oldest_ms(db, agent),
    )


def _oldest_ms(db: sqlite3.Connection, agent: str | None) -> int | None:
    """Return when the oldest of the agents' first rows was queued, of those that wait and those set apart."""
    whose = "agent <> ''" if agent is None else "agent = :agent"
    found = db.execute(
        "SELECT min(queued_ms) FROM outbox WHERE row IN ("  # noqa: S608 - our own words
        " SELECT (SELECT min(row) FROM outbox WHERE outbox.agent = totals.agent AND outbox.state = 'waiting')"
        f"          FROM totals WHERE state = 'waiting' AND {whose}"
        " UNION ALL SELECT (SELECT min(row) FROM outbox WHERE outbox.agent = totals.agent AND outbox.state = 'apart')"
        f"          FROM totals WHERE state = 'apart' AND {whose})",
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
        " - (SELECT count(*) FROM outbox WHERE agent = :agent AND state = 'waiting' AND row > :row)",
        {"agent": agent, "row": up_to_row},
    ).fetchone()
    return int(count)


def next_due_ms(db: sqlite3.Connection) -> int | None:
    """Return when the next row may go."""
    due: int | None = db.execute(
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM totals WHERE agent = '' AND state = 'waiting') THEN 0"
        " ELSE (SELECT min(due_ms) FROM outbox WHERE state = 'apart') END"
    ).fetchone()[0]
    return due


def rows(db: sqlite3.Connection, *, state: RowState | None, after: int, limit: int) -> tuple[QueueRow, ...]:
    """List rows by number."""
    # Written out, since only then an index of the rows in one state can be used.
    which = "" if state is None else f" AND state = '{state}'"
    found = db.execute(
        "SELECT row, agent, record, fingerprint, state, queued_ms, fleet_node,"  # noqa: S608 - our own words
        " body, reason, status, answer FROM outbox"
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


def move(
    db: sqlite3.Connection,
    rows: Sequence[int],
    state: RowState,
    *,
    due_ms: int | None = None,
    reason: str | None = None,
    status: int | None = None,
    answer: str | None = None,
) -> None:
    """Let rows that are in no batch stand elsewhere; one that waits again is behind the batches of its agent."""
    for row in rows:
        agent, stood, size = db.execute(
            "SELECT agent, state, length(body) FROM outbox WHERE row = ?", (row,)
        ).fetchone()
        db.execute(
            "UPDATE outbox SET state = ?, loose = ?, due_ms = ?, reason = ?, status = ?, answer = ? WHERE row = ?",
            (state, state is RowState.WAITING, due_ms, reason, status, answer, row),
        )
        totals.add(db, agent, stood, -1, -size)
        totals.add(db, agent, state, 1, size)
        totals.reach(db, agent)


def retry_dead(db: sqlite3.Connection, numbers: Sequence[int] | None, *, now_ms: int) -> int:
    """Move dead letters back to WAITING, at their old place in the order.

    One whose record was queued anew meanwhile goes away instead: it is sent once.
    """
    dead = _dead(db, numbers)
    for row in dead:
        agent, record, fingerprint = db.execute(
            "SELECT agent, record, fingerprint FROM outbox WHERE row = ?", (row,)
        ).fetchone()
        if is_queued(db, agent, record, fingerprint):
            _drop(db, row)
        else:
            move(db, [row], RowState.WAITING)
            db.execute("UPDATE outbox SET queued_ms = ? WHERE row = ?", (now_ms, row))
    return len(dead)


def drop_dead(db: sqlite3.Connection, numbers: Sequence[int] | None) -> int:
    """Delete dead letters; the ledger remembers them, so that a scan does not bring them back."""
    dead = _dead(db, numbers)
    for row in dead:
        record, fingerprint = _drop(db, row)
        ledger.drop(db, record, fingerprint)
    return len(dead)


def _drop(db: sqlite3.Connection, row: int) -> tuple[str, str]:
    """Delete a dead letter; return which version of which record it was."""
    agent, record, fingerprint, size = db.execute(
        "DELETE FROM outbox WHERE row = ? RETURNING agent, record, fingerprint, length(body)", (row,)
    ).fetchone()
    totals.add(db, agent, RowState.DEAD, -1, -size)
    return record, fingerprint


def _dead(db: sqlite3.Connection, numbers: Sequence[int] | None) -> list[int]:
    if numbers is None:
        return [row for (row,) in db.execute("SELECT row FROM outbox WHERE state = 'dead' ORDER BY row")]
    return [
        row
        for number in dict.fromkeys(numbers)
        for (row,) in db.execute("SELECT row FROM outbox WHERE row = ? AND state = 'dead'", (number,))
    ]
