"""The tables, and the steps from one version of them to the next.

Bodies lie apart from the rows that change, since an update rewrites a whole row. Totals are kept by triggers, so that
counting costs the same however long the queue is; what leaves with its batch is counted at once, for all of the batch,
by who deletes it. Row numbers are never used twice: they are the order of sending.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from plugin.crash import point

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
CREATE INDEX outbox_identity ON outbox (record, fingerprint);
CREATE INDEX outbox_line ON outbox (agent, batch, row) WHERE state = 'waiting';
CREATE INDEX outbox_due ON outbox (due_ms) WHERE state = 'apart';
CREATE INDEX outbox_apart ON outbox (agent, row) WHERE state = 'apart';
CREATE INDEX outbox_dead ON outbox (row) WHERE state = 'dead';

CREATE TABLE body (row INTEGER PRIMARY KEY, sha256 BLOB NOT NULL, body BLOB NOT NULL) STRICT;

CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    first_row INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    passes_at_failure INTEGER NOT NULL DEFAULT 0,
    suspect INTEGER NOT NULL DEFAULT 0,
    rank INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX batch_order ON batch (rank, first_row);
CREATE INDEX batch_agent ON batch (agent, first_row);

CREATE TABLE totals (
    agent TEXT NOT NULL,
    state TEXT NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (agent, state)
) STRICT, WITHOUT ROWID;
CREATE TABLE volume (
    what TEXT PRIMARY KEY,
    records INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO volume (what) VALUES ('waiting'), ('apart'), ('dead'), ('ledger');

CREATE TRIGGER outbox_added AFTER INSERT ON outbox BEGIN
    UPDATE volume SET records = records + 1, bytes = bytes + new.size WHERE what = new.state;
    INSERT INTO totals VALUES (new.agent, new.state, 1, new.size)
    ON CONFLICT DO UPDATE SET records = records + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER outbox_removed AFTER DELETE ON outbox WHEN old.batch IS NULL BEGIN
    UPDATE volume SET records = records - 1, bytes = bytes - old.size WHERE what = old.state;
    UPDATE totals SET records = records - 1, bytes = bytes - old.size WHERE agent = old.agent AND state = old.state;
    DELETE FROM totals WHERE agent = old.agent AND state = old.state AND records = 0;
    DELETE FROM body WHERE row = old.row;
END;
CREATE TRIGGER outbox_moved AFTER UPDATE OF state ON outbox WHEN old.state <> new.state BEGIN
    UPDATE volume SET records = records - 1, bytes = bytes - old.size WHERE what = old.state;
    UPDATE volume SET records = records + 1, bytes = bytes + new.size WHERE what = new.state;
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
CREATE TRIGGER ledger_added AFTER INSERT ON ledger BEGIN
    UPDATE volume SET records = records + 1 WHERE what = 'ledger';
END;
CREATE TABLE dropped (record TEXT, fingerprint TEXT, PRIMARY KEY (record, fingerprint)) STRICT, WITHOUT ROWID;

CREATE TABLE context (
    position INTEGER PRIMARY KEY,
    platform TEXT NOT NULL,
    agent TEXT NOT NULL,
    id TEXT NOT NULL,
    expires_ms INTEGER,
    sha256 BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX context_identity ON context (platform, agent, id);
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

Step = Callable[[sqlite3.Connection], None]


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


def _create(db: sqlite3.Connection) -> None:
    # Not executescript(): it would commit the transaction that it is called in.
    for statement in _statements(_FIRST):
        db.execute(statement)


# Step n leads from version n to n + 1. A step is never changed once it was released.
STEPS: tuple[Step, ...] = (_create,)
VERSION = len(STEPS)


def version_of(db: sqlite3.Connection) -> tuple[int, int]:
    """Return the application id and the version of the tables."""
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return application, version


def missing(db: sqlite3.Connection) -> list[str]:
    """Return the tables, indexes and triggers that a file of its version has and this one has not."""
    _, version = version_of(db)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        for step in STEPS[:version]:
            step(model)
        return sorted(_names(model) - _names(db))


def _names(db: sqlite3.Connection) -> set[str]:
    return {f"{kind} {name}" for kind, name in db.execute("SELECT type, name FROM sqlite_schema")}


def migrate(db: sqlite3.Connection, *, backup: Path, steps: Sequence[Step] = STEPS) -> None:
    """Lead the tables to the newest version in one transaction; what is older is copied to `backup` first."""
    _, version = version_of(db)
    if version == len(steps):
        return
    if version:
        _back_up(db, backup)
        point("migrate.saved")
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[version:]:
            step(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(steps)}")
        point("migrate.written")
        db.execute("COMMIT")
        point("migrate.committed")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _back_up(db: sqlite3.Connection, backup: Path) -> None:
    backup.unlink(missing_ok=True)
    # SQLite fills an empty file, and leaves its permissions as they are.
    fd = os.open(backup, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        db.execute("VACUUM INTO ?", (str(backup),))
        os.fsync(fd)
    finally:
        os.close(fd)
