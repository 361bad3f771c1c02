"""A power cut: of the log only a beginning reached the disk, whole sectors of it."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.store.interface import Caps, StoreState
from plugin.store.sqlite import open_store
from plugin.sync.record import make_record

MEMORY = Path("/dev/shm")  # noqa: S108 - the test makes a private folder in it
SECTOR = 512
COMMITS = 5
EACH = 3
CAPS = Caps(records=1000, bytes=1024 * 1024)
DB, WAL = "agentic-sync.db", "agentic-sync.db-wal"


@dataclass(frozen=True, slots=True)
class Torn:
    """A store that was cut off, and how long its log was when each call returned."""

    folder: Path
    returned_at: tuple[int, ...]


def ids(commits: int) -> list[str]:
    return [f"work-{number}" for number in range(commits * EACH)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of starts would mostly wait for the disk."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.fixture
async def torn(folder: Path) -> Torn:
    """Copy a store while it is open, before its log is folded into the file."""
    live, copy = folder / "live", folder / "copy"
    store = open_store(live, clock=SystemClock())
    await store.wait_ready()
    returned_at: list[int] = []
    for commit in range(COMMITS):
        records = [
            make_record({"id": id_, "repo": "core", "task": "x" * 100}) for id_ in ids(COMMITS)[commit * EACH :][:EACH]
        ]
        await store.enqueue("codex", records, caps=CAPS, now_ms=1)
        returned_at.append((live / WAL).stat().st_size)
    shutil.copytree(live, copy)
    await store.close()
    return Torn(copy, tuple(returned_at))


async def test_whatever_is_left_of_the_log_is_a_beginning_and_holds_what_was_returned(torn: Torn, folder: Path) -> None:
    db, wal = (torn.folder / DB).read_bytes(), (torn.folder / WAL).read_bytes()
    beginnings = [ids(commits) for commits in range(COMMITS + 1)]
    cut = folder / "cut"
    assert len(wal) == torn.returned_at[-1]
    for length in range(0, len(wal) + SECTOR, SECTOR):
        cut.mkdir()
        (cut / DB).write_bytes(db)
        (cut / WAL).write_bytes(wal[:length])
        found = await records_of(cut)
        returned = sum(size <= length for size in torn.returned_at)
        assert found in beginnings[returned:], f"after {length} bytes of the log"
        shutil.rmtree(cut)


async def test_a_torn_last_sector_of_the_log_takes_nothing_with_it(torn: Torn) -> None:
    wal = torn.folder / WAL
    torn_bytes = bytearray(wal.read_bytes())
    torn_bytes[-SECTOR:] = b"\xa5" * SECTOR
    wal.write_bytes(torn_bytes)
    assert await records_of(torn.folder) == ids(COMMITS - 1)


async def records_of(folder: Path) -> list[str]:
    """Open the store as the next start does, and look at what it says and at what it left on the disk."""
    store = open_store(folder, clock=SystemClock())
    await store.wait_ready()
    rows = await store.rows()
    assert store.health.state is StoreState.OK
    await store.close()
    with closing(sqlite3.connect(folder / DB)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return [row.record_id for row in rows]
