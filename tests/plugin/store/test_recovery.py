"""Damaged files: never overwritten, salvaged row by row, told in health; the plugin goes on."""

import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreUnavailable
from plugin.store import file, recovery
from plugin.store.interface import ContextRow, Gate, HistoryEntry, RowState, StoreState
from plugin.store.sqlite import open_store
from tests.support.clock import FakeClock
from tests.support.crash import child, die_while_salvaging
from tests.support.damage import (
    PAGE,
    another_program,
    cut,
    first_page,
    header,
    index_gone,
    leaf_of_bodies,
    leaf_of_tables,
    leaf_with,
    name_of_a_table,
    page_with,
    second_half,
    text_of_a_table,
    two_leaves_of_rows,
)
from tests.support.stores import (
    AGENT,
    NOW_MS,
    PLATFORM,
    acknowledge,
    claim,
    new_folder_in_memory,
    opened,
    put,
    record,
    scan,
    take,
    waiting,
)

DB = "agentic-sync.db"
RECORDS = 300
NAMES = [f"r{number}" for number in range(RECORDS)]


@pytest.fixture
def in_memory() -> Generator[Path]:
    folder = new_folder_in_memory()
    yield folder
    shutil.rmtree(folder)


async def make(folder: Path) -> bytes:
    """Make a store with records waiting, one delivered, and something in each table; return the file."""
    async with opened(folder) as store:
        await put(store, "delivered")
        await acknowledge(store, await take(store))
        await put(store, *NAMES, size=700)
        await take(store, max_records=20)
        await store.set_gate(PLATFORM, Gate(failures=2, passes=7))
        entry = HistoryEntry(
            agent_id=AGENT, fleet_node_id=None, direction="pull", payload_bytes=1, items=1, at_ms=NOW_MS
        )
        await store.replace_context(PLATFORM, AGENT, [ContextRow(id="c", body=b"{}", expires_ms=None)], entry=entry)
    return (folder / DB).read_bytes()


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (first_page, RECORDS),
        (header, RECORDS),
        (another_program, RECORDS),
        (name_of_a_table, RECORDS),
        (text_of_a_table, RECORDS),
        (leaf_of_tables, RECORDS),
        (index_gone, RECORDS),
        (leaf_of_bodies, RECORDS - 8),
        (two_leaves_of_rows, RECORDS - 80),
        (second_half, 20),
        (cut, 20),
    ],
)
async def test_what_can_be_read_of_a_damaged_file_is_salvaged(
    tmp_path: Path, damage: Callable[[bytes], bytes], least: int
) -> None:
    damaged = damage(await make(tmp_path))
    (tmp_path / DB).write_bytes(damaged)
    async with opened(tmp_path, clock=FakeClock(now=1_700_000_000)) as store:
        health = store.health
        assert health.state is StoreState.RECOVERED
        assert health.set_aside == str(tmp_path / "agentic-sync.corrupt-20231114T221320Z")
        assert health.salvaged is not None
        assert health.lost is not None
        assert least <= health.salvaged <= RECORDS
        rows = await store.rows()
        assert len(rows) == health.salvaged
        assert {row.record_id for row in rows} <= set(NAMES)
        altered = [row for row in rows if row.body != record(row.record_id, size=700).body]
        assert len(altered) <= (damage is cut)  # one that lay across the cut; its checksum shows it when it would go
        assert (await store.counts()).queued == len(rows)
        await put(store, "fresh")
        assert (await take(store)).rows == tuple(row.row for row in rows)[: len((await take(store)).rows)]
    assert (Path(health.set_aside or "") / DB).read_bytes() == damaged
    async with opened(tmp_path) as store:
        assert store.health.state is StoreState.OK
        assert "fresh" in await waiting(store)


