"""The ledger: which version of a record the platform has, and which versions nobody wants. Inside a transaction."""

import sqlite3
from collections.abc import Sequence


def has(db: sqlite3.Connection, platform: str, record: str, fingerprint: str, core_fingerprint: str | None) -> bool:
    """Say whether this version needs no sending: the platform has it, or it was a dead letter that was dropped.

    A row that came from the Go agent's ledger knows only its core fingerprint.
    """
    found = db.execute(
        "SELECT 1 FROM ledger WHERE platform = :platform AND record = :record"
        " AND (fingerprint = :fingerprint OR (fingerprint = '' AND core_fingerprint = :core))"
        " UNION ALL SELECT 1 FROM dropped WHERE record = :record AND fingerprint = :fingerprint",
        {"platform": platform, "record": record, "fingerprint": fingerprint, "core": core_fingerprint},
    )
    return found.fetchone() is not None


def write(db: sqlite3.Connection, platform: str, rows: str, values: Sequence[object], *, now_ms: int) -> int:
    """Remember that the platform has the versions in these rows of the outbox; return how many there are.

    `rows` is what follows FROM in a query of them, without an ORDER, and `values` are its parameters.
    """
    return db.execute(
        f"INSERT INTO ledger SELECT ?, record, fingerprint, core_fingerprint, ? FROM {rows} WHERE true"  # noqa: S608 - our own words
        " ON CONFLICT DO UPDATE SET fingerprint = excluded.fingerprint, core_fingerprint = excluded.core_fingerprint,"
        " at_ms = excluded.at_ms",
        (platform, now_ms, *values),
    ).rowcount


def write_core(db: sqlite3.Connection, platform: str, record: str, core_fingerprint: str, *, now_ms: int) -> None:
    """Remember what the Go agent's ledger says, unless ours knows better."""
    db.execute(
        "INSERT INTO ledger VALUES (?, ?, '', ?, ?) ON CONFLICT DO NOTHING",
        (platform, record, core_fingerprint, now_ms),
    )


def drop(db: sqlite3.Connection, record: str, fingerprint: str) -> None:
    """Remember that this version is wanted by no platform."""
    db.execute("INSERT INTO dropped VALUES (?, ?) ON CONFLICT DO NOTHING", (record, fingerprint))


def size(db: sqlite3.Connection) -> int:
    """Count what platforms have; the cost does not grow with it."""
    count: int = db.execute("SELECT records FROM volume WHERE what = 'ledger'").fetchone()[0]
    return count
