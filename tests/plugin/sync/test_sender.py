"""The sender against a real platform, store and disk: what goes out, when, and what becomes of it."""

import asyncio
import itertools
import logging
from collections.abc import Collection
from pathlib import Path

import pytest

from plugin.loopback import faults
from plugin.loopback.faults import Delay, Hang, RateLimit, Reset, RetryAfter, Status
from plugin.loopback.platform import LoopbackPlatform
from plugin.store.interface import Batch, BatchChange, Gate, GateState, RowState, Store
from plugin.sync.outcome import LONGEST_WAIT_S
from tests.support.clock import FakeClock, settle
from tests.support.sync import TOKEN, BrittlePlatform, World, configuration, has, keys_of, world
from tests.support.trouble import TroubledStore

STEP = 1.21  # a step of the back-off with the most that jitter adds


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


async def test_a_413_makes_batches_smaller_and_the_limit_is_remembered(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.max_records = 3
        await one.push(*(f"r{number:02}" for number in range(20)))
        await one.until_drained()
        assert sorted(one.delivered()) == [f"r{number:02}" for number in range(20)]
        learned = (await one.store.gate(one.platform.url)).max_bytes
        assert learned is not None
        seen = len(one.platform.pushes)
        one.platform.max_records = None
        one.platform.max_bytes = None
        await one.push(*(f"s{number:02}" for number in range(60)))
        await one.until_drained()
        assert all(push.body_bytes <= learned + 100 for push in one.platform.pushes[seen:])


async def test_a_single_record_too_large_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.max_bytes = 300
        large = {"id": "large", "repo": "x", "task": "t" * 1_000}
        small = {"id": "small", "repo": "x"}
        result = await one.call(dispatches=[small, large, small | {"id": "last"}])
        assert (result.count, result.queued, result.dead) == (2, 0, 1)
        (dead,) = await one.rows(RowState.DEAD)
        assert (dead.record_id, dead.status) == ("large", 413)
        assert sorted(one.delivered()) == ["last", "small"]


async def test_only_the_refused_record_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.poison = {"r13"}
        result = await one.push(*(f"r{number:02}" for number in range(30)))
        assert (result.count, result.queued, result.dead) == (29, 0, 1)
        assert result.error
        (dead,) = await one.rows(RowState.DEAD)
        assert (dead.record_id, dead.status) == ("r13", 422)
        assert "not acceptable" in (dead.answer or "")
        assert sorted(one.delivered()) == sorted({f"r{number:02}" for number in range(30)} - {"r13"})


async def test_a_dead_letter_never_shows_the_token(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        body = b'{"message": "bad", "headers": {"authorization": "Bearer %s"}}' % TOKEN.encode()
        one.platform.menu.add(Status(code=400, body=body))
        await one.push("a")
        (dead,) = await one.rows(RowState.DEAD)
        assert TOKEN not in (dead.answer or "")
        assert "***" in (dead.answer or "")


@pytest.mark.parametrize("agent", ["other", "codex"])
async def test_a_record_that_breaks_the_platform_is_set_apart_and_holds_up_nobody(tmp_path: Path, agent: str) -> None:
    async with world(tmp_path) as one:
        one.platform.indigestible = {"r05"}
        await one.push(*(f"r{number:02}" for number in range(12)))
        await one.push("other", agent=agent)
        await one.advance_until(one.drained)
        assert sorted(one.delivered()) == sorted({f"r{n:02}" for n in range(12)} - {"r05"} | {"other"})
        (apart,) = await one.rows(RowState.APART)
        assert apart.record_id == "r05"
        assert one.open
        assert (await one.push("more")).count == 1

        alone = alone_requests(one, "r05")
        await one.advance_until(lambda: has(len(alone_requests(one, "r05")) >= len(alone) + 3), step_s=10)
        times = alone_requests(one, "r05")[len(alone) - 1 :]
        # Due times are whole milliseconds.
        assert all(later - earlier >= 299.999 for earlier, later in itertools.pairwise(times))
        assert one.open

        one.platform.indigestible = set()
        await one.advance_until(lambda: has("r05" in one.delivered()), step_s=10)
        await one.until(lambda: one.service.sender.in_flight == 0)
        assert await one.rows() == ()


async def test_a_batch_whose_answers_are_lost_in_a_proxy_four_times_is_not_sent_as_halves(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Status(code=504), times=4, agent="slow", applied=True)
        await one.push("a", "b", "c", "d", agent="slow")
        for number in range(8):
            await one.push(f"other{number}", agent="other")
            await one.advance_until(lambda number=number: has(f"other{number}" in one.delivered()))
        await one.advance_until(one.drained)
        keys = [push.key for push in one.platform.pushes if push.agent == "slow"]
        assert len(keys) == 5
        assert len(set(keys)) == 1
        assert [name for name in one.delivered() if name in "abcd"] == ["a", "b", "c", "d"]


def alone_requests(one: World, record_id: str) -> list[float]:
    """When a record was sent in a request of its own."""
    return [push.at for push in one.platform.pushes if push.ids == (record_id,)]


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


async def test_an_acknowledgement_that_cannot_be_written_is_kept_and_nothing_sent_again(tmp_path: Path) -> None:
    stores: list[TroubledStore] = []

    def trouble(store: Store) -> Store:
        stores.append(TroubledStore(store))
        return stores[0].as_store()

    async with world(tmp_path, wrap=trouble) as one:
        stores[0].full = {"record"}
        push = one.pushing("a")
        await one.platform.wait_until(lambda server: len(server.arrivals) == 1)
        async with asyncio.timeout(10):
            while not stores[0].refused:
                await settle()
        for _ in range(5):
            await one.clock.advance(3)
        assert len(await one.rows(RowState.WAITING)) == 1
        assert len(one.platform.pushes) == 1
        stores[0].full = set()
        await one.clock.advance(10)
        await one.until_drained()
        assert (await push).count == 1
        assert len(one.platform.pushes) == 1
        assert await one.store.ledger_size() == 1


async def test_an_unwritten_acknowledgement_of_the_probe_holds_up_no_other_agent(tmp_path: Path) -> None:
    stores: list[TroubledStore] = []

    def trouble(store: Store) -> Store:
        stores.append(TroubledStore(store))
        return stores[0].as_store()

    async with world(tmp_path, wrap=trouble) as one:
        one.platform.menu.add(Status(code=503))
        await one.push("a")
        await one.until_closed(1)
        stores[0].full = {"record"}
        await one.clock.advance(STEP)
        await one.platform.wait_until(lambda server: len(server.arrivals) == 2)
        push = one.pushing("b", agent="other")
        await one.platform.wait_until(lambda server: len(server.arrivals) == 3)
        stores[0].full = set()
        await one.advance_until(one.drained)
        await push
        assert len(one.platform.pushes) == 3
        assert one.delivered() == ["a", "b"]


class SlowStore(TroubledStore):
    """A store that takes its time to record answers to the requests of some agents, or of all."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.slow: Collection[str] | None = None
        self.go = asyncio.Event()

    async def record(self, batch: Batch, change: BatchChange, *, platform: str, gate: Gate | None, now_ms: int) -> None:
        if self.slow is None or batch.agent_id in self.slow:
            await self.go.wait()
        await self._store.record(batch, change, platform=platform, gate=gate, now_ms=now_ms)


async def test_while_an_answer_is_recorded_others_send_and_its_own_agent_waits(tmp_path: Path) -> None:
    stores: list[SlowStore] = []
    release = asyncio.Event()

    def slow(store: Store) -> Store:
        stores.append(SlowStore(store))
        return stores[0].as_store()

    async with world(tmp_path, wrap=slow, sync={"batch_records": 1}) as one:
        stores[0].slow = {"x"}
        for agent in "yz":
            one.platform.menu.add(Delay(until=release), agent=agent)
        pushes = [one.pushing(name, agent=name[0]) for name in ("x1", "x2", "y1", "z1")]
        await one.platform.wait_until(lambda server: len(server.pushes) == 3 and server.in_flight == 2)
        await one.quiet()
        assert one.delivered() == ["x1"]
        assert (await one.store.counts("x")).queued == 2
        stores[0].go.set()
        release.set()
        await asyncio.gather(*pushes)
        await one.until_drained()
        assert sorted(one.delivered()) == ["x1", "x2", "y1", "z1"]


async def test_answers_that_cannot_be_recorded_hold_back_more_requests(tmp_path: Path) -> None:
    stores: list[SlowStore] = []

    def slow(store: Store) -> Store:
        stores.append(SlowStore(store))
        return stores[0].as_store()

    async with world(tmp_path, wrap=slow) as one:
        pushes = [one.pushing(f"{agent}1", agent=agent) for agent in "uvwxyz"]
        await one.platform.wait_until(lambda server: len(server.pushes) == 4)
        await one.quiet()
        assert one.requests == 4
        stores[0].go.set()
        await asyncio.gather(*pushes)
        await one.until_drained()
        assert sorted(one.delivered()) == [f"{agent}1" for agent in "uvwxyz"]


class HeldStore(TroubledStore):
    """A store that takes its time to hand out the batches of one agent."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def claim(
        self,
        platform: str,
        *,
        busy: Collection[str],
        settling: Collection[str],
        most: int,
        max_records: int,
        max_bytes: int,
        now_ms: int,
    ) -> tuple[Batch, ...]:
        found = await self._store.claim(
            platform,
            busy=busy,
            settling=settling,
            most=most,
            max_records=max_records,
            max_bytes=max_bytes,
            now_ms=now_ms,
        )
        if any(batch.agent_id == "slow" for batch in found):
            self.asked.set()
            await self.go.wait()
        return found


async def test_a_gate_that_closes_while_the_store_is_asked_stays_closed(tmp_path: Path) -> None:
    stores: list[HeldStore] = []

    def hold(store: Store) -> Store:
        stores.append(HeldStore(store))
        return stores[0].as_store()

    async with world(tmp_path, wrap=hold) as one:
        one.platform.menu.add(Hang(), agent="fast")
        first = one.pushing("a", agent="fast")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        second = one.pushing("b", agent="slow")
        await stores[0].asked.wait()
        await one.platform.down()
        await one.until(lambda: not one.open)
        await one.platform.up()
        stores[0].go.set()
        assert (await first).offline
        assert (await second).offline
        await one.quiet()
        assert one.requests == 1
        await one.clock.advance(STEP)
        await one.until_drained()


async def test_a_store_that_cannot_hand_out_work_is_asked_again(tmp_path: Path) -> None:
    stores: list[TroubledStore] = []

    def trouble(store: Store) -> Store:
        stores.append(TroubledStore(store))
        stores[0].full = {"claim"}
        return stores[0].as_store()

    async with world(tmp_path, wrap=trouble) as one:
        push = one.pushing("a")
        async with asyncio.timeout(10):
            while not stores[0].refused:
                await settle()
        stores[0].full = set()
        await one.clock.advance(7)
        assert (await push).count == 1


async def test_nothing_is_sent_before_the_store_is_ours(tmp_path: Path) -> None:
    stores: list[TroubledStore] = []

    def trouble(store: Store) -> Store:
        stores.append(TroubledStore(store))
        stores[0].ready.clear()
        return stores[0].as_store()

    async with world(tmp_path, wrap=trouble) as one:
        push = one.pushing("a")
        await one.quiet()
        assert (await one.store.counts()).queued == 1
        assert one.requests == 0
        stores[0].ready.set()
        assert (await push).count == 1


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