async def test_all_tables_are_salvaged(tmp_path: Path) -> None:
    (tmp_path / DB).write_bytes(first_page(await make(tmp_path)))
    async with opened(tmp_path) as store:
        assert (store.health.salvaged, store.health.lost) == (RECORDS, 0)
        assert (await scan(store, record("delivered"))).known == 1
        assert (await store.gate(PLATFORM)).passes == 7
        assert (await store.context(PLATFORM, AGENT, now_ms=NOW_MS)).rows == (b"{}",)
        assert (await store.times(AGENT)).last_pull_ms == NOW_MS
        assert [len(await store.history(direction)) for direction in ("push", "pull")] == [1, 1]
        batch = await take(store)
        assert batch.record_ids == tuple(NAMES[:20])
        assert (await put(store, "fresh")).last_row == RECORDS + 2


@pytest.mark.parametrize("gone", ["INDEX outbox_due", "TABLE totals", "TABLE gate"])
async def test_a_file_that_lacks_a_part_is_damaged_however_sound_the_rest(tmp_path: Path, gone: str) -> None:
    await make(tmp_path)
    with closing(sqlite3.connect(tmp_path / DB, isolation_level=None)) as db:
        db.execute(f"DROP {gone}")
    async with opened(tmp_path) as store:
        assert (store.health.state, store.health.salvaged, store.health.lost) == (StoreState.RECOVERED, RECORDS, 0)
        await put(store, "fresh")
        assert (await store.counts()).queued == RECORDS + 1


async def test_a_row_number_that_was_lost_is_not_used_again(tmp_path: Path) -> None:
    newest = record(NAMES[-1], size=700).fingerprint
    (tmp_path / DB).write_bytes(leaf_with(await make(tmp_path), newest))
    async with opened(tmp_path) as store:
        assert store.health.lost
        assert (await put(store, "fresh")).last_row == RECORDS + 2


async def test_rows_whose_batch_was_lost_go_out_in_another(tmp_path: Path) -> None:
    await make(tmp_path)
    async with opened(tmp_path) as store:
        before = await take(store)
    (tmp_path / DB).write_bytes(leaf_with((tmp_path / DB).read_bytes(), before.key))
    async with opened(tmp_path) as store:
        assert store.health.state is StoreState.RECOVERED
        after = await take(store)
        assert after.record_ids[: len(before.record_ids)] == before.record_ids
        assert len(after.record_ids) > len(before.record_ids)


async def test_lost_records_are_counted(tmp_path: Path) -> None:
    (tmp_path / DB).write_bytes(leaf_of_bodies(await make(tmp_path)))
    async with opened(tmp_path) as store:
        health = store.health
        assert health.lost
        assert (health.salvaged or 0) + health.lost == RECORDS


@pytest.mark.parametrize("content", [b"", b"garbage" * 5000, b"SQLite format 3\x00", b"x"])
async def test_a_file_that_holds_nothing_is_set_aside(tmp_path: Path, content: bytes) -> None:
    await make(tmp_path)
    (tmp_path / DB).write_bytes(content)
    async with opened(tmp_path) as store:
        assert store.health.state is StoreState.RECOVERED
        assert store.health.salvaged == 0
        assert await waiting(store) == []
        await put(store, "fresh")
        assert (Path(store.health.set_aside or "") / DB).read_bytes() == content


async def test_a_database_without_tables_is_not_the_one_that_was_made(tmp_path: Path) -> None:
    await make(tmp_path)
    (tmp_path / DB).unlink()
    with closing(sqlite3.connect(tmp_path / DB)) as db:
        db.execute("VACUUM")
    async with opened(tmp_path) as store:
        assert (store.health.state, store.health.salvaged) == (StoreState.RECOVERED, 0)
        await put(store, "fresh")


async def test_the_database_of_another_program_is_set_aside_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DB)) as db:
        db.execute("CREATE TABLE history (id, title)")
        db.execute("INSERT INTO history VALUES (1, 'theirs')")
        db.commit()
    theirs = (tmp_path / DB).read_bytes()
    async with opened(tmp_path) as store:
        assert (store.health.state, store.health.salvaged) == (StoreState.RECOVERED, 0)
        assert await store.history("push") == ()
        await put(store, "fresh")
    assert (Path(store.health.set_aside or "") / DB).read_bytes() == theirs


async def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    await make(tmp_path)
    (tmp_path / DB).unlink()
    async with opened(tmp_path) as store:
        assert (store.health.state, store.health.set_aside) == (StoreState.RECOVERED, None)
        await put(store, "fresh")


