"""The sender against a real platform, store and disk: what goes out, when, and what becomes of it."""

import asyncio
import logging
from pathlib import Path

import pytest

from plugin.loopback.faults import Delay, Hang, Reset, Status
from plugin.store.interface import Gate
from tests.support.clock import FakeClock, settle
from tests.support.sync import STEP, TOKEN, BrittlePlatform, configuration, keys_of, world


async def test_what_is_queued_is_delivered_and_leaves_the_outbox(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        result = await one.push("a", "b")
        assert (result.success, result.count, result.queued, result.offline) == (True, 2, 0, False)
        assert one.delivered() == ["a", "b"]
        assert await one.rows() == ()
        assert await one.store.ledger_size() == 2


async def test_at_most_two_requests_are_out_and_one_of_each_agent(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with world(tmp_path, sync={"batch_records": 1}) as one:
        one.platform.menu.add(Delay(until=release), times=None)
        pushes = [one.pushing(f"{agent}{number}", agent=agent) for number in range(3) for agent in "xyz"]
        await one.platform.wait_until(lambda server: server.in_flight == 2)
        await one.quiet()
        assert (await one.store.counts()).queued == 9
        assert one.requests == 2
        release.set()
        for push in pushes:
            await push
        await one.until_drained()
        assert one.platform.most_in_flight == 2
        assert set(one.platform.most_in_flight_of.values()) == {1}
        for agent in "xyz":
            assert [name for name in one.delivered() if name[0] == agent] == [f"{agent}{n}" for n in range(3)]


async def test_a_retry_sends_the_same_bytes_under_the_same_key(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=503), times=2)
        one.platform.menu.add(Reset(), applied=True)
        await one.push("a", "b")
        for failures, step in enumerate((1, 5, 15), start=1):
            await one.until_closed(failures)
            await one.push(f"later{failures}")
            await one.clock.advance(step * STEP)
        await one.until_drained()
        tries = one.platform.pushes[:4]
        assert len({(push.key, push.body_sha256) for push in tries}) == 1
        assert {push.ids for push in tries} == {("a", "b")}
        assert one.delivered() == ["a", "b", "later1", "later2", "later3"]
        assert one.service.sender.tallies.resends == 3


async def test_another_agents_batch_is_the_better_probe(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Reset(), times=None, agent="stuck")
        await one.push("a", agent="stuck")
        for number in range(3):
            await one.until_closed(1)
            assert (await one.push(f"b{number}", agent="fine")).offline
            await one.clock.advance(STEP)
            await one.until(lambda number=number: f"b{number}" in one.delivered())
        await one.until_closed(1)
        one.platform.menu.clear()
        await one.clock.advance(STEP)
        await one.until_drained()
        assert one.delivered() == ["b0", "b1", "b2", "a"]


async def test_a_stop_lets_the_answer_come_and_records_it(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with world(tmp_path) as one:
        one.platform.menu.add(Delay(until=release))
        push = one.pushing("a")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        stop = one.tasks.create_task(one.service.stop(5))
        await settle()
        assert not stop.done()
        release.set()
        await stop
        assert await one.rows() == ()
        assert (await push).count == 1


async def test_a_stop_that_cuts_off_a_request_is_no_failed_attempt(tmp_path: Path) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock) as platform:
        platform.menu.add(Hang(), applied=True)
        async with world(tmp_path, platform=platform, clock=clock) as one:
            push = one.pushing("a")
            await platform.wait_until(lambda server: server.in_flight == 1)
            stop = one.tasks.create_task(one.service.stop(2))
            await clock.advance(2.1)
            await stop
            result = await push
            assert (result.success, result.count, result.offline) == (True, 0, True)
            assert await one.store.gate(platform.url) == Gate()
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.until_drained()
        assert len(set(keys_of(platform.pushes))) == 1
        assert len(platform.records) == 1


async def test_a_service_that_was_stopped_sends_nothing_more(tmp_path: Path) -> None:
    async with world(tmp_path, run=False) as one:
        await one.service.stop(1)
        await one.service.run()
        result = await one.push("a")
        assert (result.count, result.queued, result.offline) == (0, 1, True)


async def test_a_new_configuration_holds_from_the_next_request_on(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with BrittlePlatform() as other, world(tmp_path, sync={"batch_records": 1}) as one:
        one.platform.menu.add(Delay(until=release))
        push = one.pushing("a", "b")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        await one.service.reconfigure(configuration(tmp_path, other.url))
        release.set()
        assert (await push).count == 2
        assert one.delivered() == ["a"]
        assert [record.id for record in other.records] == ["b"]
        assert len(await one.store.known(one.platform.url, [])) == 0


async def test_with_sync_disabled_nothing_is_sent_until_it_is_enabled(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"enabled": False}) as one:
        result = await one.push("a")
        assert (result.success, result.count, result.queued, result.offline) == (True, 0, 1, True)
        assert result.error
        await one.clock.advance(1_000)
        await one.quiet()
        assert one.requests == 0
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        await one.until_drained()


async def test_an_outage_is_logged_once_and_its_end_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plugin.sync")
    async with world(tmp_path) as one:
        await one.platform.down()
        await one.push("a")
        for count, step in enumerate((1, 5, 15), start=1):
            await one.until_closed(count)
            if step == 15:
                await one.platform.up()
            await one.clock.advance(step * STEP)
        await one.until_drained()
    levels = [record.levelno for record in caplog.records if record.name == "plugin.sync.journal"]
    assert levels == [logging.WARNING, logging.INFO]
    assert TOKEN not in caplog.text
    assert all(TOKEN not in str(vars(record)) for record in caplog.records)


async def test_records_that_the_platform_skipped_are_done_and_counted(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        answer = b'{"data": {"synced": 1}}'
        one.platform.menu.add(Status(code=201, body=answer))
        result = await one.push("a", "b")
        assert (result.count, result.queued) == (1, 0)
        assert one.service.sender.tallies.skipped_by_platform == 1
