"""How many rows and bytes stand where, of each agent and of all, and the head of each agent's line. In a transaction.

Who changes rows counts them, many at a time. All of it could be asked of the rows, and `schema.restore` does; but then
one more agent that has something queued would make every call dearer.
"""

import sqlite3

from plugin.store.interface import RowState

ALL = ""  # all agents together; none is called so


def add(db: sqlite3.Connection, agent: str, state: RowState, records: int, size: int) -> None:
    """Count rows in, or out when the numbers are negative; an agent that has nothing left costs nothing."""
    db.execute(
        "INSERT INTO totals (agent, state, records, bytes) VALUES (?1, ?3, ?4, ?5), (?2, ?3, ?4, ?5)"
        " ON CONFLICT DO UPDATE SET records = records + excluded.records, bytes = bytes + excluded.bytes",
        (agent, ALL, state, records, size),
    )
    if records < 0:
        db.execute("DELETE FROM totals WHERE agent IN (?, ?) AND state = ? AND records = 0", (agent, ALL, state))


def by_state(db: sqlite3.Connection, agent: str | None) -> dict[RowState, tuple[int, int]]:
    """Return the records and bytes of one agent or of all."""
    found = db.execute("SELECT state, records, bytes FROM totals WHERE agent = ?", (agent or ALL,))
    return {RowState(state): (records, size) for state, records, size in found}


def standing(db: sqlite3.Connection, agent: str) -> tuple[int, int]:
    """Return how many of an agent's records are still to be sent, and how many are dead letters."""
    records = dict(db.execute("SELECT state, records FROM totals WHERE agent = ?", (agent,)).fetchall())
    dead = records.pop(RowState.DEAD, 0)
    return sum(records.values()), dead


def volume(db: sqlite3.Connection) -> tuple[int, int]:
    """Return the records and bytes of all agents in all states."""
    counts = by_state(db, None).values()
    return sum(records for records, _ in counts), sum(size for _, size in counts)


def queue(db: sqlite3.Connection, agent: str, row: int) -> None:
    """Let the agent's line begin with a new row, unless there are others before it."""
    db.execute("UPDATE totals SET head = ? WHERE agent = ? AND state = 'waiting' AND head IS NULL", (row, agent))


def reach(db: sqlite3.Connection, agent: str, row: int = 0) -> None:
    """Remember that the agent's batches reach so far, and look which row is the first that is in none."""
    db.execute(
        "UPDATE totals SET batched = max(batched, :row), head ="
        " (SELECT min(row) FROM (SELECT min(row) AS row FROM outbox WHERE agent = :agent AND loose = 1"
        "  UNION ALL SELECT min(row) FROM outbox WHERE agent = :agent AND state = 'waiting'"
        "   AND row > max(totals.batched, :row)))"
        " WHERE agent = :agent AND state = 'waiting'",
        {"agent": agent, "row": row},
    )
