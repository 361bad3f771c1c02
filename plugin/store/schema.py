"""The tables, and the steps from one version of them to the next.

Bodies lie apart from the rows that change, since an update rewrites a whole row. Totals are kept by triggers, so that
counting costs the same however long the queue is. Row numbers are never used twice: they are the order of sending.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

Step = Callable[[sqlite3.Connection], None]
APPLICATION_ID = 0x61677379  # "agsy"

_FIRST = """
CREATE TABLE outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    agent TEXT NOT NULL,
    record TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    core_fingerprint TEXT,
    fleet_node INTEGER,
    size INTEGER NOT NULL,
    queued_ms INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'apart', 'dead')),
    batch INTEGER,
    due_ms INTEGER,
    reason TEXT,
    status INTEGER,
    answer TEXT
) STRICT;
CREATE INDEX outbox_identity ON outbox (record, fingerprint, agent);
CREATE INDEX outbox_waiting ON outbox (agent, row) WHERE state = 'waiting';
CREATE INDEX outbox_free ON outbox (agent, row) WHERE state = 'waiting' AND batch IS NULL;
CREATE INDEX outbox_apart ON outbox (agent, row) WHERE state = 'apart';
CREATE INDEX outbox_due ON outbox (due_ms) WHERE state = 'apart';
CREATE INDEX outbox_dead ON outbox (row) WHERE state = 'dead';
CREATE INDEX outbox_batch ON outbox (batch) WHERE batch IS NOT NULL;

CREATE TABLE body (row INTEGER PRIMARY KEY, body BLOB NOT NULL, sha256 BLOB NOT NULL) STRICT;

CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    first_row INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    passes_at_failure INTEGER NOT NULL DEFAULT 0,
    suspect INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE totals (
    agent TEXT NOT NULL,
    state TEXT NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (agent, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER outbox_added AFTER INSERT ON outbox BEGIN
    INSERT INTO totals VALUES (new.agent, new.state, 1, new.size)
    ON CONFLICT DO UPDATE SET records = records + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER outbox_removed AFTER DELETE ON outbox BEGIN
    UPDATE totals SET records = records - 1, bytes = bytes - old.size WHERE agent = old.agent AND state = old.state;
    DELETE FROM totals WHERE agent = old.agent AND state = old.state AND records = 0;
    DELETE FROM body WHERE row = old.row;
END;
CREATE TRIGGER outbox_moved AFTER UPDATE OF state ON outbox WHEN old.state <> new.state BEGIN
    UPDATE totals SET records = records - 1, bytes = bytes - old.size WHERE agent = old.agent AND state = old.state;
    DELETE FROM totals WHERE agent = old.agent AND state = old.state AND records = 0;
    INSERT INTO totals VALUES (new.agent, new.state, 1, new.size)
    ON CONFLICT DO UPDATE SET records = records + 1, bytes = bytes + excluded.bytes;
END;

CREATE TABLE ledger (
    platform TEXT NOT NULL,
    record TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    core_fingerprint TEXT,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (platform, record)
) STRICT, WITHOUT ROWID;
CREATE TABLE ledger_total (platform TEXT PRIMARY KEY, records INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TRIGGER ledger_added AFTER INSERT ON ledger BEGIN
    INSERT INTO ledger_total VALUES (new.platform, 1) ON CONFLICT DO UPDATE SET records = records + 1;
END;

CREATE TABLE context (
    platform TEXT NOT NULL,
    agent TEXT NOT NULL,
    id TEXT NOT NULL,
    position INTEGER NOT NULL,
    body BLOB NOT NULL,
    expires_ms INTEGER,
    PRIMARY KEY (platform, agent, id)
) STRICT;
CREATE INDEX context_order ON context (platform, agent, position);
CREATE TABLE pulled (
    platform TEXT NOT NULL,
    agent TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (platform, agent)
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    direction TEXT NOT NULL,
    agent TEXT NOT NULL,
    fleet_node INTEGER,
    payload_bytes INTEGER NOT NULL,
    items INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX history_order ON history (direction, id);

CREATE TABLE times (agent TEXT PRIMARY KEY, last_push_ms INTEGER, last_pull_ms INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE gate (
    platform TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    reason TEXT,
    until_ms INTEGER,
    failures INTEGER NOT NULL,
    passes INTEGER NOT NULL,
    max_bytes INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE import (mark TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""


def _statements(script: str) -> list[str]:
    """Cut a script at the ends of its statements; a trigger is one statement."""
    statements: list[str] = []
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            statements.append(text.strip())
            text = ""
    return statements


def _create(connection: sqlite3.Connection) -> None:
    for statement in _statements(_FIRST):
        connection.execute(statement)


# Step n leads from version n to n + 1. A step is never changed once it was released.
STEPS: tuple[Step, ...] = (_create,)


def migrate(connection: sqlite3.Connection, version: int, backup: Path, *, steps: Sequence[Step] = STEPS) -> None:
    """Lead the tables from `version` to the newest in one transaction, after a backup of anything older."""
    if version == len(steps):
        return
    if version:
        backup.unlink(missing_ok=True)  # left by an attempt that did not end: the file is as it was before it
        connection.execute("VACUUM INTO ?", (str(backup),))
        backup.chmod(0o600)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[version:]:
            step(connection)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def missing(connection: sqlite3.Connection, steps: Sequence[Step] = STEPS) -> list[str]:
    """Return the tables, indexes and triggers that the newest version has and this database has not."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        for step in steps:
            step(model)
        return sorted(_names(model) - _names(connection))


def _names(connection: sqlite3.Connection) -> set[str]:
    return {f"{kind} {name}" for kind, name in connection.execute("SELECT type, name FROM sqlite_schema")}