async def test_an_empty_file_in_a_new_folder_is_a_first_start_cut_short(tmp_path: Path) -> None:
    (tmp_path / DB).touch()
    async with opened(tmp_path) as store:
        assert store.health.state is StoreState.OK


@pytest.mark.parametrize("emptied", [True, False])
async def test_a_log_whose_file_is_gone_is_salvaged(tmp_path: Path, *, emptied: bool) -> None:
    async with opened(tmp_path / "old") as store:
        await put(store, *NAMES, size=700)
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / f"{DB}-wal").write_bytes((tmp_path / "old" / f"{DB}-wal").read_bytes())
    if emptied:
        (tmp_path / "new" / DB).touch()
    async with opened(tmp_path / "new") as store:
        assert (store.health.state, store.health.salvaged, store.health.lost) == (StoreState.RECOVERED, RECORDS, 0)
        assert (await waiting(store))[:2] == NAMES[:2]


async def killed(folder: Path, *, closed_before: bool) -> None:
    """Leave a store as a kill does: with its newest records, or all of them, only in the log."""
    living = folder / "living"
    if closed_before:
        await make(living)
    async with opened(living) as store:
        await put(store, *(f"late{number}" for number in range(RECORDS)))
        for name in (DB, f"{DB}-wal", "state.lock"):
            shutil.copy(living / name, folder / name)
    shutil.rmtree(living)


async def a_damaged_leaf_beside_a_log(folder: Path) -> int:
    await killed(folder, closed_before=True)
    (folder / DB).write_bytes(leaf_of_bodies((folder / DB).read_bytes()))
    return 2 * RECORDS - 8


async def a_log_without_its_file(folder: Path) -> int:
    await killed(folder, closed_before=False)
    (folder / DB).unlink()
    return RECORDS


@pytest.mark.parametrize("damage", [a_damaged_leaf_beside_a_log, a_log_without_its_file])
async def test_a_salvage_may_be_cut_off_at_any_step(in_memory: Path, damage: Callable[[Path], Awaitable[int]]) -> None:
    folder = in_memory / "state"
    folder.mkdir()
    least = await damage(folder)
    async with child(die_while_salvaging, folder) as process:
        said = [line.split() for line in await process.rest()]
    # Whoever dies before the fresh file is in place leaves it to the next one to tell.
    states = [state for state, _, _ in said]
    told = states.index(StoreState.OK)
    assert set(states[:told]) == {StoreState.RECOVERED}
    assert set(states[told:]) == {StoreState.OK}
    assert told >= 10
    assert len(states) - told <= 6
    assert {int(found) >= least for _, found, _ in said} == {True}
    # The file, and one place with what was damaged: nothing else is left of any of them.
    assert {int(files) for _, _, files in said} == {2}


async def test_a_log_that_ends_anywhere_holds_the_calls_up_to_there(tmp_path: Path) -> None:
    living, cut = tmp_path / "living", tmp_path / "cut"
    async with opened(living) as store:
        sizes: list[int] = []
        for number in range(12):
            await put(store, f"r{number}", size=600)
            sizes.append((living / f"{DB}-wal").stat().st_size)
        whole = (living / f"{DB}-wal").read_bytes()
        copied = (living / DB).read_bytes()
    for end in range(sizes[0], len(whole), 512 * 31):
        cut.mkdir()
        (cut / DB).write_bytes(copied)
        (cut / f"{DB}-wal").write_bytes(whole[:end])
        db = file.open_writer(cut, remote=False)
        found = [name for (name,) in db.execute("SELECT record FROM outbox ORDER BY row")]
        db.close()
        shutil.rmtree(cut)
        assert found == [f"r{number}" for number, size in enumerate(sizes) if size <= end]


async def test_two_salvages_of_one_second_have_two_places(tmp_path: Path) -> None:
    places: set[str | None] = set()
    for _ in range(3):
        await make(tmp_path)
        (tmp_path / DB).write_bytes(b"garbage")
        async with opened(tmp_path, clock=FakeClock()) as store:
            places.add(store.health.set_aside)
        (tmp_path / DB).unlink()
    assert len(places) == 3


