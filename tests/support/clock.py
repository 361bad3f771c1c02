"""A clock that moves only when a test moves it."""

import asyncio
import heapq
import itertools


class FakeClock:
    """Wall and monotonic time, advanced by hand; `jump` moves the wall clock alone, as an operator or NTP would."""

    def __init__(self, *, now: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self._now = now
        self._monotonic = monotonic
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        await future

    def jump(self, seconds: float) -> None:
        self._now += seconds

    @property
    def next_due(self) -> float | None:
        """The monotonic time of the next sleeper that still waits."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Move both clocks, waking each sleeper at its own time and letting it run before the next."""
        target = self._monotonic + seconds
        await settle()
        while (due := self.next_due) is not None and due <= target:
            self._move_to(due)
            heapq.heappop(self._sleepers)[2].set_result(None)
            await settle()
        self._move_to(target)
        await settle()

    def _move_to(self, monotonic: float) -> None:
        self._now += monotonic - self._monotonic
        self._monotonic = monotonic


async def settle(turns: int = 25) -> None:
    """Let every task that is ready run until it waits for something real."""
    for _ in range(turns):
        await asyncio.sleep(0)
