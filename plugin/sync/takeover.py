"""Takes over what the Go agent left behind, once for each store."""

import asyncio
import logging
from pathlib import Path

from plugin.clock import Clock
from plugin.store.interface import Store
from plugin.sync.core import MARK, read_core_state
from plugin.sync.platform import Scope

_LOG = logging.getLogger(__name__)
_MAX_LOGGED = 20


class Takeover:
    """Import the Go agent's state before anything is scanned: its ledger says what was delivered long ago."""

    def __init__(self, *, store: Store, scope: Scope, clock: Clock) -> None:
        self._store = store
        self._scope = scope
        self._clock = clock
        self._turn = asyncio.Lock()
        self._done = False

    async def ensure(self) -> None:
        """Import it unless that was done, or is switched off. StoreUnavailable when it cannot be kept."""
        async with self._turn:
            if self._done or not self._scope.config.sync.import_core_state:
                return
            if not await self._store.imported(MARK):
                await self._import()
            self._done = True

    async def _import(self) -> None:
        config = self._scope.config
        state, problems = await asyncio.to_thread(
            read_core_state, Path(config.root), Path(config.state_dir), agent_id=config.agent_id
        )
        for problem in problems[:_MAX_LOGGED]:
            _LOG.warning(
                "a part of the Go agent's state is not taken over",
                extra={"fields": {"path": problem.path, "problem": problem.text}},
            )
        await self._store.import_core(
            state,
            platform=self._scope.platform.url,
            agent_id=config.agent_id,
            mark=MARK,
            now_ms=round(self._clock.now() * 1000),
        )
        fields = {
            "queued": len(state.queue),
            "ledger": len(state.ledger),
            "context": len(state.context),
            "problems": len(problems),
        }
        if any(fields.values()):
            _LOG.info("the Go agent's state was taken over", extra={"fields": fields})
