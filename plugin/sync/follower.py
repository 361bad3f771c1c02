"""Has the Go agent's `queue.json` follow the queue, at most once a second, for tools that read it."""

import asyncio
import logging
import threading
from pathlib import Path

from plugin.clock import Clock
from plugin.errors import StoreUnavailable
from plugin.store.interface import QueueRow, RowState, Store
from plugin.sync.core import MARK
from plugin.sync.mirror import Mirror
from plugin.sync.platform import Scope
from plugin.sync.sender import Sender

_LOG = logging.getLogger(__name__)
_LEAST_WAIT_S = 1.0
_PAGE = 1000


class Follower:
    """Write the mirror when `sync.mirror_json` says so; a Go queue that was never taken over is left alone."""

    def __init__(self, *, store: Store, sender: Sender, scope: Scope, clock: Clock) -> None:
        self._store = store
        self._sender = sender
        self._scope = scope
        self._clock = clock
        self._path = Path(scope.config.root) / "sync" / "queue.json"
        self._mirror = Mirror(self._path)
        # A cancelled caller leaves its thread behind: the next write must wait for it.
        self._writing = threading.Lock()
        self._written: tuple[int, ...] | None = None
        self._begun = False
        self._gone = False
        self._failing = False

    def begin(self) -> None:
        """Take notice that the folder is this process's: whatever comes, its queue is written at the end."""
        self._begun = True

    async def run(self) -> None:
        """Follow until cancelled, once begun."""
        while True:
            changed = self._sender.changed
            await self.update()
            await changed.wait()
            await self._clock.sleep(_LEAST_WAIT_S)

    async def finish(self) -> None:
        """Write the queue once more at the end, if the folder was this process's."""
        if self._begun:
            await self.update()

    async def update(self) -> None:
        """Write the queue as it is now, unless the file has it already; trouble is logged once, and tried again."""
        try:
            if not self._scope.config.sync.mirror_json:
                await self._let_go()
            elif await self._store.imported(MARK):
                await self._follow()
            self._failing = False
        except (OSError, StoreUnavailable) as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            self._failing = True
            _LOG.log(level, "queue.json cannot follow the queue", extra={"fields": {"problem": str(error)}})

    async def _let_go(self) -> None:
        """Remove what was written, also by an earlier run, once nobody keeps it in step.

        A reader would take delivered work for waiting. A store that took nothing over never wrote the file.
        """
        if self._gone:
            return
        if await self._store.imported(MARK):
            await asyncio.to_thread(self._remove)
        self._gone, self._written = True, None

    async def _follow(self) -> None:
        self._gone = False
        rows = await self._rows()
        numbers = tuple(row.row for row in rows)
        if numbers != self._written:
            await asyncio.to_thread(self._write, rows)
            self._written = numbers

    async def _rows(self) -> list[QueueRow]:
        rows: list[QueueRow] = []
        after = 0
        while page := await self._store.rows(after=after, limit=_PAGE):
            rows.extend(row for row in page if row.state is not RowState.DEAD)
            after = page[-1].row
        return rows

    def _remove(self) -> None:
        with self._writing:
            self._mirror.remove()

    def _write(self, rows: list[QueueRow]) -> None:
        with self._writing:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._mirror.write(rows)
