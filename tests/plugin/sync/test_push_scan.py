"""A push without dispatches looks for finished work."""

import asyncio
import threading
from pathlib import Path

import pytest

from plugin.sync.intake import Intake
from plugin.sync.scan import Scanner, ScanResult
from tests.support.clock import settle
from tests.support.sync import finish, world


@pytest.mark.parametrize("given", [None, []])
async def test_without_dispatches_finished_workspaces_are_found_and_sent_once(tmp_path: Path, given: object) -> None:
    finish(tmp_path, "core/go-io/task-1", "core/go-io/task-2")
    finish(tmp_path, "core/go-io/task-3", status="running")
    async with world(tmp_path) as one:
        assert (await one.call(dispatches=given)).count == 2
        assert (await one.call(dispatches=given)).count == 0
        assert one.delivered() == ["core/go-io/task-1", "core/go-io/task-2"]
        finish(tmp_path, "core/go-io/task-2", runs=2)
        assert (await one.call(dispatches=given)).count == 1


async def test_queue_only_looks_for_nothing(tmp_path: Path) -> None:
    finish(tmp_path, "core/go-io/task-1")
    async with world(tmp_path) as one:
        assert (await one.push(queue_only=True)).count == 0
        assert one.platform.arrivals == []


async def test_without_a_token_given_work_is_queued_and_found_work_stays_on_disk(tmp_path: Path) -> None:
    finish(tmp_path, "core/go-io/task-1")
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(tmp_path / "none")}) as one:
        found = await one.push()
        assert (found.success, found.count, found.queued, found.offline) == (True, 0, 0, True)
        given = await one.push("a")
        assert (given.success, given.count, given.queued, given.offline) == (True, 0, 1, True)
        assert given.error
        await one.quiet()
        assert one.requests == 0


async def test_with_sync_disabled_found_work_stays_on_disk(tmp_path: Path) -> None:
    finish(tmp_path, "core/go-io/task-1")
    async with world(tmp_path, sync={"enabled": False}) as one:
        assert (await one.push()).queued == 0


async def test_found_work_belongs_to_the_fleet_node_that_is_named(tmp_path: Path) -> None:
    finish(tmp_path, "core/go-io/task-1")
    async with world(tmp_path) as one:
        await one.call(fleet_node_id=7)
        assert [entry.fleet_node_id for entry in await one.store.history("push")] == [7]


async def test_what_is_too_much_to_be_queued_waits_on_disk(tmp_path: Path) -> None:
    finish(tmp_path, *(f"w{number}" for number in range(5)))
    async with world(tmp_path, queue={"max_records": 3}) as one:
        await one.platform.down()
        result = await one.push()
        assert (result.queued, result.offline) == (3, True)
        assert result.error
        await one.platform.up()
        await one.clock.advance(2)
        await one.until_drained()
        assert (await one.push()).count == 2
        assert one.delivered() == [f"w{number}" for number in range(5)]


async def test_hundreds_of_workspaces_pass_in_pieces(tmp_path: Path) -> None:
    names = [f"w{number:03}" for number in range(450)]
    finish(tmp_path, *names)
    async with world(tmp_path) as one:
        assert (await one.push()).count == 450
        assert one.delivered() == names


class SlowScanner(Scanner):
    """A scanner that counts its scans and holds them until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.scans = 0
        self.at_once = 0
        self.most_at_once = 0
        self.go = threading.Event()

    def scan(self) -> ScanResult:
        self.scans += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.go.wait(20)
        result = super().scan()
        self.at_once -= 1
        return result


async def test_a_scan_serves_everybody_who_asked_before_it_began(tmp_path: Path) -> None:
    finish(tmp_path, "w1")
    async with world(tmp_path) as one:
        scanner = SlowScanner(tmp_path)
        intake = Intake(store=one.store, scanner=scanner, clock=one.clock)

        async def scan() -> int:
            return await intake.scan("codex", platform=one.platform.url, queue=one.config.queue)

        first = one.tasks.create_task(scan())
        async with asyncio.timeout(20):
            while scanner.scans == 0:
                await settle()
        later = [one.tasks.create_task(scan()) for _ in range(5)]
        await settle()
        scanner.go.set()
        assert [await first, *[await each for each in later]] == [0] * 6
        assert scanner.scans == 2
        assert scanner.most_at_once == 1


async def test_a_cancelled_scan_does_not_let_two_run_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        scanner = SlowScanner(tmp_path)
        intake = Intake(store=one.store, scanner=scanner, clock=one.clock)

        async def scan() -> int:
            return await intake.scan("codex", platform=one.platform.url, queue=one.config.queue)

        first = one.tasks.create_task(scan())
        async with asyncio.timeout(20):
            while scanner.scans == 0:
                await settle()
        first.cancel()
        second = one.tasks.create_task(scan())
        await settle()
        assert scanner.scans == 1
        scanner.go.set()
        assert await second == 0
        assert scanner.most_at_once == 1


async def test_what_is_skipped_by_a_scan_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(25):
        finish(tmp_path, f"w{number}")
        (tmp_path / "workspace" / f"w{number}" / "status.json").write_text("{", encoding="utf-8")
    async with world(tmp_path) as one:
        await one.push()
        logged = [record for record in caplog.records if record.name == "plugin.sync.intake"]
        assert len(logged) == 21
        await one.push()
        assert len([record for record in caplog.records if record.name == "plugin.sync.intake"]) == 21
