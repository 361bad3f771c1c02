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


def write(db: sqlite3.Connection, platform: str, rows: Sequence[int], *, now_ms: int) -> None:
    """Remember that the platform has the versions in these rows of the outbox."""
    insert = (
        "INSERT INTO ledger SELECT ?, record, fingerprint, core_fingerprint, ? FROM outbox"  # noqa: S608 - question marks
        f" WHERE row IN ({', '.join('?' * len(rows))}) ON CONFLICT"
    )
    given = (platform, now_ms, *rows)
    added = db.execute(f"{insert} DO NOTHING", given).rowcount
    _count(db, added)
    if added < len(rows):  # the platform had another version of some
        db.execute(
            f"{insert} DO UPDATE SET fingerprint = excluded.fingerprint,"
            " core_fingerprint = excluded.core_fingerprint, at_ms = excluded.at_ms",
            given,
        )


def write_core(db: sqlite3.Connection, platform: str, record: str, core_fingerprint: str, *, now_ms: int) -> None:
    """Remember what the Go agent's ledger says, unless ours knows better."""
    added = db.execute(
        "INSERT INTO ledger VALUES (?, ?, '', ?, ?) ON CONFLICT DO NOTHING",
        (platform, record, core_fingerprint, now_ms),
    ).rowcount
    _count(db, added)


def drop(db: sqlite3.Connection, record: str, fingerprint: str) -> None:
    """Remember that this version is wanted by no platform."""
    db.execute("INSERT INTO dropped VALUES (?, ?) ON CONFLICT DO NOTHING", (record, fingerprint))


def size(db: sqlite3.Connection) -> int:
    """Count what platforms have; the cost does not grow with it."""
    count: int = db.execute("SELECT records FROM ledger_size").fetchone()[0]
    return count


def _count(db: sqlite3.Connection, added: int) -> None:
    db.execute("UPDATE ledger_size SET records = records + ?", (added,))
