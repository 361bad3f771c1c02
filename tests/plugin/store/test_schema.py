"""Migrations, and what the statements of every day cost: none looks at every row."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from plugin.store import schema
from plugin.store.interface import Failed, SetApart, Split
from plugin.store.sqlite import SqliteStore
from tests.support.stores import AGENT, NOW_MS, PLATFORM, acknowledge, claim, opened, put, record, scan, take

# Their size is bounded, or by the number of agents and of states, not of records.
SMALL = {"totals", "ledger_size", "history", "sqlite_sequence", "json_each"}


def add_column(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE outbox ADD COLUMN note TEXT")


def fill_column(db: sqlite3.Connection) -> None:
    db.execute("UPDATE outbox SET note = 'old'")


def fail(db: sqlite3.Connection) -> None:
    db.execute("UPDATE nowhere SET note = 'x'")


async def a_store_with_a_record(folder: Path) -> Path:
    async with opened(folder) as store:
        await put(store, "a")
    return folder / "agentic-sync.db"


async def test_steps_lead_an_older_file_to_the_newest_version_after_a_backup(tmp_path: Path) -> None:
    path, backup = await a_store_with_a_record(tmp_path), tmp_path / "backup"
    backup.write_bytes(b"of an attempt before")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        schema.migrate(db, backup=backup, steps=(*schema.STEPS, add_column, fill_column))
        assert schema.version_of(db) == (schema.APPLICATION_ID, schema.VERSION + 2)
        assert db.execute("SELECT record, note FROM outbox").fetchall() == [("a", "old")]
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as db:
        assert schema.version_of(db) == (schema.APPLICATION_ID, schema.VERSION)
        assert db.execute("SELECT record FROM outbox").fetchall() == [("a",)]


async def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = await a_store_with_a_record(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(db, backup=tmp_path / "backup", steps=(*schema.STEPS, add_column, fail))
        assert not db.in_transaction
        assert schema.version_of(db)[1] == schema.VERSION
        with pytest.raises(sqlite3.OperationalError):
            db.execute("SELECT note FROM outbox")


def test_a_new_file_and_one_of_the_newest_version_need_no_backup(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as db:
        schema.migrate(db, backup=tmp_path / "backup")
        schema.migrate(db, backup=tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


async def test_what_was_delivered_leaves_nothing_in_the_outbox(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a", "b", "c")
        batch = await take(store)
        await store.record(batch, Split(suspect=False), platform=PLATFORM, gate=None, now_ms=NOW_MS)
        # The answer to the whole came after all: it counts for what is in two batches by now.
        await acknowledge(store, batch)

        def left(db: sqlite3.Connection) -> list[int]:
            return [
                db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - three constants
                for table in ("outbox", "batch", "totals")
            ]

        assert await store.engine.run(left) == [0, 0, 0]


async def a_day(store: SqliteStore) -> None:
    """Make every call that is made again and again."""
    await put(store, "a", "b", "c", "d", "e")
    await scan(store, record("a"), record("f", core="monday#1"))
    await store.known(PLATFORM, [("a", "x", None), ("b", record("b").fingerprint, "monday#1")])
    batch = await take(store, max_records=4)
    await store.record(batch, Failed(counts=True), platform=PLATFORM, gate=None, now_ms=NOW_MS)
    await store.record(batch, Split(suspect=True), platform=PLATFORM, gate=None, now_ms=NOW_MS)
    await acknowledge(store, await take(store))
    half = await take(store)
    await store.record(half, Split(suspect=True), platform=PLATFORM, gate=None, now_ms=NOW_MS)
    change = SetApart(due_ms=NOW_MS, reason="500")
    await store.record(await take(store), change, platform=PLATFORM, gate=None, now_ms=NOW_MS)
    while await claim(store):
        await store.unsettled(AGENT, up_to_row=4)
        await acknowledge(store, await take(store))
        await put(store)
    await store.next_due_ms()
    await store.counts()
    await store.counts(AGENT)
    await store.ledger_size()
    await store.gate(PLATFORM)
    await store.times(AGENT)
    await store.history("push")
    await store.context(PLATFORM, AGENT, now_ms=NOW_MS)


async def test_no_statement_of_every_day_looks_at_every_row(tmp_path: Path) -> None:
    statements: list[str] = []
    async with opened(tmp_path) as store:
        await store.engine.run(lambda db: db.set_trace_callback(statements.append))
        await a_day(store)
        await store.engine.run(lambda db: db.set_trace_callback(None))
        queries = {sql for sql in statements if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", sql)}

        def plans(db: sqlite3.Connection) -> list[tuple[str, str]]:
            return [(step[3], sql) for sql in queries for step in db.execute(f"EXPLAIN QUERY PLAN {sql}")]

        steps = await store.engine.run(plans)
    assert len(queries) > 60
    scans = {(plan, sql) for plan, sql in steps if (found := re.match(r"SCAN (\w+)", plan)) and _is_large(found[1])}
    assert scans == set()
    assert not {(plan, sql) for plan, sql in steps if "TEMP B-TREE" in plan and "totals" not in sql}


def _is_large(table: str) -> bool:
    return table not in SMALL and not re.match(r"CONSTANT|\d+$|subquery|\(", table)
