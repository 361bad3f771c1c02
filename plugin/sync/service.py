"""Sync as one thing: the three actions, and the sender that works behind them."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path

from plugin.clock import Clock
from plugin.config import Config
from plugin.errors import StoreUnavailable
from plugin.retry import step_s
from plugin.store.interface import Store
from plugin.sync import journal
from plugin.sync.follower import Follower
from plugin.sync.intake import Intake
from plugin.sync.platform import Platform, Scope
from plugin.sync.pull import Pull
from plugin.sync.push import Push
from plugin.sync.scan import Scanner
from plugin.sync.sender import Sender
from plugin.sync.status import Status
from plugin.sync.takeover import Takeover


class SyncService:
    """Serve `push`, `pull` and `status` from construction on; `sender` works in the background while `run` runs."""

    def __init__(
        self, *, store: Store, config: Config, environ: Mapping[str, str], clock: Clock, rng: random.Random
    ) -> None:
        """Build it; nothing is opened yet. ConfigInvalid when the platform's CA file or proxy cannot be used."""
        self._store = store
        self._environ = environ
        self._rand = rng.random
        platform = Platform.of(config, environ)
        self._scope = scope = Scope(config, platform)
        self.sender = sender = Sender(store=store, platform=platform, sync=config.sync, clock=clock, rand=rng.random)
        intake = Intake(store=store, scanner=Scanner(Path(config.root)), clock=clock)
        self._clock = clock
        self._follower = Follower(store=store, sender=sender, scope=scope, clock=clock)
        self._takeover = takeover = Takeover(store=store, scope=scope, clock=clock)
        self.push = Push(store=store, sender=sender, takeover=takeover, intake=intake, scope=scope, clock=clock)
        self.pull = Pull(store=store, sender=sender, scope=scope, clock=clock)
        self.status = Status(store=store, sender=sender, scope=scope, clock=clock)

    async def run(self) -> None:
        """Take over what the Go agent left, and send what is queued, until `stop`."""
        async with asyncio.TaskGroup() as group:
            aside = group.create_task(self._aside())
            await self.sender.run()
            aside.cancel()

    async def _aside(self) -> None:
        await self._store.wait_ready()
        self._follower.begin()
        await self._take_over()
        await self._follower.run()

    async def _take_over(self) -> None:
        failures = 0
        while True:
            try:
                await self._takeover.ensure()
            except StoreUnavailable as error:
                failures += 1
                journal.store_failed(error, first=failures == 1)
                await self._clock.sleep(step_s(failures, rand=self._rand()))
            else:
                self.sender.kick()
                return

    async def reconfigure(self, config: Config) -> None:
        """Take a new configuration for the next request on; what is in flight ends under the old one.

        ConfigInvalid when it cannot be used; then the old one stays.
        """
        platform = Platform.of(config, self._environ)
        old, self._scope.platform, self._scope.config = self._scope.platform, platform, config
        self.sender.use(platform, config.sync)
        await old.retire()

    async def stop(self, deadline_s: float) -> None:
        """Start nothing more, let what is in flight be recorded within the deadline, close the connections."""
        await self.sender.stop(deadline_s)
        await self.pull.finish()
        await self._follower.finish()
        await self._scope.platform.retire()
