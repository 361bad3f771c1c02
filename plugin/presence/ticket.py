"""Wait for what becomes of a number of cells."""

import asyncio
from collections.abc import Mapping

from plugin.presence.cell import Cell
from plugin.presence.guild import Verdict


class Ticket:
    """Count the results of cells, each from a given version on; verdicts in `passing` are no result yet."""

    def __init__(self, cells: Mapping[Cell, int], *, passing: frozenset[Verdict]) -> None:
        self.sent = 0
        self.failed = 0
        self.done = asyncio.Event()
        self._waiting = dict(cells)
        self._passing = passing
        if not self._waiting:
            self.done.set()

    @property
    def pending(self) -> int:
        """How many have no result yet."""
        return len(self._waiting)

    def judge(self, cell: Cell, version: int, verdict: Verdict) -> None:
        """Take what the sending of a cell came to; cells that nobody waits for, and older versions, are ignored."""
        if verdict in self._passing or version < self._waiting.get(cell, version + 1):
            return
        del self._waiting[cell]
        if verdict is Verdict.SENT:
            self.sent += 1
        else:
            self.failed += 1
        if not self._waiting:
            self.done.set()
