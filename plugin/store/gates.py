"""The gate of each platform: back-off that survives a restart. Inside a transaction."""

import sqlite3

from plugin.store.interface import Gate, GateState


def load(db: sqlite3.Connection, platform: str) -> Gate:
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


def save(db: sqlite3.Connection, platform: str, gate: Gate) -> None:
    """Record the platform's gate."""
    db.execute(
        "INSERT OR REPLACE INTO gate VALUES (?, ?, ?, ?, ?, ?, ?)",
        (platform, gate.state, gate.reason, gate.until_ms, gate.failures, gate.passes, gate.max_bytes),
    )
