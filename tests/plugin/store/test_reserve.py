"""The room that is set aside for a full disk: how much, for whom, and what gives it back."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreUnavailable
from plugin.store import file, reserve
from plugin.store.engine import Engine, Kind
from plugin.store.interface import Enqueued, StoreState
from plugin.store.keeper import LEAN_CHECKPOINT_PAGES, LEAN_REST_S, Keeper
from plugin.store.reserve import LEAST_BYTES, MARGIN_BYTES, STEP_BYTES, Reserve
from plugin.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.stores import acknowledge, claim, fill, opened, put, take, waiting

MORE_THAN_ANY_DISK = 2**60


def allocated(folder: Path) -> int:
    """How much is set aside: what is allocated, of a file of that size."""
    try:
        found = (folder / reserve.NAME).stat()
    except FileNotFoundError:
        return 0
    assert found.st_blocks * 512 >= found.st_size
    return found.st_size


def room_taken(folder: Path) -> int:
    """How much the file and its log take."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob(f"{file.NAME}*"))


def no_room() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorname = "SQLITE_FULL"
    return error


def without_room(times: int) -> Callable[[sqlite3.Connection], None]:
    """Make work that finds the disk full so many times, and writes something after that."""
    left = [times]

    def work(db: sqlite3.Connection) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise no_room()
        db.execute("INSERT INTO import VALUES ('something', 0)")

    return work


# -- the file ----------------------------------------------------------------------------------------------------------


def test_what_is_set_aside_is_allocated_and_covers_the_growth_and_a_margin(tmp_path: Path) -> None:
    one = Reserve(tmp_path)
    assert one.lacking
    for growth in (0, 1, STEP_BYTES - 1, STEP_BYTES, 7 * STEP_BYTES + 5):
        assert one.covers(growth)
        assert growth + MARGIN_BYTES <= allocated(tmp_path) <= growth + LEAST_BYTES
    one.trim(0)
    assert allocated(tmp_path) == LEAST_BYTES
    assert not one.lacking


def test_what_there_is_no_room_for_leaves_it_as_it_was(tmp_path: Path) -> None:
    one = Reserve(tmp_path)
    assert not one.covers(MORE_THAN_ANY_DISK)
    assert one.lacking
    assert allocated(tmp_path) == 0
    assert one.covers(0)
    assert not one.covers(MORE_THAN_ANY_DISK)
    assert allocated(tmp_path) == LEAST_BYTES
    assert not one.lacking


def test_a_part_that_a_crash_left_is_made_whole(tmp_path: Path) -> None:
    with (tmp_path / reserve.NAME).open("wb") as part:
        part.truncate(2 * LEAST_BYTES)
    assert Reserve(tmp_path).covers(0)
    assert allocated(tmp_path) == LEAST_BYTES


def test_what_an_earlier_process_set_aside_can_be_given_up(tmp_path: Path) -> None:
    Reserve(tmp_path).covers(0)
    one = Reserve(tmp_path)
    assert one.free()
    assert allocated(tmp_path) == 0
    assert not one.free()


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    other.write_bytes(b"of another")
    path.symlink_to(other)


def contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("obstacle", [a_folder, a_link])
async def test_where_nothing_can_be_set_aside_the_store_works_as_ever(
    tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    obstacle(tmp_path / reserve.NAME)
    async with opened(tmp_path) as store:
        await put(store, "a")
        with pytest.raises(StoreUnavailable):
            await store.engine.run(without_room(3))
        assert store.health.state is StoreState.FULL
        await put(store, "b")
        assert store.health.state is StoreState.OK
        assert await waiting(store) == ["a", "b"]
    assert contents(tmp_path / "elsewhere") in {None, b"of another"}


def test_a_system_that_cannot_allocate_sets_nothing_aside(tmp_path: Path) -> None:
    def unable(_fd: int, _start: int, _size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    for allocate in (unable, None):
        one = Reserve(tmp_path, allocate=allocate)
        assert one.covers(0)
        assert one.covers(MORE_THAN_ANY_DISK)
        assert not one.lacking
        assert not one.free()
        assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_fails_on_its_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def half(fd: int, start: int, size: int) -> None:
        os.posix_fallocate(fd, start, size // 2)
        raise OSError(errno.EDQUOT, "quota exceeded")

    one = Reserve(tmp_path, allocate=half)
    assert not one.covers(0)
    assert one.lacking
    assert list(tmp_path.iterdir()) == []


# -- the store ---------------------------------------------------------------------------------------------------------


async def test_it_is_there_from_the_first_start_and_stays(tmp_path: Path) -> None:
    async with opened(tmp_path):
        assert allocated(tmp_path) == LEAST_BYTES
    assert allocated(tmp_path) == LEAST_BYTES
    async with opened(tmp_path) as store:
        assert allocated(tmp_path) == LEAST_BYTES
        assert store.health.state is StoreState.OK


async def test_work_is_only_taken_in_when_its_way_from_the_log_into_the_file_is_covered(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, *map(str, range(6)), size=1024 * 1024)
        assert (tmp_path / file.NAME).stat().st_size < 1024 * 1024
        assert allocated(tmp_path) >= MARGIN_BYTES + 6 * 1024 * 1024


def test_what_the_log_needs_no_more_is_given_back_in_a_pause(idle: Keeper, tmp_path: Path) -> None:
    assert idle.writer is not None
    fill(idle.writer, 6)
    assert idle.admits()
    assert allocated(tmp_path) > 6 * 1024 * 1024
    idle.rest()
    assert allocated(tmp_path) == LEAST_BYTES


async def test_only_what_drains_the_outbox_uses_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        before = (tmp_path / reserve.NAME).stat().st_ino
        with pytest.raises(StoreUnavailable):
            await store.engine.run(without_room(3), kind=Kind.TAKE)
        assert store.health.state is StoreState.FULL
        assert (tmp_path / reserve.NAME).stat().st_ino == before

        held = os.open(tmp_path / reserve.NAME, os.O_RDONLY)  # or its number could be used again at once
        try:
            await store.engine.run(without_room(2))
            assert os.fstat(held).st_nlink == 0
        finally:
            os.close(held)
        # There is room here: so it is set aside anew, and nothing is full.
        assert allocated(tmp_path) == LEAST_BYTES
        assert store.health.state is StoreState.OK


def test_without_it_new_work_is_refused_and_the_log_kept_short_until_there_is_room(
    idle: Keeper, tmp_path: Path
) -> None:
    assert idle.writer is not None
    assert idle.failed(no_room(), final=False, drains=True)
    assert allocated(tmp_path) == 0
    assert idle.health.state is StoreState.FULL
    assert idle.writer.execute("PRAGMA wal_autocheckpoint").fetchone() == (LEAN_CHECKPOINT_PAGES,)
    assert idle.dirty
    idle.rest()
    assert allocated(tmp_path) == LEAST_BYTES
    assert idle.health.state is StoreState.OK
    assert idle.writer.execute("PRAGMA wal_autocheckpoint").fetchone() == (file.CHECKPOINT_PAGES,)


async def test_room_is_noticed_without_a_pause_too(tmp_path: Path) -> None:
    clock = FakeClock()
    one = Keeper(tmp_path, clock=clock)
    one.attend()
    one.failed(no_room(), final=False, drains=True)
    one.attend()
    assert one.health.state is StoreState.FULL
    await clock.advance(LEAN_REST_S)
    one.attend()
    assert one.health.state is StoreState.OK
    one.close()


def test_another_attempt_is_made_only_if_something_changed(idle: Keeper) -> None:
    assert idle.failed(no_room(), final=False, drains=False)  # the log came home
    assert not idle.failed(no_room(), final=True, drains=False)
    assert not idle.failed(no_room(), final=False, drains=False)
    assert idle.failed(no_room(), final=False, drains=True)  # what was set aside
    assert not idle.failed(no_room(), final=False, drains=True)


async def test_work_that_cannot_be_covered_is_refused_and_its_neighbours_stored(tmp_path: Path) -> None:
    def little(fd: int, start: int, size: int) -> None:
        if size > LEAST_BYTES:
            raise OSError(errno.ENOSPC, "no room")
        os.posix_fallocate(fd, start, size)

    store = SqliteStore(Engine(Keeper(tmp_path, clock=SystemClock(), allocate=little)))
    await store.wait_ready()
    await put(store, "a")
    calls = [put(store, name, size=size) for name, size in (("b", 0), ("large", STEP_BYTES), ("c", 0))]
    b, refused, c = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(b, Enqueued)
    assert isinstance(refused, StoreUnavailable)
    assert isinstance(c, Enqueued)
    assert await waiting(store) == ["a", "b", "c"]
    with pytest.raises(StoreUnavailable):
        await put(store, "large", size=STEP_BYTES)
    assert store.health.state is StoreState.FULL
    await put(store, "d")
    assert store.health.state is StoreState.OK
    await store.close()


async def test_damage_is_never_seen_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
        await acknowledge(store, await take(store))
    (tmp_path / reserve.NAME).write_bytes(b"something else")
    async with opened(tmp_path) as store:
        assert store.health.state is StoreState.OK
        assert store.health.set_aside is None
    assert allocated(tmp_path) == LEAST_BYTES


def test_on_a_network_file_system_nothing_is_set_aside(tmp_path: Path) -> None:
    one = Keeper(tmp_path, clock=FakeClock(), is_remote=lambda _: True)
    one.attend()
    assert one.admits()
    one.close()
    assert not (tmp_path / reserve.NAME).exists()


async def test_what_drains_fits_into_the_reserve_however_much_it_is(tmp_path: Path) -> None:
    def gone(_fd: int, _start: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    async with opened(tmp_path) as store:
        for part in range(10):
            await put(store, *(f"{part}-{number}" for number in range(1000)), size=100)
    before = room_taken(tmp_path)
    store = SqliteStore(Engine(Keeper(tmp_path, clock=SystemClock(), allocate=gone)))
    await store.wait_ready()
    most = 0
    while (batch := await claim(store)) is not None:
        await acknowledge(store, batch)
        most = max(most, room_taken(tmp_path))
    assert store.health.state is StoreState.FULL
    assert most - before <= MARGIN_BYTES
    await store.close()
