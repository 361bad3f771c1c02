"""What happens to the process as a whole: it is suspended, or finds thousands of records due at once."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from plugin.loopback.faults import Delay
from tests.support.fleet import TOKEN, Fleet, field, fleet_on_loopback
from tests.support.oracle import Oracle, shown

SUSPENDED_S = 60.0
MANY = 5_000


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path, agents=("claude", "codex"), guilds=("build", "lobby")) as fleet:
        yield fleet


@pytest.mark.timeout(150)
async def test_a_process_that_was_suspended_for_a_minute_goes_on_where_it_was(fleet: Fleet) -> None:
    oracle = Oracle(fleet.platform)
    released = asyncio.Event()
    fleet.platform.menu.add(Delay(until=released), route="sync")
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key": TOKEN}) as host:
        push = asyncio.create_task(oracle.push(host, oracle.make(3), timeout_s=120))
        await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 1)
        await fleet.wait_shown("codex", "idle")
        host.process.send_signal(signal.SIGSTOP)
        await host.set_state("codex", "busy")
        # The time itself is the subject: the request's deadline passes, and several polls and reports are due.
        await asyncio.sleep(SUSPENDED_S)
        released.set()
        host.process.send_signal(signal.SIGCONT)
        await push
        verdict = await oracle.holds(host)
        await shown(fleet, host)
    assert host.process.returncode == 0
    assert verdict.kept
    assert not verdict.doubled


async def test_thousands_of_records_due_at_once_go_out_in_batches_while_calls_are_answered(fleet: Fleet) -> None:
    oracle = Oracle(fleet.platform)
    token_file = fleet.folder / "token"
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": str(token_file)}) as host:
        await oracle.push(host, oracle.make(MANY))
        token_file.write_text(TOKEN)
        push = asyncio.create_task(oracle.push(host, oracle.make(1), agent="other"))
        while not push.done():
            assert await host.call("ping", timeout_s=10) == {}
        verdict = await oracle.holds(host)
        status = await host.call("agentic.sync.status")
    assert verdict.kept
    assert not verdict.doubled
    assert field(status, "queued") == 0
    assert max(len(arrival.ids) for arrival in fleet.platform.pushes) == 50
    assert [record.id for record in fleet.platform.records if record.agent == "fleet"] == sorted(
        (id_ for id_ in oracle.owed if id_ != f"work-{MANY}"), key=lambda id_: int(id_.partition("-")[2])
    )
