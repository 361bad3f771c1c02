"""The writer thread: what it commits together, whose error an error is, and how it ends."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import QueueFull, StoreUnavailable
from plugin.store.engine import Engine
from plugin.store.interface import Caps, StoreState
from plugin.store.keeper import Keeper
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.crash import child, leave_open
from tests.support.stores import NOW_MS, PATIENCE_S, PLATFORM, acknowledge, opened, put, record, waiting


@asynccontextmanager
async def held_up(store: SqliteStore) -> AsyncGenerator[None]:
    """Keep the writer thread busy, so that all that is submitted meanwhile waits."""
    entered, go_on = threading.Event(), threading.Event()

    def stand_still(_: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(PATIENCE_S)

    holding = asyncio.create_task(store.engine.run(stand_still))
    await asyncio.get_running_loop().run_in_executor(None, entered.wait, PATIENCE_S)
    try:
        yield
        await asyncio.sleep(0)
    finally:
        go_on.set()
        await holding


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _as_objects(*calls: Coroutine[object, object, object]) -> tuple[Coroutine[object, object, object], ...]:
    return calls


async def test_callers_that_wait_together_are_committed_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        before = store.engine.commits
        async with held_up(store):
            calls = [asyncio.create_task(put(store, f"r{number}")) for number in range(200)]
        results = await asyncio.gather(*calls)
        assert sorted(done.last_row for done in results) == list(range(1, 201))
        assert 1 <= store.engine.commits - before <= 50


async def test_a_thousand_callers_at_once_wait_for_five_commits(tmp_path: Path) -> None:
    store = SqliteStore(Engine(Keeper(tmp_path, clock=SystemClock()), together_s=PATIENCE_S))
    try:
        await store.wait_ready()
        before = store.engine.commits
        async with held_up(store):
            calls = [asyncio.create_task(put(store, f"r{number}")) for number in range(1000)]
        await asyncio.gather(*calls)
        assert store.engine.commits - before <= 5
    finally:
        await store.close()


async def test_what_came_of_batches_and_the_next_ones_take_one_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for agent in ("one", "two"):
            await put(store, f"{agent}1", f"{agent}2", agent=agent)
        claim_two = partial(store.claim, PLATFORM, busy=(), most=2, max_records=1, max_bytes=1000, now_ms=NOW_MS)
        sent = await claim_two()
        before = store.engine.commits
        async with held_up(store):
            calls = [asyncio.create_task(acknowledge(store, batch)) for batch in sent]
            await asyncio.sleep(0)
            following = asyncio.create_task(claim_two(settling=["one", "two"]))
        await asyncio.gather(*calls)
        assert [batch.record_ids for batch in await following] == [("one2",), ("two2",)]
        assert store.engine.commits - before == 1


async def test_one_of_many_calls_that_cannot_be_stored_fails_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with held_up(store):
            calls = [asyncio.create_task(put(store, name)) for name in ("a", "\ud800", "b")]
            full = asyncio.create_task(put(store, "c", caps=Caps(records=1, bytes=1000)))
        _, broken, _, refused = await asyncio.gather(*calls, full, return_exceptions=True)
        assert isinstance(broken, UnicodeEncodeError)
        assert isinstance(refused, QueueFull)
        assert await waiting(store) == ["a", "b"]
        assert (await store.counts()).queued == 2


async def test_a_caller_alone_gets_a_commit_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        before = store.engine.commits
        await put(store, "a")
        await put(store, "b")
        await store.counts()
        assert store.engine.commits - before == 2


async def test_calls_that_fail_leave_their_neighbours_alone(tmp_path: Path) -> None:
    def fault(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM outbox")
        raise ZeroDivisionError

    def breach(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM outbox")
        db.execute("UPDATE gate SET failures = NULL")
        db.execute("INSERT INTO import VALUES (NULL, NULL)")

    def nonsense(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM outbox")
        db.execute("SELECT * FROM nowhere")

    async with opened(tmp_path) as store:
        async with held_up(store):
            calls = [
                asyncio.ensure_future(call)
                for call in _as_objects(
                    put(store, "a"),
                    store.engine.run(fault),
                    put(store, "b"),
                    put(store, "too", "many", caps=Caps(records=3, bytes=1000)),
                    store.engine.run(breach),
                    put(store, "c"),
                    store.engine.run(nonsense),
                    put(store, "d"),
                )
            ]
        a, fail, b, full, broken, c, lost, d = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in (fail, full, broken, lost)] == [
            ZeroDivisionError,
            QueueFull,
            sqlite3.IntegrityError,
            StoreUnavailable,
        ]
        assert not any(isinstance(done, BaseException) for done in (a, b, c, d))
        assert await waiting(store) == ["a", "b", "c", "d"]
        assert store.health.state is StoreState.OK


async def test_a_value_that_fits_no_column_is_its_callers_fault(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(OverflowError):
            await put(store, "a", node=2**63)
        await put(store, "b")
        assert await waiting(store) == ["b"]
        assert store.health.state is StoreState.OK


async def test_a_caller_that_goes_away_breaks_nothing_and_takes_nothing_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with held_up(store):
            gone = asyncio.create_task(put(store, "a"))
            stays = asyncio.create_task(put(store, "b"))
            await asyncio.sleep(0)
            gone.cancel()
        assert (await stays).added == 1
        assert gone.cancelled()
        assert await waiting(store) == ["a", "b"]


async def test_closing_finishes_what_was_submitted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with held_up(store):
            calls = [asyncio.create_task(put(store, f"r{number}")) for number in range(5)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(store.close())
        await asyncio.gather(*calls)
        await closing
        with pytest.raises(StoreUnavailable):
            await put(store, "late")
    async with opened(tmp_path) as store:
        assert len(await waiting(store)) == 5


async def test_closing_leaves_a_file_without_a_log_and_the_room_set_aside(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
    assert names(tmp_path) == {"agentic-sync.db", "agentic-sync.reserve", "state.lock"}


async def test_a_close_that_is_cancelled_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with held_up(store):
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
            closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        await store.close()


async def test_who_waits_for_a_store_that_is_closed_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path):
        second = open_store(tmp_path, clock=SystemClock())
        calls = [
            asyncio.ensure_future(call)
            for call in _as_objects(second.wait_ready(), second.wait_uncontested(), put(second, "a"))
        ]
        await asyncio.sleep(0)
        await second.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [StoreUnavailable] * 3


async def test_a_process_ends_though_its_store_was_never_closed(tmp_path: Path) -> None:
    async with child(leave_open, tmp_path) as process:
        assert await process.rest() == ["ended"]
    async with opened(tmp_path) as store:
        assert (await waiting(store))[0] == "a"


def test_a_store_may_outlive_the_loop_of_a_caller(tmp_path: Path) -> None:
    go_on = threading.Event()

    def stand_still(_: sqlite3.Connection) -> None:
        assert go_on.wait(PATIENCE_S)

    async def start() -> SqliteStore:
        store = open_store(tmp_path, clock=SystemClock())
        await store.wait_ready()
        call = asyncio.ensure_future(store.engine.run(stand_still))
        await asyncio.sleep(0)
        call.cancel()
        return store

    async def finish(store: SqliteStore) -> None:
        await store.enqueue("codex", [record("a")], caps=Caps(records=9, bytes=999), now_ms=NOW_MS)
        await store.close()

    store = asyncio.run(start())
    go_on.set()
    asyncio.run(finish(store))
