"""Counts what became of records: since the process started, and for whoever waits for an agent's."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never

from plugin.store.interface import Acknowledged, Batch, BatchChange, Dead, Failed, SetApart, Split


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of an agent's records while somebody watched."""

    agent_id: str
    acknowledged: int = 0
    refused: int = 0


class Tallies:
    """The counters of one sender, in requests or records; `resends` are requests with a key that went out before."""

    def __init__(self) -> None:
        self.requests = 0
        self.resends = 0
        self.acknowledged = 0
        self.skipped_by_platform = 0
        self.refused = 0
        self.set_apart = 0
        self._unsettled: set[str] = set()
        self._watched: list[Tally] = []

    @contextmanager
    def watching(self, agent_id: str) -> Generator[Tally]:
        """Count what becomes of an agent's records within the block."""
        tally = Tally(agent_id=agent_id)
        self._watched.append(tally)
        try:
            yield tally
        finally:
            self._watched = [other for other in self._watched if other is not tally]

    def request(self, batch: Batch) -> None:
        """Count a request that goes out."""
        self.requests += 1
        self.resends += batch.key in self._unsettled
        self._unsettled.add(batch.key)

    def change(self, batch: Batch, change: BatchChange) -> None:
        """Count what an answer did to a batch."""
        if isinstance(change, Failed):
            return
        self._unsettled.discard(batch.key)
        watched = [tally for tally in self._watched if tally.agent_id == batch.agent_id]
        match change:
            case Acknowledged():
                self.acknowledged += change.synced
                self.skipped_by_platform += len(batch.rows) - change.synced
                for tally in watched:
                    tally.acknowledged += change.synced
            case Dead():
                self.refused += 1
                for tally in watched:
                    tally.refused += 1
            case SetApart():
                self.set_apart += 1
            case Split():
                pass
            case _:
                assert_never(change)
