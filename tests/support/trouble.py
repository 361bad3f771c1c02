"""A store whose disk can be full, or which is not ours yet: it stands before a real one."""

import asyncio
from typing import cast

from plugin.errors import StoreUnavailable
from plugin.store.interface import Store


class TroubledStore:
    """Pass every call on, but those named in `full`: they raise as they do when the disk is full."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full: set[str] = set()
        self.refused: list[str] = []
        self.ready = asyncio.Event()
        self.ready.set()

    def as_store(self) -> Store:
        """Return this as the store it passes its calls on to."""
        return cast("Store", self)

    async def wait_ready(self) -> None:
        await self.ready.wait()
        await self._store.wait_ready()

    def __getattr__(self, name: str) -> object:
        if name in self.full:
            self.refused.append(name)
            raise StoreUnavailable("the disk is full")
        return getattr(self._store, name)
