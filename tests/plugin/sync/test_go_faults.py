"""What the Go agent's sync gets wrong, one test for each fault: none of it may happen here."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from plugin.loopback import faults
from plugin.loopback.faults import Delay, Hang, RetryAfter, Status
from plugin.store.interface import RowState
from plugin.sync.pull import PullParams
from tests.support.clock import FakeClock, settle
from tests.support.sync import TOKEN, BrittlePlatform, World, dispatches, finish, keys_of, world


async def second_and_third_are_queued(one: World) -> None:
    async with asyncio.timeout(20):
        while (await one.store.counts()).queued < 3:
            await settle()


async def test_one_bad_entry_blocks_nothing_behind_it(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.poison = {"bad"}
        assert (await one.push("bad")).dead == 1
        result = await one.push("bad-too", "good", "bad", "fine")
        assert (result.count, result.queued) == (3, 0)
        assert sorted(one.delivered()) == ["bad-too", "fine", "good"]


async def test_the_same_scan_is_not_queued_again_and_again_while_offline(tmp_path: Path) -> None:
    finish(tmp_path, "core/go-io/task-1", "core/go-io/task-2")
    async with world(tmp_path) as one:
        await one.platform.down()
        for _ in range(5):
            assert (await one.push()).queued == 2
        await one.platform.up()
        await one.clock.advance(400)
        await one.until_drained()
        assert one.delivered() == ["core/go-io/task-1", "core/go-io/task-2"]


@pytest.mark.parametrize("updated_at", ["2026-04-14T12:00:00.123456789+02:00", "2026-04-14T12:00:00Z"])
async def test_what_was_queued_matches_the_next_scan_and_is_sent_once(tmp_path: Path, updated_at: str) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock, deduplicate=False) as platform:
        finish(tmp_path, "w1", runs=3, updated_at=updated_at)
        platform.menu.add(Status(code=503))
        async with world(tmp_path, platform=platform, clock=clock) as one:
            assert (await one.push()).queued == 1
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await clock.advance(400)
            await one.until_drained()
            assert (await one.push()).count == 0
        async with world(tmp_path, platform=platform, clock=clock) as one:
            assert (await one.push()).count == 0
        assert [record.id for record in platform.records] == ["w1"]


async def test_what_is_queued_during_a_request_is_not_wiped_by_its_end(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with world(tmp_path) as one:
        one.platform.menu.add(Delay(until=release))
        first = one.pushing("a")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        second, third = one.pushing("b"), one.pushing("c")
        await second_and_third_are_queued(one)
        release.set()
        for push in (first, second, third):
            await push
        await one.until_drained()
        assert sorted(one.delivered()) == ["a", "b", "c"]


async def test_given_work_is_on_disk_before_anything_is_sent(tmp_path: Path) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock) as platform:
        platform.menu.add(Hang())
        async with world(tmp_path, platform=platform, clock=clock) as one:
            push = one.pushing("a")
            await platform.wait_until(lambda server: server.in_flight == 1)
            assert [row.record_id for row in await one.rows()] == ["a"]
            push.cancel()
        assert platform.records == []
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.until_drained()
        assert [record.id for record in platform.records] == ["a"]
        assert len(set(keys_of(platform.pushes))) == 1


@pytest.mark.parametrize(
    "fault",
    [
        faults.login_page(),
        faults.garbage(),
        faults.other_json(),
        Status(code=204),
        faults.redirect("http://127.0.0.1:9/login", 301),
        faults.redirect("http://127.0.0.1:9/login", 302),
    ],
)
async def test_a_login_page_or_a_redirect_is_no_success(tmp_path: Path, fault: Status) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(fault)
        result = await one.push("a")
        assert (result.count, result.queued) == (0, 1)
        assert await one.store.ledger_size() == 0
        await one.clock.advance(70)
        await one.until_drained()
        assert one.delivered() == ["a"]


async def test_a_since_pull_does_not_wipe_the_cache(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.context_rows = [{"id": "old", "created_at": "2026-01-01T00:00:00Z"}]
        await one.service.pull(PullParams())
        await one.service.pull(PullParams(since="2026-03-01T00:00:00Z"))
        await one.platform.down()
        assert [row["id"] for row in (await one.service.pull(PullParams())).context] == ["old"]


async def test_a_corrupt_queue_is_neither_read_as_empty_in_silence_nor_overwritten(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with world(tmp_path) as one:
        await one.platform.down()
        await one.push("a")
    damaged = b"this is no database" * 1_000
    (state / "agentic-sync.db").write_bytes(damaged)
    for journal in state.glob("agentic-sync.db-*"):
        journal.unlink()
    core = b'[{"agent_id": "codex", "dispatches": [{"id"'
    (state / "queue.json").write_bytes(core)
    async with world(tmp_path) as one:
        assert (await one.push("b")).count == 1
        assert one.store.health.state == "recovered"
        assert one.store.health.set_aside is not None
    assert (state / "queue.json").read_bytes() == core
    assert any(file.read_bytes() == damaged for file in state.rglob("*.db*") if file.is_file())


async def test_sending_starts_when_the_token_comes_later(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(file)}) as one:
        assert (await one.push("a")).offline
        await one.clock.advance(120)
        await one.quiet()
        assert one.requests == 0
        file.write_text(TOKEN, encoding="utf-8")
        await one.clock.advance(30)
        await one.until_drained()
        assert one.delivered() == ["a"]


async def test_a_retry_comes_when_it_is_due_and_not_at_the_next_minute(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=503), times=3)
        await one.push("a")
        for count, (least, most) in enumerate(((0.8, 1.2), (4, 6), (12, 18)), start=1):
            await one.until_closed()
            await one.until(lambda count=count: len(one.platform.pushes) == count)
            await one.clock.advance(least - 0.1)
            await one.quiet()
            assert one.requests == count
            await one.clock.advance(most - least + 0.2)
            await one.platform.wait_until(lambda server, count=count: len(server.arrivals) == count + 1)
        await one.until_drained()


async def test_the_first_scan_is_not_one_giant_request(tmp_path: Path) -> None:
    names = [f"w{number:03}" for number in range(130)]
    finish(tmp_path, *names, question="q" * 12_000)
    async with world(tmp_path) as one:
        assert (await one.push()).count == 130
        assert one.delivered() == names
        assert all(len(push.ids) <= 50 for push in one.platform.pushes)
        assert all(push.body_bytes <= 1024 * 1024 + 1_000 for push in one.platform.pushes)


async def test_at_most_a_megabyte_goes_out_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        large = [each | {"task": "t" * 300_000} for each in dispatches("a", "b", "c", "d", "e")]
        assert (await one.call(dispatches=large)).count == 5
        assert [push.ids for push in one.platform.pushes] == [("a", "b", "c"), ("d", "e")]


async def test_query_values_are_encoded(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        given = {"agent_id": "a b&since=x#+%", "since": "2026-04-14T12:00:00+01:00"}
        await one.service.pull(msgspec.convert(given, PullParams))
        assert one.platform.arrivals[0].query == given


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_not_ignored(tmp_path: Path, *, as_date: bool) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RetryAfter(seconds=100, as_date=as_date))
        await one.push("a")
        await one.clock.advance(95)
        await one.quiet()
        assert one.requests == 1
        await one.clock.advance(6)
        await one.until_drained()


async def test_success_says_what_did_not_happen(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=500))
        result = msgspec.to_builtins(await one.push("a", "b"))
        assert {name: result[name] for name in ("success", "count", "queued", "offline")} == {
            "success": True,
            "count": 0,
            "queued": 2,
            "offline": True,
        }
        assert "500" in result["error"]
        assert result["gate"]["state"] == "waiting"


async def test_nothing_of_the_go_agents_is_changed(tmp_path: Path) -> None:
    entry = {"agent_id": "codex", "dispatches": dispatches("a"), "queued_at": "2026-04-14T12:00:00Z"}
    files = {
        "queue.json": json.dumps([entry]),
        "ledger.json": json.dumps({"w1": "2026-04-14T12:00:00Z#1"}),
        "context.json": json.dumps([{"id": 1}]),
    }
    (tmp_path / "state").mkdir()
    for name, text in files.items():
        (tmp_path / "state" / name).write_text(text, encoding="utf-8")
    finish(tmp_path, "w1", "w2")
    async with world(tmp_path) as one:
        await one.push()
        await one.until_drained()
        assert sorted(one.delivered()) == ["a", "w2"]
        await one.push()
        assert sorted(one.delivered()) == ["a", "w2"]
        assert await one.rows(RowState.DEAD) == ()
    assert {name: (tmp_path / "state" / name).read_text(encoding="utf-8") for name in files} == files
