"""The sender while the store is slow, full or not ours."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from plugin.loopback.faults import Delay, Hang, Status
from plugin.store.interface import Batch, BatchChange, Gate, RowState, Store
from tests.support.clock import settle
from tests.support.sync import STEP, world
from tests.support.trouble import TroubledStore


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
