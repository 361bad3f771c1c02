"""Do what is due, when it is due, with a bounded number at once and a gate before it: the one scheduler of presence.

An item is never worked on twice at the same time. There is one timer for the lane, whatever the number of items, and
workers exist only while something is due.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from plugin.clock import Clock, wait_until_set
from plugin.presence.gate import Gate

_FOREVER_S = 3600.0
_SPARE = 64


class Item(Protocol):
    """What a lane keeps in each of its items; nobody else writes it."""

    in_flight: bool
    queued_at: float


T = TypeVar("T", bound=Item)


class Lane(Generic[T]):
    """Hold items by the time they are due and work on those whose time has come, lowest time first.

    `due(item, now)` says when to work on an item: `now` or less means now, and then also its rank; infinity, not at
    all. It is asked when the item is put, again before the work begins, and again after it ended.
    """

    def __init__(
        self, *, due: Callable[[T, float], float], work: Callable[[T], Awaitable[None]], most: int, clock: Clock
    ) -> None:
        self.gate = Gate()
        self.most = most
        self.in_flight = 0
        self._due = due
        self._work = work
        self._clock = clock
        self._heap: list[tuple[float, int, T]] = []
        self._live = 0
        self._order = itertools.count()
        self._workers = 0
        self._group: asyncio.TaskGroup | None = None
        self._alarm = asyncio.Event()
        self._alarm_at = -math.inf

    def put(self, item: T) -> None:
        """Ask anew when the item is due; one that is being worked on is asked about when that has ended."""
        if item.in_flight:
            return
        now = self._clock.monotonic()
        self._queue(item, self._due(item, now))
        self._stir(now)

    def drop(self, item: T) -> None:
        """Take the item out; work that has begun goes on."""
        self._queue(item, math.inf)

    def hurry(self) -> None:
        """End a wait of the gate that is our own idea."""
        now = self._clock.monotonic()
        self.gate = self.gate.hurried(now)
        self._stir(now)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                while True:
                    self._alarm.clear()
                    now = self._clock.monotonic()
                    self._hire(now)
                    self._alarm_at = self._next_at(now)
                    await wait_until_set(self._alarm, min(self._alarm_at - now, _FOREVER_S), self._clock)
            finally:
                # Before the group ends its workers: nobody may be hired any more.
                self._group, self._alarm_at = None, -math.inf

    def _queue(self, item: T, at: float) -> None:
        if at == item.queued_at:
            return
        self._live += (at < math.inf) - (item.queued_at < math.inf)
        item.queued_at = at
        if at == math.inf:
            return
        heapq.heappush(self._heap, (at, next(self._order), item))
        if len(self._heap) > 2 * self._live + _SPARE:
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].queued_at]
            heapq.heapify(self._heap)

    def _ready(self, now: float) -> bool:
        """Whether the first item is due; entries of items that were put again since are thrown away."""
        while self._heap and self._heap[0][0] != self._heap[0][2].queued_at:
            heapq.heappop(self._heap)
        return bool(self._heap) and self._heap[0][0] <= now

    def _next_at(self, now: float) -> float:
        """Return when to look again if nobody calls before."""
        if self._ready(now):
            # A worker that ends calls; only a gate opens by itself.
            return self.gate.until if self.gate.until > now else math.inf
        return self._heap[0][0] if self._heap else math.inf

    def _stir(self, now: float) -> None:
        self._hire(now)
        if self._next_at(now) < self._alarm_at:
            self._alarm.set()

    def _hire(self, now: float) -> None:
        if self._group is not None and self._workers < self.gate.width(now, self.most) and self._ready(now):
            self._workers += 1
            self._group.create_task(self._labour())

    def _take(self) -> T | None:
        now = self._clock.monotonic()
        while self.in_flight < self.gate.width(now, self.most) and self._ready(now):
            item = heapq.heappop(self._heap)[2]
            item.queued_at = math.inf
            self._live -= 1
            at = self._due(item, now)
            if at <= now:
                return item
            self._queue(item, at)
        return None

    async def _labour(self) -> None:
        try:
            while (item := self._take()) is not None:
                item.in_flight = True
                self.in_flight += 1
                # One worker calls the next, so that as many come as there is work for.
                self._hire(self._clock.monotonic())
                try:
                    await self._work(item)
                finally:
                    item.in_flight = False
                    self.in_flight -= 1
                self.put(item)
        finally:
            self._workers -= 1
        self._stir(self._clock.monotonic())
