"""The keeper's judgement: what is wrong with a store, what ends it, and what is done when nothing is to be done."""

import asyncio
import contextlib
import errno
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreInUse, StoreUnavailable
from plugin.store import keeper
from plugin.store.engine import Engine
from plugin.store.interface import StoreState
from plugin.store.keeper import Keeper
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.clock import FakeClock
from tests.support.stores import PATIENCE_S, opened, put, take, waiting


def failing_with(name: str) -> Callable[[sqlite3.Connection], None]:
    """Make work that fails as SQLite does when the file or the disk is to blame."""

    def work(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("as SQLite says it")
        error.sqlite_errorname = name
        raise error

    return work


async def fail_with(store: SqliteStore, name: str) -> None:
    with pytest.raises(StoreUnavailable):
        await store.engine.run(failing_with(name))


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("SQLITE_FULL", StoreState.FULL),
        ("SQLITE_IOERR_WRITE", StoreState.FULL),
        ("SQLITE_IOERR_FSYNC", StoreState.FULL),
        ("SQLITE_READONLY", StoreState.READ_ONLY),
        ("SQLITE_READONLY_DBMOVED", StoreState.READ_ONLY),
    ],
)
async def test_what_keeps_writes_out_is_over_only_after_a_write(tmp_path: Path, name: str, state: StoreState) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
        await fail_with(store, name)
        assert store.health.state is state
        assert await waiting(store) == ["a"]
        assert store.health.state is state
        await put(store, "b")
        assert store.health.state is StoreState.OK


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_BUSY", "SQLITE_NOMEM"])
async def test_any_other_trouble_is_over_when_something_works(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as store:
        await fail_with(store, name)
        assert store.health.state is StoreState.UNUSABLE
        await store.counts()
        assert store.health.state is StoreState.OK


async def test_a_file_that_may_not_grow_refuses_work_and_takes_it_again_once_it_may(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a", "b")
        await store.engine.run(lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(StoreUnavailable):
            await put(store, "large", size=100_000)
        assert store.health.state is StoreState.FULL
        assert await waiting(store) == ["a", "b"]
        assert (await take(store)).record_ids == ("a", "b")
        await store.engine.run(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
        await put(store, "large", size=100_000)
        assert store.health.state is StoreState.OK
        assert await waiting(store) == ["a", "b", "large"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_folder_in_which_there_is_no_room_is_full(tmp_path: Path, number: int) -> None:
    assert errno.errorcode[number] in keeper.NO_ROOM
    assert keeper.judge(OSError(number, "no room"), tmp_path)[0] is StoreState.FULL


async def test_the_owner_is_named_also_while_it_cannot_open_the_file(tmp_path: Path) -> None:
    (tmp_path / "state.lock").write_bytes(b'{"pid":99999999,"made":true}')
    (tmp_path / "agentic-sync.db").mkdir()
    first = open_store(tmp_path, clock=SystemClock())
    with pytest.raises(StoreUnavailable):
        await first.counts()
    clock = FakeClock()
    second = open_store(tmp_path, clock=clock)
    call = asyncio.create_task(second.counts())
    await clock.advance(2.0)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(StoreInUse) as refused:
            await call
    assert refused.value.pid not in {None, 99999999}
    await second.close()
    await first.close()


class Defective(Keeper):
    """A keeper with a defect, which shows at the second attempt to look after the folder."""

    defect = False

    def attend(self) -> None:
        if self.defect:
            raise ZeroDivisionError
        super().attend()

    def worked(self, *, changed: bool) -> None:
        super().worked(changed=changed)
        self.defect = True
        if changed:
            raise ZeroDivisionError


async def write(store: SqliteStore) -> None:
    await put(store, "a")


async def read(store: SqliteStore) -> None:
    await store.counts()


@pytest.mark.parametrize("first", [write, read])
async def test_nobody_waits_for_a_thread_that_has_failed(
    tmp_path: Path, first: Callable[[SqliteStore], Awaitable[None]]
) -> None:
    store = SqliteStore(Engine(Defective(tmp_path, clock=SystemClock())))
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(StoreUnavailable):
            await first(store)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.counts()
        with pytest.raises(StoreUnavailable):
            await store.wait_ready()
        assert store.health.state is StoreState.UNUSABLE
        await store.close()
    async with opened(tmp_path) as after:
        await put(after, "b")


@pytest.mark.skipif(sys.platform != "linux", reason="counts the times that the kernel woke a thread")
async def test_a_thread_without_work_is_not_woken(tmp_path: Path) -> None:
    def times_woken(thread: int) -> int:
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    async with opened(tmp_path) as store:
        thread = await store.engine.run(lambda _: threading.get_native_id())
        before = times_woken(thread)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.6):
                await asyncio.Event().wait()
        assert times_woken(thread) - before <= 1
