"""What runs behind the actions: the store, sync and presence, built from one configuration and supervised."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

from plugin.clock import Clock
from plugin.config import Config
from plugin.host import AgentStates
from plugin.presence.report import Taken
from plugin.presence.service import Presence
from plugin.presence.status import PresenceStatus
from plugin.store.interface import Store, StoreState
from plugin.store.sqlite import open_store
from plugin.sync.service import SyncService

LOG = logging.getLogger(__name__)
RESTART_WAIT_S = 5.0
CLOSE_WAIT_S = 0.4


class Services:
    """Own the store, sync and presence of one process; nothing here knows the wire."""

    def __init__(self, *, store: Store, sync: SyncService, presence: Presence, clock: Clock) -> None:
        self.store = store
        self.sync = sync
        self.presence = presence
        self._clock = clock

    @classmethod
    async def build(
        cls, config: Config, *, agents: AgentStates, environ: Mapping[str, str], clock: Clock, rng: random.Random
    ) -> Self:
        """Open the store and build what works on it; ConfigInvalid when a setting turns out to be unusable."""
        store = open_store(Path(config.state_dir), clock=clock)
        try:
            sync = SyncService(store=store, config=config, environ=environ, clock=clock, rng=rng)
            presence = Presence(agents=agents, config=config, environ=environ, clock=clock, rng=rng)
        except BaseException:
            await store.close()
            raise
        return cls(store=store, sync=sync, presence=presence, clock=clock)

    async def run(self) -> None:
        """Run until cancelled; a part that fails is logged and started again, the other goes on."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._supervise("sync", self.sync.run))
            tasks.create_task(self._supervise("presence", self._run_presence))

    async def reconfigure(self, config: Config) -> None:
        """Take a new configuration while everything runs."""
        await self.sync.reconfigure(config)
        await self.presence.reconfigure(config)

    def presence_status(self, agent_id: str | None) -> PresenceStatus:
        """Say how presence stands, and who has it when another process has the state folder."""
        health = self.store.health
        in_use = health.state is StoreState.IN_USE
        taken = Taken(reason=health.reason or health.state, pid=health.pid) if in_use else None
        return self.presence.status(agent_id, taken=taken)

    async def stop(self, *, idle: Callable[[float], Awaitable[None]], deadline_s: float) -> None:
        """Let requests finish, record what is in flight, set presence offline: all within `deadline_s`.

        `idle(seconds)` waits until no request is being handled.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leave(deadline_s))
            await idle(deadline_s * 0.5)
            await self.sync.stop(deadline_s * 0.4)

    async def close(self) -> None:
        """Close the store; what it cannot finish in time is safe on disk as it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WAIT_S):
                await self.store.close()

    async def _leave(self, deadline_s: float) -> None:
        report = await self.presence.leave(deadline_s * 0.9)
        if report.missed:
            LOG.warning(
                "some guilds were not told that their agents are offline", extra={"fields": {"missed": report.missed}}
            )

    async def _run_presence(self) -> None:
        # A second plugin on the folder must not fight with the first over what the guilds show.
        await self.store.wait_uncontested()
        await self.presence.run()

    async def _supervise(self, part: str, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await run()
            except Exception:
                LOG.exception("a part of the plugin failed and is started again", extra={"fields": {"part": part}})
                await self._clock.sleep(RESTART_WAIT_S)
            else:
                return
