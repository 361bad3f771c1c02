"""Fleet context as it was last pulled, for each platform and agent. Inside a transaction."""

import hashlib
import sqlite3
from collections.abc import Sequence

from plugin.store.interface import CachedContext, ContextRow


def replace(
    db: sqlite3.Connection, platform: str, agent: str, rows: Sequence[ContextRow], *, keep: int, at_ms: int | None
) -> None:
    """Make these rows, newest first, the whole cache of (platform, agent); the newest `keep` stay."""
    db.execute("DELETE FROM context WHERE platform = ? AND agent = ?", (platform, agent))
    merge(db, platform, agent, rows, keep=keep, at_ms=at_ms)


def merge(
    db: sqlite3.Connection, platform: str, agent: str, rows: Sequence[ContextRow], *, keep: int, at_ms: int | None
) -> None:
    """Put these rows, newest first, before the cached ones; same id replaces; the newest `keep` stay."""
    # Backwards, since a later position is a newer row; of two rows with one id the newer one stays.
    db.executemany(
        "INSERT OR REPLACE INTO context (platform, agent, id, expires_ms, sha256, body) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (platform, agent, row.id, row.expires_ms, hashlib.sha256(row.body).digest(), row.body)
            for row in reversed(rows)
        ],
    )
    db.execute(
        "DELETE FROM context WHERE platform = :platform AND agent = :agent AND position <="
        " (SELECT position FROM context WHERE platform = :platform AND agent = :agent"
        " ORDER BY position DESC LIMIT 1 OFFSET :keep)",
        {"platform": platform, "agent": agent, "keep": keep},
    )
    if at_ms is not None:
        db.execute("INSERT OR REPLACE INTO pulled VALUES (?, ?, ?)", (platform, agent, at_ms))


def load(db: sqlite3.Connection, platform: str, agent: str, *, now_ms: int) -> CachedContext:
    """Return the rows that have not expired, newest first; a damaged one is left out, as it can be pulled again."""
    found = db.execute(
        "SELECT sha256, body FROM context WHERE platform = ? AND agent = ? AND (expires_ms IS NULL OR expires_ms > ?)"
        " ORDER BY position DESC",
        (platform, agent, now_ms),
    )
    bodies = tuple(body for sha256, body in found if hashlib.sha256(body).digest() == sha256)
    pulled = db.execute("SELECT at_ms FROM pulled WHERE platform = ? AND agent = ?", (platform, agent)).fetchone()
    return CachedContext(rows=bodies, fetched_ms=None if pulled is None else pulled[0])
