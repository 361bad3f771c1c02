import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from plugin.presence.lane import Lane
from tests.support.clock import FakeClock, settle


@dataclass(slots=True, eq=False)
class Job:
    name: str
    at: float = 0.0
    in_flight: bool = False
    queued_at: float = math.inf


class Works:
    """A lane whose work a test can hold; a job that was done is due no more."""

    def __init__(self, most: int = 2) -> None:
        self.clock = FakeClock()
        self.lane = Lane(due=lambda job, _now: job.at, work=self.work, most=most, clock=self.clock)
        self.done: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.most = 0

    async def work(self, job: Job) -> None:
        self.most = max(self.most, self.lane.in_flight)
        assert job.in_flight
        job.at = math.inf
        await self.open.wait()
        self.done.append(job.name)


@asynccontextmanager
async def running(works: Works) -> AsyncGenerator[Works]:
    task = asyncio.ensure_future(works.lane.run())
    try:
        await settle()
        yield works
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_put_before_the_lane_runs_is_done_by_rank_and_then_in_order() -> None:
    works = Works(most=1)
    for name, rank in [("c", 5.0), ("a", -2.0), ("d", 6.0), ("b", -2.0)]:
        works.lane.put(Job(name, rank))
    async with running(works):
        assert works.done == ["a", "b", "c", "d"]


async def test_a_job_waits_for_its_time() -> None:
    async with running(Works()) as works:
        works.lane.put(Job("late", works.clock.monotonic() + 20))
        works.lane.put(Job("soon", works.clock.monotonic() + 10))
        await works.clock.advance(9.9)
        assert works.done == []
        await works.clock.advance(0.2)
        assert works.done == ["soon"]
        await works.clock.advance(10)
        assert works.done == ["soon", "late"]


async def test_no_more_than_most_are_worked_on_at_once_and_fewer_once_that_is_lowered() -> None:
    works = Works(most=3)
    works.open.clear()
    async with running(works):
        for number in range(10):
            works.lane.put(Job(str(number)))
        await settle()
        assert works.lane.in_flight == 3
        works.lane.most = 1
        works.open.set()
        await settle(60)
        assert len(works.done) == 10
    assert works.most == 3


async def test_a_job_put_while_it_is_worked_on_is_done_again_only_afterwards() -> None:
    works = Works()
    works.open.clear()
    async with running(works):
        job = Job("a")
        works.lane.put(job)
        await settle()
        job.at = 0.0
        works.lane.put(job)
        await settle()
        assert works.lane.in_flight == 1
        works.open.set()
        await settle()
        assert works.done == ["a", "a"]


async def test_a_job_that_is_dropped_or_due_no_more_is_not_done() -> None:
    async with running(Works()) as works:
        dropped, moved = Job("dropped", 1005.0), Job("moved", 1005.0)
        works.lane.put(dropped)
        works.lane.put(moved)
        works.lane.drop(dropped)
        moved.at = math.inf
        await works.clock.advance(10)
        assert works.done == []


async def test_a_gate_that_waits_holds_everything_back_until_its_time() -> None:
    async with running(Works()) as works:
        works.lane.gate = works.lane.gate.deferred(works.clock.monotonic(), 30.0)
        works.lane.put(Job("a"))
        await works.clock.advance(29.9)
        assert works.done == []
        await works.clock.advance(0.2)
        assert works.done == ["a"]


async def test_as_many_as_may_be_are_worked_on_once_a_gate_opens() -> None:
    works = Works(most=3)
    works.open.clear()
    async with running(works):
        works.lane.gate = works.lane.gate.deferred(works.clock.monotonic(), 30.0)
        for number in range(5):
            works.lane.put(Job(str(number)))
        await works.clock.advance(31)
        assert works.lane.in_flight == 3


async def test_hurry_opens_a_gate_that_waits_by_itself() -> None:
    async with running(Works()) as works:
        now = works.clock.monotonic()
        for _ in range(6):
            works.lane.gate = works.lane.gate.failed(now, now, reason="reset", rand=0.9)
        works.lane.put(Job("a"))
        await settle()
        assert works.done == []
        works.lane.hurry()
        await settle()
        assert works.done == ["a"]


async def test_putting_a_job_again_and_again_does_not_grow_the_lane() -> None:
    works = Works()
    async with running(works):
        job, other = Job("a"), Job("b", 3000.0)
        works.lane.put(other)
        for number in range(5000):
            job.at = 2000.0 + number
            works.lane.put(job)
        assert len(works.lane._heap) < 200  # pyright: ignore[reportPrivateUsage] - what must stay small
        await works.clock.advance(1500)
        assert works.done == []
        job.at = 0.0
        works.lane.put(job)
        await settle()
        await works.clock.advance(600)
        assert works.done == ["a", "b"]


async def test_cancelling_the_lane_cancels_what_is_worked_on() -> None:
    works = Works()
    works.open.clear()
    job = Job("a")
    async with running(works):
        works.lane.put(job)
        await settle()
        assert job.in_flight
    assert not job.in_flight
    assert works.lane.in_flight == 0
    assert works.done == []
