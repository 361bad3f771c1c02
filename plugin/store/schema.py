"""The tables, and the steps from one version of them to the next.

A row is written once and deleted once: going out changes nothing in it. A batch names its rows, and the totals of its
agent say how far batches reach (`batched`): every waiting row beyond is free. Only what became free again before that
is marked, as loose. Totals are kept by who changes rows, a call or a batch at a time, so that counting costs the same
however long the queue is. What every batch touches lies on few pages, since a commit writes whole pages. Row numbers
are never used twice: they are the order of sending.
"""

import json
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

_SECOND = """
CREATE TABLE outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    agent TEXT NOT NULL,
    record TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    core_fingerprint TEXT,
    fleet_node INTEGER,
    queued_ms INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state = 'waiting' OR state = 'apart' OR state = 'dead'),
    loose INTEGER NOT NULL DEFAULT 0,
    due_ms INTEGER,
    reason TEXT,
    status INTEGER,
    answer TEXT,
    sha256 BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX outbox_identity ON outbox (record, fingerprint);
CREATE INDEX outbox_line ON outbox (agent, row) WHERE state = 'waiting';
CREATE INDEX outbox_loose ON outbox (agent, row) WHERE loose = 1;
CREATE INDEX outbox_due ON outbox (due_ms) WHERE state = 'apart';
CREATE INDEX outbox_apart ON outbox (agent, row) WHERE state = 'apart';
CREATE INDEX outbox_dead ON outbox (row) WHERE state = 'dead';

CREATE TABLE batch (
    id INTEGER PRIMARY KEY, -- its first row when it was formed
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    rows TEXT NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    passes_at_failure INTEGER NOT NULL DEFAULT 0,
    suspect INTEGER NOT NULL DEFAULT 0,
    rank INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX batch_order ON batch (rank, id);

CREATE TABLE totals (
    agent TEXT NOT NULL,
    state TEXT NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    batched INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, state)
) STRICT, WITHOUT ROWID;
CREATE TABLE ledger_size (records INTEGER NOT NULL) STRICT;
INSERT INTO ledger_size VALUES (0);

CREATE UNIQUE INDEX context_identity ON context (platform, agent, id);
CREATE INDEX context_order ON context (platform, agent, position);

CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    direction TEXT NOT NULL,
    agent TEXT NOT NULL,
    fleet_node INTEGER,
    payload_bytes INTEGER NOT NULL,
    items INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
"""

_THIRD = """
DROP TABLE totals;
CREATE TABLE totals (
    agent TEXT NOT NULL, -- '' counts all agents together
    state TEXT NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    batched INTEGER NOT NULL DEFAULT 0, -- the last row that was put into a batch when it was free for the first time
    head INTEGER, -- the first row that waits and is in no batch
    PRIMARY KEY (agent, state)
) STRICT, WITHOUT ROWID;
CREATE INDEX totals_line ON totals (head) WHERE head > 0;
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


def _run(db: sqlite3.Connection, script: str) -> None:
    # Not executescript(): it would commit the transaction that it is called in.
    for statement in _statements(script):
        db.execute(statement)


def _create(db: sqlite3.Connection) -> None:
    _run(db, _FIRST)


def _rebuild(db: sqlite3.Connection) -> None:
    """Put bodies into their rows and rows into their batches; what files of the first version count is not believed.

    Their triggers and indexes were not the same in all of them.
    """
    made = db.execute("SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'index') AND sql IS NOT NULL")
    for kind, name in made.fetchall():
        db.execute(f"DROP {kind} {name}")
    (last,) = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    db.execute("DROP TABLE totals")
    for table in ("outbox", "batch", "history"):
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    _run(db, _SECOND)
    # A row whose body is gone becomes a dead letter once it would be sent.
    db.execute(
        "INSERT INTO outbox SELECT row, agent, record, fingerprint, core_fingerprint, fleet_node, queued_ms, state, 0,"
        " due_ms, reason, status, answer, ifnull(sha256, x''), ifnull(body, x'')"
        " FROM old_outbox LEFT JOIN body USING (row) ORDER BY row"
    )
    db.execute("DELETE FROM sqlite_sequence")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox', ?)", (last or 0,))
    members: dict[int, list[int]] = {}
    for batch, row in db.execute("SELECT batch, row FROM old_outbox WHERE batch IS NOT NULL ORDER BY row"):
        members.setdefault(batch, []).append(row)
    db.executemany(
        "INSERT INTO batch SELECT ?, agent, key, ?, failures, passes_at_failure, suspect, rank"
        " FROM old_batch WHERE id = ?",
        [(rows[0], json.dumps(rows), batch) for batch, rows in members.items()],
    )
    db.execute("INSERT INTO history SELECT * FROM old_history")
    for table in ("old_outbox", "old_batch", "old_history", "body", "volume"):
        db.execute(f"DROP TABLE {table}")


def _line_up(db: sqlite3.Connection) -> None:
    """Count all agents together, and keep the head of each one's line."""
    _run(db, _THIRD)
    restore(db)


def restore(db: sqlite3.Connection) -> None:
    """Bring batches, what is loose and all counts in line with the rows, whatever they were."""
    db.execute("DELETE FROM batch WHERE NOT json_valid(rows)")
    db.execute("DELETE FROM batch WHERE EXISTS (SELECT 1 FROM json_each(batch.rows) WHERE type <> 'integer')")
    db.execute(
        "DELETE FROM batch WHERE NOT EXISTS"
        " (SELECT 1 FROM json_each(batch.rows) JOIN outbox ON row = value AND outbox.agent = batch.agent)"
    )
    db.execute("DELETE FROM totals")
    db.execute(
        "INSERT INTO totals SELECT agent, state, count(*), sum(length(body)), 0, NULL FROM outbox"
        " WHERE agent <> '' GROUP BY agent, state"
    )
    db.execute("INSERT INTO totals SELECT '', state, sum(records), sum(bytes), 0, NULL FROM totals GROUP BY state")
    db.execute(
        "UPDATE totals SET batched = ifnull("
        "(SELECT max(value) FROM batch, json_each(batch.rows) WHERE batch.agent = totals.agent), 0)"
    )
    db.execute(
        "UPDATE outbox SET loose = state = 'waiting'"
        " AND row <= (SELECT batched FROM totals WHERE totals.agent = outbox.agent AND state = 'waiting')"
        " AND row NOT IN (SELECT value FROM batch, json_each(batch.rows))"
        " WHERE loose = 1 OR row <= (SELECT max(batched) FROM totals)"
    )
    db.execute(
        "UPDATE totals SET head = (SELECT min(row) FROM outbox WHERE outbox.agent = totals.agent"
        " AND outbox.state = 'waiting' AND row NOT IN (SELECT value FROM batch, json_each(batch.rows)))"
        " WHERE state = 'waiting'"
    )
    db.execute("UPDATE ledger_size SET records = (SELECT count(*) FROM ledger)")


# Step n leads from version n to n + 1. A step is never changed once it was released.
STEPS: tuple[Step, ...] = (_create, _rebuild, _line_up)
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


def migrate(db: sqlite3.Connection, *, backup: Path | None, steps: Sequence[Step] = STEPS) -> None:
    """Lead the tables to the newest version in one transaction; what is older is copied to `backup`, if any, first."""
    _, version = version_of(db)
    if version == len(steps):
        return
    if version and backup is not None:
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
