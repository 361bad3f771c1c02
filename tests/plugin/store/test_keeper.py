"""The keeper's judgement: what is wrong with a store, what ends it, and what is done when nothing is to be done."""

import asyncio
import contextlib
import errno
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreInUse, StoreUnavailable
from plugin.store import diagnosis, file, keeper, recovery
from plugin.store.engine import Engine, Kind
from plugin.store.interface import StoreState
from plugin.store.keeper import Keeper
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.clock import FakeClock
from tests.support.stores import PATIENCE_S, fill, opened, put, take, waiting


def failing_with(name: str) -> Callable[[sqlite3.Connection], None]:
    """Make work that fails as SQLite does when the file or the disk is to blame."""

    def work(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("as SQLite says it")
        error.sqlite_errorname = name
        raise error

    return work


def places(folder: Path) -> list[Path]:
    return list(folder.glob("agentic-sync.corrupt-*"))


async def fail_with(store: SqliteStore, name: str) -> None:
    with pytest.raises(StoreUnavailable):
        await store.engine.run(failing_with(name), kind=Kind.TAKE)


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
    assert errno.errorcode[number] in diagnosis.NO_ROOM
    assert diagnosis.judge(OSError(number, "no room"), tmp_path)[0] is StoreState.FULL


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


async def test_a_file_that_cannot_be_replaced_is_looked_at_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
        (tmp_path / recovery.PART).mkdir()
        await fail_with(store, "SQLITE_CORRUPT")
        assert store.health.state is StoreState.UNUSABLE
        with pytest.raises(StoreUnavailable):
            await put(store, "b")
        (tmp_path / recovery.PART).rmdir()
        await store.wait_ready()
        # It was sound after all.
        assert store.health.state is StoreState.OK
        await put(store, "b")
        assert await waiting(store) == ["a", "b"]


async def test_damage_that_comes_back_at_once_is_told_not_mended_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
        await fail_with(store, "SQLITE_CORRUPT")
        assert len(places(tmp_path)) == 1
        assert await waiting(store) == ["a"]


def at_home(folder: Path) -> int:
    """Count the outbox as the file has it without its log."""
    with closing(file.connect(folder / file.NAME, mode="ro", immutable=True)) as db:
        (count,) = db.execute("SELECT count(*) FROM outbox").fetchone()
        return int(count)


def test_in_a_pause_the_log_keeps_the_room_that_it_takes_again_and_gives_back_more(
    idle: Keeper, tmp_path: Path
) -> None:
    log = tmp_path / f"{file.NAME}-wal"
    assert idle.writer is not None
    for megabytes, kept in ((6, True), (20, False)):
        idle.writer.execute("BEGIN")
        fill(idle.writer, megabytes)
        idle.writer.execute("COMMIT")
        written = log.stat().st_size
        idle.worked(changed=True)
        idle.rest()
        assert log.stat().st_size == (written if kept else 0)


def test_in_a_pause_the_room_of_what_left_is_given_back_a_part_at_a_time(idle: Keeper, tmp_path: Path) -> None:
    assert idle.writer is not None
    fill(idle.writer, 6)
    idle.rest()
    full = (tmp_path / file.NAME).stat().st_size
    assert at_home(tmp_path) == 6
    assert full > 6 * 1024 * 1024

    idle.writer.execute("DELETE FROM outbox")
    idle.worked(changed=True)
    sizes = [full]
    while idle.dirty:
        idle.rest()
        sizes.append((tmp_path / file.NAME).stat().st_size)
        assert at_home(tmp_path) == 0
        assert sizes[-2] - sizes[-1] <= (keeper.VACUUM_PAGES + 8) * 4096  # and a few that SQLite keeps its books in
    assert len(sizes) > 2
    assert sizes[-1] <= keeper.VACUUM_PAGES * 4096 + 200_000


def test_a_reader_does_not_hold_up_a_pause_nor_what_comes_after_it(idle: Keeper, tmp_path: Path) -> None:
    assert idle.writer is not None
    fill(idle.writer, 1)
    with closing(file.open_reader(tmp_path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM outbox").fetchall()
        fill(idle.writer, 1)
        idle.worked(changed=True)
        idle.rest()
        assert idle.writer.execute("PRAGMA busy_timeout").fetchone() == (file.BUSY_S * 1000,)
        fill(idle.writer, 1)
        assert reader.execute("SELECT count(*) FROM outbox").fetchone() == (1,)


def test_on_a_network_file_system_the_log_is_another_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Keeper(tmp_path, clock=FakeClock(), is_remote=lambda _: True)
    one.attend()
    assert one.writer is not None
    assert one.writer.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    one.close()
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]


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
