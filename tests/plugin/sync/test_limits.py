"""A rate limit is the key's: whatever answer tells of it, nothing is asked of the platform until it is over."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from plugin.loopback import faults
from plugin.loopback.faults import Delay, RateLimit, RetryAfter, Status
from plugin.store.interface import GateState, Store
from plugin.sync.outcome import RATE_LIMITED
from plugin.sync.pull import PullParams
from plugin.sync.status import StatusParams
from tests.support.outcomes import answer
from tests.support.sync import BrittlePlatform, World, configuration, has, world
from tests.support.trouble import TroubledStore

TOLD = [
    RetryAfter(seconds=30),
    RetryAfter(seconds=30, code=503),
    RateLimit(reset_s=30),
]


async def pull(one: World) -> bool:
    """Pull, and say whether the cache answered."""
    return (await one.service.pull(PullParams())).stale


@pytest.mark.parametrize("told", TOLD)
async def test_a_limit_that_a_pull_is_told_of_holds_for_everything(tmp_path: Path, told: faults.Kind) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(told, route="context")
        assert await pull(one) is not isinstance(told, RateLimit)
        gate = one.service.sender.gate
        assert (gate.state, gate.reason) == (GateState.WAITING, RATE_LIMITED)
        pushed = await one.push("a")
        assert (pushed.offline, pushed.queued) == (True, 1)
        assert await pull(one)
        assert (await one.service.status(StatusParams())).remote_error
        assert len(one.platform.arrivals) == 1
        await one.clock.advance(31)
        await one.until_drained()
        assert not await pull(one)


@pytest.mark.parametrize("told", TOLD)
async def test_a_limit_that_a_status_is_told_of_holds_for_everything(tmp_path: Path, told: faults.Kind) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(told, route="status")
        told_of = await one.service.status(StatusParams())
        assert msgspec.to_builtins(told_of.gate)["reason"] == RATE_LIMITED
        assert (await one.push("a")).offline
        assert await pull(one)
        assert len(one.platform.arrivals) == 1
        await one.clock.advance(31)
        await one.until_drained()


async def test_a_limit_that_a_pull_is_told_of_survives_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RetryAfter(seconds=30), route="context")
        await pull(one)
        clock, platform = one.clock, one.platform
        stored = await one.store.gate(platform.url)
        assert (stored.state, stored.reason) == (GateState.WAITING, RATE_LIMITED)
        assert stored.until_ms == round(clock.now() * 1000) + 30_000


async def test_a_limit_that_cannot_be_recorded_holds_all_the_same(tmp_path: Path) -> None:
    def full(store: Store) -> Store:
        troubled = TroubledStore(store)
        troubled.full = {"set_gate"}
        return troubled.as_store()

    async with world(tmp_path, wrap=full) as one:
        one.platform.menu.add(RetryAfter(seconds=30), route="context")
        assert await pull(one)
        assert (await one.push("a")).offline


async def test_a_probe_under_way_does_not_open_a_gate_that_was_limited_meanwhile(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=500), route="sync")
        await one.push("a")
        one.platform.menu.add(held := Delay(until=asyncio.Event()), route="sync")
        await one.advance_until(lambda: has(one.service.sender.in_flight == 1))
        one.platform.menu.add(RetryAfter(seconds=30), route="context")
        await pull(one)
        assert held.until is not None
        held.until.set()
        await one.until_drained()
        gate = one.service.sender.gate
        assert (gate.state, gate.reason) == (GateState.WAITING, RATE_LIMITED)
        await one.push("b")
        await one.clock.advance(31)
        await one.until_drained()


async def test_a_limit_at_a_platform_that_was_left_does_not_hold_at_the_new_one(tmp_path: Path) -> None:
    async with world(tmp_path) as one, BrittlePlatform(clock=one.clock) as other:
        left = one.platform.url
        await one.push("a")
        await one.service.reconfigure(configuration(tmp_path, other.url))
        await one.push("b")
        await one.service.sender.overhear(left, answer(429, headers={"retry-after": "30"}))
        assert one.open
        assert not (await one.push("c")).offline
