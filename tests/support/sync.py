"""Sync as it runs: the real service on a real store and disk, against a platform on real sockets; only time is fake."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from plugin.config import Config
from plugin.loopback.platform import LoopbackPlatform
from plugin.loopback.server import Arrival, Reply
from plugin.secret import Secret
from plugin.store.interface import Gate, GateState, QueueRow, RowState, Store
from plugin.store.sqlite import open_store
from plugin.sync.push import PushParams, PushResult
from plugin.sync.service import SyncService
from tests.support.clock import FakeClock, settle

TOKEN = "loopback-token"
STEP = 1.21  # a step of the back-off with the most that jitter adds
PATIENCE_S = 20.0


class BrittlePlatform(LoopbackPlatform):
    """A platform that cannot digest some records: it answers 500 to every request that holds one."""

    def __init__(self, *, clock: FakeClock | None = None, deduplicate: bool = True) -> None:
        super().__init__(clock=clock, deduplicate=deduplicate)
        self.indigestible: set[str] = set()

    def _sync(self, arrival: Arrival, body: bytes) -> Reply:
        if self.indigestible.intersection(arrival.ids):
            return Reply(status=500, data={"message": "Server Error"})
        return super()._sync(arrival, body)


@dataclass(slots=True, kw_only=True)
class World:
    """One plugin's sync, the platform it talks to, and the clock of both."""

    platform: BrittlePlatform
    store: Store
    service: SyncService
    clock: FakeClock
    config: Config
    tasks: asyncio.TaskGroup

    async def call(self, **given: object) -> PushResult:
        """Push with these parameters, as they are on the wire."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.service.push(msgspec.convert(given, PushParams))

    async def push(self, *ids: str, agent: str = "codex", queue_only: bool = False) -> PushResult:
        """Push records with these ids; without any, look for finished work."""
        return await self.call(agent_id=agent, dispatches=dispatches(*ids), queue_only=queue_only)

    def pushing(self, *ids: str, agent: str = "codex") -> asyncio.Task[PushResult]:
        """Push in the background."""
        return self.tasks.create_task(self.push(*ids, agent=agent))

    async def until(self, holds: Callable[[], Awaitable[bool] | bool]) -> None:
        """Wait until something holds; it is asked whenever the sender has news."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                changed = self.service.sender.changed
                held = holds()
                if held is True or (not isinstance(held, bool) and await held):
                    return
                await changed.wait()

    async def until_drained(self) -> None:
        """Wait until nothing waits in the outbox any more."""
        await self.until(self.drained)

    async def quiet(self) -> None:
        """Let everything happen that would happen now: several turns of the loop and of the store."""
        for _ in range(5):
            await self.store.counts()
            await settle()

    @property
    def requests(self) -> int:
        """How many requests the sender began."""
        return self.service.sender.tallies.requests

    async def advance_until(self, holds: Callable[[], Awaitable[bool]], *, step_s: float = 0.5) -> None:
        """Let time pass until something holds, a little at a time so that work on sockets and disk keeps up."""
        async with asyncio.timeout(PATIENCE_S):
            while not await holds():
                await self.clock.advance(step_s)

    async def drained(self) -> bool:
        """Whether nothing waits in the outbox any more."""
        return not await self.store.rows(state=RowState.WAITING)

    async def until_closed(self, failures: int | None = None) -> Gate:
        """Wait until the gate is closed (after so many failures) and nothing is in flight; return it."""

        async def closed() -> bool:
            quiet = self.service.sender.in_flight == 0 and not self.open
            return quiet and failures in (None, (await self.store.gate(self.platform.url)).failures)

        await self.until(closed)
        return await self.store.gate(self.platform.url)

    @property
    def open(self) -> bool:
        """Whether requests pass freely."""
        return self.service.sender.gate.state is GateState.READY

    async def rows(self, state: RowState | None = None) -> tuple[QueueRow, ...]:
        """The outbox, as a person sees it."""
        return await self.store.rows(state=state)

    def delivered(self) -> list[str]:
        """The ids that took effect at the platform, in order, as often as they did."""
        return [record.id for record in self.platform.records]


@asynccontextmanager
async def world(
    path: Path,
    *,
    platform: BrittlePlatform | None = None,
    clock: FakeClock | None = None,
    run: bool = True,
    wrap: Callable[[Store], Store] | None = None,
    platform_settings: Mapping[str, object] | None = None,
    **settings: Mapping[str, object],
) -> AsyncGenerator[World]:
    """Start sync on `path`; `settings` are parts of the configuration, as dicts. `wrap` may stand before the store."""
    clock = clock or FakeClock()
    served = platform or BrittlePlatform(clock=clock)
    async with served if platform is None else _as_it_is(served), asyncio.TaskGroup() as tasks:
        config = configuration(path, served.url, platform_settings, **settings)
        opened = open_store(path / "state", clock=clock)
        store = opened if wrap is None else wrap(opened)
        rng = random.Random(7)  # noqa: S311  spreads waits, guards nothing
        service = SyncService(store=store, config=config, environ={}, clock=clock, rng=rng)
        if run:
            tasks.create_task(service.run())
        try:
            yield World(platform=served, store=store, service=service, clock=clock, config=config, tasks=tasks)
        finally:
            await service.stop(0)
            await opened.close()


def configuration(
    path: Path, url: str, platform: Mapping[str, object] | None = None, **settings: Mapping[str, object]
) -> Config:
    """The configuration for a folder and a platform; without a token when `platform` says None."""
    reached = {"base_url": url, "api_key": TOKEN, **(platform or {})}
    given = {name: value for name, value in reached.items() if value is not None}
    raw = {"agent_id": "codex", "root": str(path), "state_dir": str(path / "state"), "platform": given, **settings}
    return msgspec.convert(raw, Config, dec_hook=lambda _, value: Secret(value))


def dispatches(*ids: str) -> list[dict[str, Any]]:
    """Records as a caller hands them in."""
    return [{"id": name, "repo": "go-io", "status": "completed"} for name in ids]


def finish(path: Path, *names: str, runs: int = 1, **status: object) -> None:
    """Leave finished workspaces on the disk."""
    for name in names:
        folder = path / "workspace" / name
        folder.mkdir(parents=True, exist_ok=True)
        values = {"status": "completed", "repo": "go-io", "runs": runs, "updated_at": "2026-04-14T12:00:00Z"} | status
        (folder / "status.json").write_text(json.dumps(values), encoding="utf-8")


def keys_of(arrivals: Sequence[Arrival]) -> list[str | None]:
    """The idempotency keys of requests, in order."""
    return [arrival.key for arrival in arrivals]


async def has(holds: bool) -> bool:  # noqa: FBT001  the truth itself, for those who await it
    """Return what was found."""
    return holds


@asynccontextmanager
async def _as_it_is(platform: BrittlePlatform) -> AsyncGenerator[BrittlePlatform]:
    """Leave a platform to who started it."""
    yield platform
