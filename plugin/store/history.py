"""What was pushed and pulled, and when each agent last did. Inside a transaction."""

import sqlite3

from plugin.store.interface import AgentTimes, HistoryEntry

MAX_ENTRIES = 100
MAX_SURPLUS = 32


def add(db: sqlite3.Connection, entry: HistoryEntry) -> None:
    """Write one entry; the last 100 per direction stay, and for a while some more."""
    number = db.execute(
        "INSERT INTO history (direction, agent, fleet_node, payload_bytes, items, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (entry.direction, entry.agent_id, entry.fleet_node_id, entry.payload_bytes, entry.items, entry.at_ms),
    ).lastrowid
    if number is not None and number % MAX_SURPLUS == 0:
        db.executemany(
            "DELETE FROM history WHERE direction = :direction AND id <="
            " (SELECT id FROM history WHERE direction = :direction ORDER BY id DESC LIMIT 1 OFFSET :keep)",
            [{"direction": direction, "keep": MAX_ENTRIES} for direction in ("push", "pull")],
        )


def pulled(db: sqlite3.Connection, agent: str, entry: HistoryEntry) -> None:
    """Write the entry of a pull, and the time of the agent's last one."""
    add(db, entry)
    touch(db, agent, pulled_ms=entry.at_ms)


def entries(db: sqlite3.Connection, direction: str) -> tuple[HistoryEntry, ...]:
    """Return the entries of one direction, oldest first."""
    found = db.execute(
        "SELECT agent, fleet_node, payload_bytes, items, at_ms FROM history WHERE direction = ?"
        " ORDER BY id DESC LIMIT ?",
        (direction, MAX_ENTRIES),
    ).fetchall()
    return tuple(
        HistoryEntry(
            agent_id=agent,
            fleet_node_id=fleet_node,
            direction=direction,
            payload_bytes=payload_bytes,
            items=items,
            at_ms=at_ms,
        )
        for agent, fleet_node, payload_bytes, items, at_ms in reversed(found)
    )


def touch(db: sqlite3.Connection, agent: str, *, pushed_ms: int | None = None, pulled_ms: int | None = None) -> None:
    """Remember when the agent last pushed or pulled; None leaves what is known."""
    db.execute(
        "INSERT INTO times VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
        " last_push_ms = ifnull(excluded.last_push_ms, last_push_ms),"
        " last_pull_ms = ifnull(excluded.last_pull_ms, last_pull_ms)",
        (agent, pushed_ms, pulled_ms),
    )


def times(db: sqlite3.Connection, agent: str) -> AgentTimes:
    """Return when the agent last pushed and pulled."""
    found = db.execute("SELECT last_push_ms, last_pull_ms FROM times WHERE agent = ?", (agent,)).fetchone()
    pushed_ms, pulled_ms = found or (None, None)
    return AgentTimes(last_push_ms=pushed_ms, last_pull_ms=pulled_ms)
