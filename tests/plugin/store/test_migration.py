"""Files of older versions, the first of which had several forms: led to the newest with all that is in them."""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from plugin.store import file, outbox, schema
from plugin.store.interface import Failed, RowState, StoreState
from plugin.store.sqlite import SqliteStore
from tests.support.stores import AGENT, NOW_MS, PLATFORM, acknowledge, claim, opened, put, record, scan, take

DB = "agentic-sync.db"
FORMS = sorted((Path(__file__).parents[2] / "support" / "schemas").glob("*.sql"))
BATCHED, FREE = ["b1", "b2", "b3"], ["f1", "f2"]


def make(folder: Path, form: Path) -> None:
    """Write a file as its form's builds did: rows in batches, free before and behind them, apart, dead, delivered."""
    file.create(folder / DB)
    with closing(sqlite3.connect(folder / DB, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(form.read_text())
        for name in ("f1", *BATCHED, "apart", "dead", "f2", "gone"):
            one = record(name)
            row = db.execute(
                "INSERT INTO outbox (agent, record, fingerprint, size, queued_ms) VALUES (?, ?, ?, ?, ?)",
                (AGENT, name, one.fingerprint, len(one.body), NOW_MS),
            ).lastrowid
            db.execute("INSERT INTO body VALUES (?, ?, ?)", (row, hashlib.sha256(one.body).digest(), one.body))
        db.execute("DELETE FROM outbox WHERE record = 'gone'")
        key = hashlib.sha256(
            json.dumps([AGENT, sorted([n, record(n).fingerprint] for n in BATCHED)], separators=(",", ":")).encode()
        )
        db.execute(
            "INSERT INTO batch (id, agent, key, first_row, failures) VALUES (7, ?, ?, 2, 1)", (AGENT, key.hexdigest())
        )
        db.execute("UPDATE outbox SET batch = 7 WHERE row BETWEEN 2 AND 4")
        db.execute("UPDATE outbox SET state = 'apart', due_ms = ?, reason = '500' WHERE record = 'apart'", (NOW_MS,))
        db.execute("UPDATE outbox SET state = 'dead', reason = 'no', status = 422, answer = '' WHERE record = 'dead'")
        db.execute(
            "INSERT INTO ledger VALUES (?, 'delivered', ?, NULL, 1)", (PLATFORM, record("delivered").fingerprint)
        )
        db.execute("INSERT INTO gate VALUES (?, 'ready', NULL, NULL, 0, 5, NULL)", (PLATFORM,))
        db.execute("INSERT INTO history VALUES (9, 'push', ?, NULL, 1, 1, 1)", (AGENT,))
        # What one form's trigger did to what another form's build counted.
        db.execute("UPDATE totals SET records = records + 40")
        db.execute("UPDATE volume SET records = 77, bytes = -5")
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    """Return what version the older file is of."""
    return request.param


@pytest.fixture(params=FORMS, ids=lambda form: form.stem)
def older(tmp_path: Path, request: pytest.FixtureRequest, version: int) -> Path:
    make(tmp_path, request.param)
    if version > 1:
        with closing(sqlite3.connect(tmp_path / DB, isolation_level=None)) as db:
            schema.migrate(db, backup=None, steps=schema.STEPS[:version])
            db.execute("INSERT INTO totals VALUES (?, 'waiting', 40, 0, 4)", (AGENT,))
            db.execute("UPDATE outbox SET loose = 1 WHERE record = 'f1'")
    return tmp_path


async def counted(store: SqliteStore) -> tuple[int, int, int, int]:
    counts = await store.counts()
    return counts.queued, counts.dead, counts.bytes, await store.ledger_size()


async def test_an_older_file_is_migrated_not_salvaged_and_counts_right(older: Path, version: int) -> None:
    size = sum(len(record(name).body) for name in (*BATCHED, *FREE, "apart", "dead"))
    async with opened(older) as store:
        assert store.health.state is StoreState.OK
        assert await counted(store) == (6, 1, size, 1)
        assert (await store.counts(AGENT)).queued == 6
        assert (await store.gate(PLATFORM)).passes == 5
        assert len(await store.history("push")) == 1
        assert (await scan(store, record("delivered"), record("dead"), record("f2"))).known == 3
        assert (await put(store, "fresh")).last_row == 9
        assert store.health.set_aside is None
    with closing(sqlite3.connect(older / f"{DB}.backup")) as db:
        assert schema.version_of(db)[1] == version
        assert db.execute("SELECT count(*) FROM outbox").fetchone() == (7,)


async def test_an_older_file_drains_what_was_sent_before_as_it_was(older: Path) -> None:
    with closing(sqlite3.connect(older / DB)) as db:
        (key,) = db.execute("SELECT key FROM batch").fetchone()
    async with opened(older) as store:
        again = await take(store)
        assert (again.record_ids, again.key, again.failures) == (tuple(BATCHED), key, 1)
        assert again.bodies == tuple(record(name).body for name in BATCHED)
        assert await take(store) == again
        await acknowledge(store, again)
        for expected in (FREE, ["apart"]):
            batch = await take(store)
            assert list(batch.record_ids) == expected
            await acknowledge(store, batch)
        assert await claim(store) is None
        assert await counted(store) == (0, 1, len(record("dead").body), 7)
        assert [row.state for row in await store.rows()] == [RowState.DEAD]
        assert await store.retry_dead(None, now_ms=NOW_MS) == 1
        assert (await take(store)).record_ids == ("dead",)


async def test_what_is_free_before_a_batch_goes_out_while_that_is_out(older: Path) -> None:
    async with opened(older) as store:
        sent = await take(store)
        for _ in range(2):
            await store.record(sent, Failed(counts=True), platform=PLATFORM, gate=None, now_ms=NOW_MS)
        assert list((await take(store)).record_ids) == FREE


async def test_an_older_file_that_is_damaged_is_salvaged(older: Path) -> None:
    data = (older / DB).read_bytes()
    (older / DB).write_bytes(data.replace(b"CREATE TABLE history", b"CREATE TABLE hxstory"))
    async with opened(older) as store:
        assert store.health.state is StoreState.RECOVERED
        assert (await store.counts()).queued == 6
        assert (await take(store)).record_ids == tuple(BATCHED)


def test_an_older_file_can_be_read_as_it_is(older: Path) -> None:
    before = (older / DB).read_bytes()
    with closing(file.open_reader(older)) as db:
        assert [row.record_id for row in outbox.rows(db, state=RowState.WAITING, after=0, limit=9)] == [
            "f1",
            *BATCHED,
            "f2",
        ]
    assert (older / DB).read_bytes() == before


def test_a_file_of_any_form_becomes_the_same(older: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    fresh = tmp_path_factory.mktemp("fresh")
    file.create(fresh / DB)
    made: list[list[tuple[str, str, str]]] = []
    for folder in (older, fresh):
        with closing(file.open_writer(folder, remote=False)) as db:
            assert schema.missing(db) == []
            made.append(db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2").fetchall())
    assert made[0] == made[1]
