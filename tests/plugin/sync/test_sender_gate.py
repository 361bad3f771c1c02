"""When the sender may send: back-off, rate limits, tokens that are refused, and what opens the gate again."""

import asyncio
from pathlib import Path

import pytest

from plugin.loopback import faults
from plugin.loopback.faults import Delay, RateLimit, Reset, RetryAfter, Status
from plugin.loopback.platform import LoopbackPlatform
from plugin.store.interface import GateState
from plugin.sync.outcome import LONGEST_WAIT_S
from tests.support.clock import FakeClock
from tests.support.sync import STEP, TOKEN, BrittlePlatform, configuration, has, keys_of, world


async def test_a_closed_gate_lets_one_probe_through_and_then_the_rest_in_order(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"batch_records": 1}) as one:
        one.platform.menu.add(Status(code=502))
        await one.push("a")
        await one.until_closed()
        await one.push("b")
        await one.push("c")
        assert len(one.platform.pushes) == 1
        held = asyncio.Event()
        one.platform.menu.add(Delay(until=held))
        await one.clock.advance(STEP)
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        one.pushing("d", agent="other")
        await one.quiet()
        assert one.requests == 2
        held.set()
        await one.until_drained()
        assert [name for name in one.delivered() if name != "d"] == ["a", "b", "c"]


async def test_the_back_off_grows_step_by_step_and_ends_with_the_first_success(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.platform.down()
        await one.push("a")
        for failures, step in enumerate((1, 5, 15, 60, 300, 300), start=1):
            gate = await one.until_closed(failures)
            wait_s = (gate.until_ms or 0) / 1000 - one.clock.now()
            assert step * 0.79 < wait_s < step * 1.21
            await one.clock.advance(wait_s - 0.1)
            assert (await one.store.gate(one.platform.url)).failures == failures
            assert one.service.sender.in_flight == 0
            if failures == 6:
                await one.platform.up()
            await one.clock.advance(0.2)
        await one.until_drained()
        assert one.open
        assert (await one.store.gate(one.platform.url)).failures == 0


async def test_gate_and_key_survive_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock) as platform:
        platform.menu.add(Reset(), times=2, applied=True)
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.push("a")
            await one.until_closed()
            await clock.advance(STEP)
            await one.until_closed(2)
        async with world(tmp_path, platform=platform, clock=clock) as one:
            assert (await one.push()).offline
            assert len(platform.pushes) == 2
            await clock.advance(5 * STEP)
            await one.until_drained()
        assert len(set(keys_of(platform.pushes))) == 1
        assert platform.records[0].id == "a"
        assert len(platform.records) == 1


async def test_a_stored_wait_that_a_clock_set_back_put_far_away_is_pulled_in(tmp_path: Path) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock) as platform:
        platform.menu.add(Status(code=500))
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.push("a")
            await one.until_closed()
        clock.jump(-86_400)
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.push()
            await clock.advance(LONGEST_WAIT_S)
            await one.until_drained()


async def test_a_clock_that_jumps_does_not_touch_the_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=500), times=2)
        await one.push("a")
        await one.until_closed()
        one.clock.jump(-86_400)
        await one.clock.advance(STEP)
        await one.until_closed(2)
        one.clock.jump(2 * 86_400)
        await one.clock.advance(1)
        await one.quiet()
        assert one.requests == 2
        await one.clock.advance(5 * STEP)
        await one.until_drained()


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_honoured_to_the_second(tmp_path: Path, code: int, *, as_date: bool) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RetryAfter(seconds=40, as_date=as_date, code=code))
        assert (await one.push("a")).offline
        await one.until_closed()
        await one.clock.advance(38)
        await one.quiet()
        assert one.requests == 1
        await one.clock.advance(2)
        await one.until_drained()
        assert len(one.platform.pushes) == 2


async def test_the_gate_closes_before_the_limit_is_broken(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RateLimit(reset_s=30))
        result = await one.push("a")
        assert (result.count, result.queued) == (1, 0)
        assert (await one.push("b")).offline
        await one.clock.advance(28)
        await one.quiet()
        assert one.requests == 1
        await one.clock.advance(3)
        await one.until_drained()
        assert one.delivered() == ["a", "b"]


async def test_a_refused_token_parks_everything_until_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    file.write_text("old-token\n", encoding="utf-8")
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(file)}) as one:
        result = await one.push("a", "b")
        assert (result.success, result.count, result.queued, result.dead, result.offline) == (True, 0, 2, 0, True)
        gate = await one.until_closed()
        assert (gate.state, gate.reason) == (GateState.PARKED, "unauthorised")
        hour_over, probes = one.clock.monotonic() + 3_600, 1
        while one.clock.monotonic() < hour_over:
            await one.until_closed(probes)
            await one.advance_until(lambda sent=probes: has(len(one.platform.pushes) > sent), step_s=10)
            probes += 1
        await one.until_closed(probes)
        assert len(one.platform.pushes) == probes
        assert probes <= 16
        file.write_text(f"{TOKEN}\n", encoding="utf-8")
        # In steps: the sender may still be writing down the last refusal when the first one is over.
        await one.advance_until(one.drained, step_s=10)
        assert len(one.platform.pushes) == probes + 1
        assert one.delivered() == ["a", "b"]
        assert len(set(keys_of(one.platform.pushes))) == 1


async def test_a_new_token_is_seen_at_the_next_call(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    file.write_text("old-token", encoding="utf-8")
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(file)}) as one:
        await one.push("a")
        await one.until_closed()
        file.write_text(TOKEN, encoding="utf-8")
        result = await one.push(queue_only=True)
        assert (result.count, result.offline) == (1, False)


async def test_a_parked_gate_is_probed_at_once_after_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    async with BrittlePlatform(clock=clock) as platform:
        platform.menu.add(faults.forbidden())
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.push("a")
            assert (await one.until_closed()).reason == "forbidden"
        async with world(tmp_path, platform=platform, clock=clock) as one:
            await one.until_drained()


async def test_a_redirect_is_not_followed_and_parks_the_gate(tmp_path: Path) -> None:
    async with LoopbackPlatform() as other, world(tmp_path) as one:
        one.platform.menu.add(faults.redirect(f"{other.url}/v1/agent/sync", 307))
        result = await one.push("a")
        assert (result.count, result.offline) == (0, True)
        gate = await one.until_closed()
        assert gate.state is GateState.PARKED
        await one.clock.advance(61)
        await one.until_drained()
        assert other.arrivals == []


async def test_a_parked_gate_is_probed_at_once_after_configure(tmp_path: Path) -> None:
    async with world(tmp_path, platform_settings={"api_key": "old-token"}) as one:
        await one.push("a")
        await one.until_closed()
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        await one.until_drained()
        assert len(one.platform.pushes) == 2


@pytest.mark.parametrize("fault", [Status(code=404), Status(code=500)])
async def test_a_closed_gate_is_probed_at_once_after_configure(tmp_path: Path, fault: Status) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(fault)
        await one.push("a")
        await one.until_closed()
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        await one.until_drained()


async def test_a_rate_limit_outlasts_a_new_configuration(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RetryAfter(seconds=30))
        await one.push("a")
        await one.until_closed()
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        await one.quiet()
        assert one.requests == 1
        await one.clock.advance(31)
        await one.until_drained()
