"""How many rows and bytes of each agent stand where. Who changes rows counts them, many at a time. In a transaction."""

import sqlite3

from plugin.store.interface import RowState


def add(db: sqlite3.Connection, agent: str, state: RowState, records: int, size: int) -> None:
    """Count rows in, or out when the numbers are negative; an agent that has nothing left costs nothing."""
    db.execute(
        "INSERT INTO totals (agent, state, records, bytes) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET records = records + excluded.records, bytes = bytes + excluded.bytes",
        (agent, state, records, size),
    )
    if records < 0:
        db.execute("DELETE FROM totals WHERE agent = ? AND state = ? AND records = 0", (agent, state))


def by_state(db: sqlite3.Connection, agent: str | None) -> dict[RowState, tuple[int, int]]:
    """Return the records and bytes of one agent or of all."""
    found = db.execute(
        "SELECT state, sum(records), sum(bytes) FROM totals WHERE agent = ifnull(?, agent) GROUP BY state", (agent,)
    )
    return {RowState(state): (records, size) for state, records, size in found}


def volume(db: sqlite3.Connection) -> tuple[int, int]:
    """Return the records and bytes of all agents in all states."""
    records, size = db.execute("SELECT ifnull(sum(records), 0), ifnull(sum(bytes), 0) FROM totals").fetchone()
    return records, size


def reach(db: sqlite3.Connection, agent: str, row: int) -> None:
    """Remember that the agent's batches reach so far."""
    db.execute("UPDATE totals SET batched = max(batched, ?) WHERE agent = ? AND state = 'waiting'", (row, agent))
