"""The Go agent's state comes in once, before anything is scanned, and its queue file can be kept in step."""

import asyncio
import json
import logging
import shutil
from pathlib import Path
from random import Random

import pytest

from plugin.store.interface import Store
from plugin.sync.mirror import export_queue
from plugin.sync.service import SyncService
from tests.support.clock import settle
from tests.support.sync import World, configuration, dispatches, finish, has, world
from tests.support.trouble import TroubledStore

CORE = {
    "ledger.json": {"w1": "2026-04-14T12:00:00Z#1"},
    "queue.json": [{"agent_id": "gopher", "dispatches": dispatches("q1"), "queued_at": "2026-04-14T12:00:00Z"}],
}


def leave(path: Path) -> None:
    """Leave files as the Go agent does."""
    (path / "sync").mkdir(exist_ok=True)
    for name, content in CORE.items():
        (path / "sync" / name).write_text(json.dumps(content), encoding="utf-8")


def queue_file(one: World) -> Path:
    return Path(one.config.root) / "sync" / "queue.json"


async def written(one: World, ids: list[str] | None) -> None:
    """Let time pass until the queue file holds these records, or is gone."""
    await one.advance_until(lambda: has(read(queue_file(one)) == ids))


def read(path: Path) -> list[str] | None:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    return [record["id"] for entry in json.loads(text) for record in entry["dispatches"]]


async def test_what_the_go_agent_delivered_is_not_queued_again_by_the_first_scan(tmp_path: Path) -> None:
    leave(tmp_path)
    finish(tmp_path, "w1", "w2")
    async with world(tmp_path, run=False) as one:
        push = one.pushing()
        await one.advance_until(lambda: has(push.done()), step_s=5)
        assert [row.record_id for row in await one.rows()] == ["q1", "w2"]


async def test_the_state_comes_in_once(tmp_path: Path) -> None:
    leave(tmp_path)
    async with world(tmp_path) as one:
        await one.until(lambda: "q1" in one.delivered())
    async with world(tmp_path) as one:
        await one.push()
        assert one.delivered() == []


async def test_it_stays_out_when_that_is_configured(tmp_path: Path) -> None:
    leave(tmp_path)
    finish(tmp_path, "w1")
    async with world(tmp_path, sync={"import_core_state": False}) as one:
        await one.push()
        assert one.delivered() == ["w1"]


async def test_what_cannot_be_taken_over_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sync").mkdir()
    (tmp_path / "sync" / "ledger.json").write_text("{", encoding="utf-8")
    async with world(tmp_path) as one:
        await one.push()
    logged = [record for record in caplog.records if record.name == "plugin.sync.takeover"]
    assert [record.levelno for record in logged] == [logging.WARNING, logging.INFO][: len(logged)]
    assert logged


async def test_a_disk_that_is_full_only_delays_it(tmp_path: Path) -> None:
    leave(tmp_path)
    stores: list[TroubledStore] = []

    def full(store: Store) -> Store:
        stores.append(TroubledStore(store))
        stores[0].full = {"import_core"}
        return stores[0].as_store()

    async with world(tmp_path, wrap=full) as one:
        async with asyncio.timeout(20):
            while not stores[0].refused:
                await settle()
        stores[0].full = set()
        await one.advance_until(lambda: has("q1" in one.delivered()))


# -- the mirror -------------------------------------------------------------------------------------------------------


async def test_the_queue_file_follows_the_queue(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
        await one.push("bad")
        await written(one, ["a", "bad"])
        exported = json.loads(export_queue(await one.rows()))
        assert json.loads(queue_file(one).read_bytes()) == [{"written_by": "agentic-sync"} | one for one in exported]
        one.platform.poison = {"bad"}
        await one.platform.up()
        await one.advance_until(one.drained)
        await written(one, None)
        assert [row.record_id for row in await one.rows()] == ["bad"]


async def test_the_queue_file_is_written_once_a_second_at_most(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
        for name in "bcdefg":
            await one.push(name)
        await one.quiet()
        assert read(queue_file(one)) == ["a"]
        await written(one, list("abcdefg"))


async def test_the_queue_file_is_right_when_the_plugin_ends(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a", "b")
        await one.service.stop(1)
        assert read(queue_file(one)) == ["a", "b"]


async def test_there_is_no_queue_file_unless_it_is_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.platform.down()
        await one.push("a")
        await one.clock.advance(5)
        await one.quiet()
        assert not queue_file(one).exists()
        mirrored = configuration(tmp_path, one.platform.url, sync={"mirror_json": True})
        await one.service.reconfigure(mirrored)
        await written(one, ["a"])


async def test_a_queue_file_that_nobody_keeps_in_step_any_more_is_removed(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        await written(one, None)
        assert [row.record_id for row in await one.rows()] == ["a"]
        await one.service.reconfigure(one.config)
        await written(one, ["a"])


async def test_a_queue_file_of_an_earlier_run_is_removed_at_a_start_without_the_setting(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
    async with world(tmp_path) as one:
        await one.platform.down()
        await written(one, None)
        assert [row.record_id for row in await one.rows()] == ["a"]


async def test_a_queue_file_that_the_go_agent_wrote_is_never_removed(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
        leave(tmp_path)
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        await one.clock.advance(5)
        await one.quiet()
        assert read(queue_file(one)) == ["q1"]
    async with world(tmp_path) as one:
        await one.push("b")
        await one.clock.advance(5)
        await one.service.stop(1)
        assert read(queue_file(one)) == ["q1"]


async def test_a_queue_file_of_another_store_is_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
    shutil.rmtree(tmp_path / "state")
    async with world(tmp_path, sync={"import_core_state": False}) as one:
        await one.push("b")
        await one.service.stop(1)
        assert read(queue_file(one)) == ["a"]


async def test_who_does_not_own_the_folder_leaves_the_queue_file_to_who_does(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        await one.push("a")
        await written(one, ["a"])
        config = configuration(tmp_path, one.platform.url)
        rng = Random(7)  # noqa: S311  spreads waits, guards nothing
        other = SyncService(store=one.store, config=config, environ={}, clock=one.clock, rng=rng)
        await other.stop(1)
        assert read(queue_file(one)) == ["a"]


async def test_a_go_queue_that_was_not_taken_over_is_never_overwritten(tmp_path: Path) -> None:
    leave(tmp_path)
    async with world(tmp_path, sync={"mirror_json": True, "import_core_state": False}) as one:
        await one.platform.down()
        await one.push("a")
        await one.service.stop(1)
        assert read(queue_file(one)) == ["q1"]


async def test_a_queue_file_that_cannot_be_written_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sync").write_text("in the way", encoding="utf-8")
    async with world(tmp_path, sync={"mirror_json": True}) as one:
        await one.platform.down()
        for name in "abc":
            await one.push(name)
            await one.clock.advance(2)
        await one.service.stop(1)
        warned = [record for record in caplog.records if record.name == "plugin.sync.follower"]
        assert [record.levelno for record in warned] == [logging.WARNING]
        assert (await one.push("d")).queued == 4
