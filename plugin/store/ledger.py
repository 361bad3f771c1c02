"""The ledger: which version of a record the platform has. Inside a transaction."""

import sqlite3

EVERYWHERE = ""  # stands for every platform: a dead letter that was dropped is wanted by none


def has(db: sqlite3.Connection, platform: str, record: str, fingerprint: str, core_fingerprint: str | None) -> bool:
    """Say whether the platform has this version; a row of the Go agent's ledger knows only its core fingerprint."""
    found = db.execute(
        "SELECT fingerprint, core_fingerprint FROM ledger WHERE platform = ?1 AND record = ?3"
        " UNION ALL SELECT fingerprint, core_fingerprint FROM ledger WHERE platform = ?2 AND record = ?3",
        (platform, EVERYWHERE, record),
    )
    return any(had == fingerprint or (not had and core is not None and core == core_fingerprint) for had, core in found)


def write(
    db: sqlite3.Connection, platform: str, record: str, fingerprint: str, core_fingerprint: str | None, *, now_ms: int
) -> None:
    """Remember that the platform has this version."""
    db.execute(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET fingerprint = excluded.fingerprint,"
        " core_fingerprint = excluded.core_fingerprint, at_ms = excluded.at_ms",
        (platform, record, fingerprint, core_fingerprint, now_ms),
    )


def write_core(db: sqlite3.Connection, platform: str, record: str, core_fingerprint: str, *, now_ms: int) -> None:
    """Remember what the Go agent's ledger says, unless ours knows better."""
    db.execute(
        "INSERT INTO ledger VALUES (?, ?, '', ?, ?) ON CONFLICT DO NOTHING",
        (platform, record, core_fingerprint, now_ms),
    )


def size(db: sqlite3.Connection) -> int:
    """Count the rows."""
    return db.execute("SELECT ifnull(sum(records), 0) FROM ledger_total WHERE platform <> ?", (EVERYWHERE,)).fetchone()[
        0
    ]
