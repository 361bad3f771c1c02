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
CREATE TRIGGER outbox_removed AFTER DELETE ON outbox BEGIN
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
