"""The file itself: who may read it, what is refused unread, and folders that cannot be used."""

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Generator
from contextlib import closing
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreUnavailable
from plugin.store import file, outbox, schema
from plugin.store.interface import StoreState
from plugin.store.sqlite import open_store
from tests.support.crash import NOBODY, child, live_read_only
from tests.support.stores import opened, put, waiting

DB = "agentic-sync.db"

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:50 / /home rw - ext4 /dev/vdb rw
31 30 0:51 / /home/me/share\\040d rw - nfs4 server:/export rw
32 30 0:52 / /home/me/ssh rw - fuse.sshfs me@server: rw
33 30 0:53 / /home/me/shared rw - ext4 /dev/vdc rw
34 33 0:54 / /home/me/shared rw - cifs //server/share rw
35 27 0:55 / /mnt/a\\134b\\011c rw - 9p drvfs rw
"""


@pytest.fixture
def open_to_all() -> Generator[Path]:
    """A folder that other users can reach, too, as they cannot reach pytest's own."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700)
    shutil.rmtree(folder)


def give_away(folder: Path, *, mode: int) -> None:
    """Make the folder that of the user which a child of the superuser becomes, with these permissions."""
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    folder.chmod(mode)


def open_up(folder: Path) -> None:
    folder.chmod(0o700)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(DB)}


def permissions(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}


async def test_folder_and_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(tmp_path / "a" / "state") as store:
            await put(store, "a")
            found = permissions(tmp_path / "a" / "state")
    finally:
        os.umask(before)
    assert found == {
        "state": 0o700,
        DB: 0o600,
        f"{DB}-wal": 0o600,
        f"{DB}-shm": 0o600,
        "agentic-sync.reserve": 0o600,
        "state.lock": 0o600,
    }


async def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
    (tmp_path / DB).chmod(0o644)
    async with opened(tmp_path):
        assert permissions(tmp_path)[DB] == 0o600