async def test_damage_found_at_work_is_mended_and_the_work_done(tmp_path: Path) -> None:
    sound = await make(tmp_path)
    # Closing any descriptor of the file would undo the locks of a connection in the same process.
    fd = os.open(tmp_path / DB, os.O_RDWR)
    store = open_store(tmp_path, clock=SystemClock())
    try:
        await store.wait_ready()
        at = page_with(sound, b'{"id":"r250"')
        os.pwrite(fd, b"garbage!" * (PAGE // 8), at)
        while store.health.state is StoreState.OK:
            await acknowledge(store, await take(store))
        assert store.health.state is StoreState.RECOVERED
        lost = store.health.lost or 0
        assert 0 < lost <= 8
        while (batch := await claim(store)) is not None:
            await acknowledge(store, batch)
        assert await store.ledger_size() == 1 + RECORDS - lost
        await put(store, "fresh")
    finally:
        await store.close()
        os.close(fd)


async def test_a_text_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a", "b")
    with closing(sqlite3.connect(tmp_path / DB, isolation_level=None)) as db:
        db.execute("UPDATE outbox SET record = CAST(x'ff' AS TEXT) WHERE record = 'a'")
    async with opened(tmp_path) as store:
        assert (await take(store)).record_ids == ("b",)
        assert (store.health.state, store.health.salvaged, store.health.lost) == (StoreState.RECOVERED, 1, 1)


async def test_a_body_with_a_flipped_byte_is_a_dead_letter_and_its_neighbours_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a", "b", "c", size=100)
    data = bytearray((tmp_path / DB).read_bytes())
    data[data.index(b'{"id":"b"') + 50] ^= 1
    (tmp_path / DB).write_bytes(data)
    async with opened(tmp_path) as store:
        assert (await take(store)).record_ids == ("a", "c")
        (dead,) = await store.rows(state=RowState.DEAD)
        assert (dead.record_id, dead.status) == ("b", None)
        assert dead.reason is not None
        assert store.health.state is StoreState.OK


@pytest.mark.parametrize(
    "damage",
    ["UPDATE outbox SET body = x'00' WHERE row IN ({})", "UPDATE outbox SET sha256 = x'' WHERE row IN ({})"],
)
async def test_a_batch_leaves_damaged_members_behind_and_gets_a_new_key(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as store:
        await put(store, "a", "b", "c")
        before = await take(store)
        await store.engine.run(lambda db: db.execute(damage.format("1")).rowcount)
        after = await take(store)
        assert (after.id, after.record_ids) == (before.id, ("b", "c"))
        assert after.key != before.key
        await store.engine.run(lambda db: db.execute(damage.format("2, 3")).rowcount)
        assert await claim(store) is None
        assert [row.state for row in await store.rows()] == [RowState.DEAD] * 3
        await put(store, "d")
        await store.engine.run(lambda db: db.execute(damage.format("4")).rowcount)
        assert await claim(store) is None
        assert (await store.counts()).dead == 4


async def test_a_damaged_row_of_the_cache_is_left_out(tmp_path: Path) -> None:
    await make(tmp_path)
    async with opened(tmp_path) as store:
        await store.engine.run(lambda db: db.execute("UPDATE context SET body = x'00'").rowcount)
        assert (await store.context(PLATFORM, AGENT, now_ms=NOW_MS)).rows == ()


async def test_a_damaged_file_that_cannot_be_set_aside_is_told_and_left(tmp_path: Path) -> None:
    await make(tmp_path)
    (tmp_path / DB).write_bytes(b"garbage")
    (tmp_path / recovery.SALVAGE).mkdir()
    store = open_store(tmp_path, clock=SystemClock())
    with pytest.raises(StoreUnavailable):
        await store.counts()
    assert store.health.state is not StoreState.OK
    assert (tmp_path / DB).read_bytes() == b"garbage"
    (tmp_path / recovery.SALVAGE).rmdir()
    await store.wait_ready()
    assert store.health.state is StoreState.RECOVERED
    await store.close()
