"""What the Go agent left behind, taken over once. Inside a transaction."""

import sqlite3

from plugin.store import context, history, ledger, outbox
from plugin.store.interface import CoreState

MAX_CONTEXT = 1000


def is_done(db: sqlite3.Connection, mark: str) -> bool:
    """Say whether an import with this mark was done."""
    return db.execute("SELECT 1 FROM import WHERE mark = ?", (mark,)).fetchone() is not None


def take_over(db: sqlite3.Connection, state: CoreState, *, platform: str, agent: str, mark: str, now_ms: int) -> bool:
    """Import the Go agent's state with its mark; False when that was done already. Caps do not apply."""
    if is_done(db, mark):
        return False
    intake = outbox.Intake(db)
    for owner, record, queued_ms in state.queue:
        if not outbox.is_queued(db, owner, record.id, record.fingerprint):
            intake.add(intake.line(owner), record, queued_ms=queued_ms)
    intake.count()
    for record_id, core_fingerprint in state.ledger:
        ledger.write_core(db, platform, record_id, core_fingerprint, now_ms=now_ms)
    theirs, ours = state.times, history.times(db, agent)
    # What we did ourselves is newer than anything the Go agent has.
    if state.context and context.load(db, platform, agent, now_ms=now_ms).fetched_ms is None:
        context.replace(db, platform, agent, state.context, keep=MAX_CONTEXT, at_ms=theirs.last_pull_ms)
    for entry in state.history:
        history.add(db, entry)
    history.touch(
        db,
        agent,
        pushed_ms=theirs.last_push_ms if ours.last_push_ms is None else None,
        pulled_ms=theirs.last_pull_ms if ours.last_pull_ms is None else None,
    )
    db.execute("INSERT INTO import VALUES (?, ?)", (mark, now_ms))
    return True