async def test_a_commit_is_on_the_disk_before_a_call_returns(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:

        def settings(db: sqlite3.Connection) -> list[object]:
            names = ("journal_mode", "synchronous", "auto_vacuum", "application_id", "user_version")
            return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        full, incremental = 2, 2
        found = await store.engine.run(settings)
        assert found == ["wal", full, incremental, schema.APPLICATION_ID, schema.VERSION]


def test_a_network_file_system_gets_a_journal_that_needs_no_shared_memory(tmp_path: Path) -> None:
    file.create(tmp_path / DB)
    with closing(file.open_writer(tmp_path, remote=True)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)


async def test_a_transaction_that_was_cut_off_without_a_log_is_rolled_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a", "b")
    living, found = tmp_path / DB, tmp_path / "found"
    found.mkdir()
    with closing(file.open_writer(tmp_path, remote=True)) as db:
        db.execute("PRAGMA cache_spill = 1")
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE outbox SET agent = 'half' WHERE row = 1")
        db.execute("UPDATE outbox SET body = zeroblob(100000) WHERE row = 1")
        for name in (DB, f"{DB}-journal"):
            shutil.copy(tmp_path / name, found / name)
        db.execute("ROLLBACK")
    assert (found / DB).read_bytes() != living.read_bytes()
    with closing(file.open_writer(found, remote=True)) as db:
        assert [row.agent_id for row in outbox.rows(db, state=None, after=0, limit=9)] == ["codex", "codex"]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/home/me/state", "ext4"),
        ("/home/me/share d/state", "nfs4"),
        ("/home/me/share d", "nfs4"),
        ("/home/me/share dx", "ext4"),
        ("/home/me/ssh/a", "fuse.sshfs"),
        ("/home/me/shared/a", "cifs"),
        ("/mnt/a\\b\tc", "9p"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(folder: str, kind: str) -> None:
    assert file.file_system(Path(folder), MOUNTS) == kind


def test_a_disk_of_this_machine_is_not_remote(tmp_path: Path) -> None:
    assert file.file_system(tmp_path, "") == ""
    assert not file.is_remote(tmp_path)


async def refused(folder: Path) -> tuple[StoreState, str]:
    store = open_store(folder, clock=SystemClock())
    with pytest.raises(StoreUnavailable) as error:
        await store.counts()
    health = store.health
    await store.close()
    return health.state, error.value.message


async def test_a_newer_schema_is_refused_and_the_file_untouched(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
    with closing(sqlite3.connect(tmp_path / DB, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = contents(tmp_path)
    state, message = await refused(tmp_path)
    assert state is StoreState.UNUSABLE
    assert f"version {schema.VERSION + 1}" in message
    assert contents(tmp_path) == before


async def test_a_newer_schema_that_is_only_in_the_log_is_refused_as_well(tmp_path: Path) -> None:
    async with opened(tmp_path / "old") as store:
        await put(store, "a")
    (tmp_path / "new").mkdir()
    with closing(sqlite3.connect(tmp_path / "old" / DB, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
        for name in (DB, f"{DB}-wal"):
            shutil.copy(tmp_path / "old" / name, tmp_path / "new" / name)
    before = contents(tmp_path / "new")
    assert (await refused(tmp_path / "new"))[0] is StoreState.UNUSABLE
    after = contents(tmp_path / "new")
    assert {name: after[name] for name in before} == before


async def test_a_store_goes_on_once_a_newer_file_is_taken_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
    with closing(sqlite3.connect(tmp_path / DB, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    store = open_store(tmp_path, clock=SystemClock())
    with pytest.raises(StoreUnavailable):
        await store.counts()
    (tmp_path / DB).rename(tmp_path / "elsewhere")
    await store.wait_ready()
    assert await waiting(store) == []
    await store.close()


async def test_a_folder_that_is_a_file_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    state, message = await refused(tmp_path / "state")
    assert state is StoreState.UNUSABLE
    assert str(tmp_path / "state") in message


async def test_a_folder_that_is_unusable_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    store = open_store(tmp_path / "state", clock=SystemClock())
    await store.wait_uncontested()
    await store.close()


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except StoreUnavailable as error:
        return error


async def test_a_database_that_another_program_has_locked_is_read_and_not_taken_for_broken(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.engine.run(lambda db: db.execute("PRAGMA busy_timeout = 0").fetchall())
        other = sqlite3.connect(tmp_path / DB, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await waiting(store) == []
        async with asyncio.TaskGroup() as tasks:
            refused = tasks.create_task(outcome(put(store, "a")))
            read = tasks.create_task(outcome(waiting(store)))
        assert (type(refused.result()), read.result()) == (StoreUnavailable, [])
        other.execute("ROLLBACK")
        other.close()
        await put(store, "a")
        assert store.health.state is StoreState.OK


@pytest.mark.parametrize("missing", [None, "state.lock"])
async def test_a_read_only_folder_is_read_and_recovers(open_to_all: Path, missing: str | None) -> None:
    async with opened(open_to_all) as store:
        await put(store, "a", "b")
    if missing is not None:
        (open_to_all / missing).unlink()
    give_away(open_to_all, mode=0o500)
    async with child(live_read_only, open_to_all) as process:
        assert await process.line() == "refused store_unavailable read_only"
        assert await process.line() == "read a,b"
        open_up(open_to_all)
        assert await process.rest() == ["ok a,b,new"]


async def test_a_read_only_folder_without_a_store_reads_as_empty(open_to_all: Path) -> None:
    give_away(open_to_all, mode=0o500)
    async with child(live_read_only, open_to_all) as process:
        assert [await process.line(), await process.line()] == ["refused store_unavailable read_only", "read"]
        open_up(open_to_all)
        assert await process.rest() == ["ok new"]


async def test_a_file_that_may_only_be_read_is_read_and_recovers(open_to_all: Path) -> None:
    async with opened(open_to_all) as store:
        await put(store, "a", "b")
    give_away(open_to_all, mode=0o700)
    (open_to_all / DB).chmod(0o400)
    async with child(live_read_only, open_to_all) as process:
        assert await process.line() == "refused store_unavailable read_only"
        assert await process.line() == "read a,b"
        (open_to_all / DB).chmod(0o600)
        assert await process.rest() == ["ok a,b,new"]


async def test_a_log_that_cannot_be_read_is_not_passed_over(open_to_all: Path, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
    async with opened(tmp_path) as store:
        await put(store, "b")
        for name in (DB, f"{DB}-wal"):
            shutil.copy(tmp_path / name, open_to_all / name)
    give_away(open_to_all, mode=0o500)
    async with child(live_read_only, open_to_all) as process:
        assert await process.line() == "refused store_unavailable read_only"
        # Without an index, which cannot be made there, only the file without its log could be read.
        assert await process.line() == "unreadable"
        open_up(open_to_all)
        assert await process.rest() == ["ok a,b,new"]


async def test_a_reader_sees_what_a_living_store_has_committed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a")
        with closing(file.open_reader(tmp_path)) as db:
            assert [row.record_id for row in outbox.rows(db, state=None, after=0, limit=9)] == ["a"]
            with pytest.raises(sqlite3.OperationalError):
                db.execute("DELETE FROM outbox")


def test_a_reader_of_an_empty_folder_sees_an_empty_store(tmp_path: Path) -> None:
    with closing(file.open_reader(tmp_path)) as db:
        assert outbox.counts(db, None).queued == 0
    assert list(tmp_path.iterdir()) == []
