"""Fleet context as it was last pulled, and the small tables: history, times, gates, imports. Inside a transaction."""

import sqlite3
from collections.abc import Sequence

from plugin.store import ledger, outbox
from plugin.store.interface import (
    AgentTimes,
    CachedContext,
    ContextRow,
    CoreState,
    Gate,
    GateState,
    HistoryEntry,
)

MAX_HISTORY = 100


def replace_context(
    db: sqlite3.Connection, platform: str, agent: str, rows: Sequence[ContextRow], *, at_ms: int
) -> None:
    """Make these rows, newest first, the whole cache of (platform, agent)."""
    db.execute("DELETE FROM context WHERE platform = ? AND agent = ?", (platform, agent))
    _put(db, platform, agent, rows, first=0, at_ms=at_ms)


def merge_context(
    db: sqlite3.Connection, platform: str, agent: str, rows: Sequence[ContextRow], *, keep: int, at_ms: int
) -> None:
    """Put these rows before the cached ones; the newest `keep` stay."""
    first = db.execute(
        "SELECT ifnull(min(position), 0) FROM context WHERE platform = ? AND agent = ?", (platform, agent)
    ).fetchone()[0]
    _put(db, platform, agent, rows, first=first - len(rows), at_ms=at_ms)
    db.execute(
        "DELETE FROM context WHERE platform = ? AND agent = ? AND position >= (SELECT position FROM context"
        " WHERE platform = ? AND agent = ? ORDER BY position LIMIT 1 OFFSET ?)",
        (platform, agent, platform, agent, keep),
    )


def _put(
    db: sqlite3.Connection, platform: str, agent: str, rows: Sequence[ContextRow], *, first: int, at_ms: int
) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO context VALUES (?, ?, ?, ?, ?, ?)",
        # Backwards: of two rows with one id the newer one, which comes first, stays.
        [
            (platform, agent, row.id, first + place, row.body, row.expires_ms)
            for place, row in reversed(list(enumerate(rows)))
        ],
    )
    db.execute("INSERT OR REPLACE INTO pulled VALUES (?, ?, ?)", (platform, agent, at_ms))


def context(db: sqlite3.Connection, platform: str, agent: str, *, now_ms: int) -> CachedContext:
    """Return the rows that have not expired, newest first."""
    found = db.execute(
        "SELECT body FROM context WHERE platform = ? AND agent = ? AND (expires_ms IS NULL OR expires_ms > ?)"
        " ORDER BY position",
        (platform, agent, now_ms),
    )
    bodies = tuple(body for (body,) in found)
    pulled = db.execute("SELECT at_ms FROM pulled WHERE platform = ? AND agent = ?", (platform, agent)).fetchone()
    return CachedContext(rows=bodies, fetched_ms=None if pulled is None else pulled[0])


def add_history(db: sqlite3.Connection, entry: HistoryEntry) -> None:
    """Write one entry; the last 100 per direction stay."""
    db.execute(
        "INSERT INTO history (direction, agent, fleet_node, payload_bytes, items, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (entry.direction, entry.agent_id, entry.fleet_node_id, entry.payload_bytes, entry.items, entry.at_ms),
    )
    db.execute(
        "DELETE FROM history WHERE direction = ? AND id <= (SELECT id FROM history WHERE direction = ?"
        " ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (entry.direction, entry.direction, MAX_HISTORY),
    )


def history(db: sqlite3.Connection, direction: str) -> tuple[HistoryEntry, ...]:
    """Return the entries of one direction, oldest first."""
    found = db.execute(
        "SELECT agent, fleet_node, payload_bytes, items, at_ms FROM history WHERE direction = ? ORDER BY id",
        (direction,),
    )
    return tuple(
        HistoryEntry(
            agent_id=agent,
            fleet_node_id=fleet_node,
            direction=direction,
            payload_bytes=payload_bytes,
            items=items,
            at_ms=at_ms,
        )
        for agent, fleet_node, payload_bytes, items, at_ms in found
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
    pushed, pulled = found or (None, None)
    return AgentTimes(last_push_ms=pushed, last_pull_ms=pulled)


def gate(db: sqlite3.Connection, platform: str) -> Gate:
    """Return the platform's gate; the ready one when nothing was recorded."""
    found = db.execute(
        "SELECT state, reason, until_ms, failures, passes, max_bytes FROM gate WHERE platform = ?", (platform,)
    ).fetchone()
    if found is None:
        return Gate()
    state, reason, until_ms, failures, passes, max_bytes = found
    return Gate(
        state=GateState(state), reason=reason, until_ms=until_ms, failures=failures, passes=passes, max_bytes=max_bytes
    )


def set_gate(db: sqlite3.Connection, platform: str, gate: Gate) -> None:
    """Record the platform's gate."""
    db.execute(
        "INSERT OR REPLACE INTO gate VALUES (?, ?, ?, ?, ?, ?, ?)",
        (platform, gate.state, gate.reason, gate.until_ms, gate.failures, gate.passes, gate.max_bytes),
    )


def imported(db: sqlite3.Connection, mark: str) -> bool:
    """Say whether an import with this mark was done."""
    return db.execute("SELECT 1 FROM import WHERE mark = ?", (mark,)).fetchone() is not None


def import_core(db: sqlite3.Connection, state: CoreState, *, platform: str, agent: str, mark: str, now_ms: int) -> bool:
    """Take over the Go agent's state, once."""
    if imported(db, mark):
        return False
    for owner, record, queued_ms in state.queue:
        if not outbox.is_queued(db, owner, record):
            outbox.insert(db, owner, record, queued_ms=queued_ms)
    for record_id, core_fingerprint in state.ledger:
        ledger.write_core(db, platform, record_id, core_fingerprint, now_ms=now_ms)
    pulled_ms = state.times.last_pull_ms
    if state.context and context(db, platform, agent, now_ms=now_ms).fetched_ms is None:
        replace_context(db, platform, agent, state.context, at_ms=now_ms if pulled_ms is None else pulled_ms)
    for entry in state.history:
        add_history(db, entry)
    known = times(db, agent)
    touch(
        db,
        agent,
        pushed_ms=state.times.last_push_ms if known.last_push_ms is None else None,
        pulled_ms=pulled_ms if known.last_pull_ms is None else None,
    )
    db.execute("INSERT INTO import VALUES (?, ?)", (mark, now_ms))
    return True
