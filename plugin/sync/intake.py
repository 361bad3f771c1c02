"""Takes finished work into the outbox: records that a caller hands in, and those that a scan finds."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

from plugin.clock import Clock
from plugin.config import Queue
from plugin.store.interface import Caps, Enqueued, Record, Store
from plugin.sync.scan import Candidate, Scanner, ScanResult

_LOG = logging.getLogger(__name__)
_MARKS = 1000
_LOAD_RECORDS = 200
_LOAD_BYTES = 4 * 1024 * 1024
_MAX_LOGGED = 20


class Intake:
    """Fill one store's outbox; scans take turns, and one serves everybody who asked before it began."""

    def __init__(self, *, store: Store, scanner: Scanner, clock: Clock) -> None:
        self._store = store
        self._scanner = scanner
        self._clock = clock
        self._turn = asyncio.Lock()
        # A cancelled caller leaves its thread behind: the next scan must wait for it, wherever it is.
        self._scanning = threading.Lock()
        self._begun = 0
        self._done = 0
        self._left_out = 0

    async def take(self, agent_id: str, records: Sequence[Record], *, queue: Queue) -> Enqueued:
        """Store records that a caller handed in, all or none, and say how the agent's queue stands then.

        QueueFull or StoreUnavailable when they cannot be stored.
        """
        return await self._store.enqueue(agent_id, records, caps=_caps(queue), now_ms=self._now_ms())

    async def scan(self, agent_id: str, *, platform: str, queue: Queue, fleet_node_id: int | None = None) -> int:
        """Queue finished workspaces that neither the platform nor the queue has; return how many had no room."""
        ticket = self._begun
        async with self._turn:
            if self._done > ticket:
                return self._left_out
            self._begun += 1
            begun = self._begun
            result = await asyncio.to_thread(self._scan)
            _log_problems(result)
            fresh = await self._fresh(platform, result.candidates)
            self._left_out = await self._queue(agent_id, fresh, platform, _caps(queue), fleet_node_id)
            self._done = begun
            return self._left_out

    def _scan(self) -> ScanResult:
        with self._scanning:
            return self._scanner.scan()

    async def _fresh(self, platform: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        fresh: list[Candidate] = []
        for start in range(0, len(candidates), _MARKS):
            part = candidates[start : start + _MARKS]
            marks = [(one.id, one.fingerprint, one.core_fingerprint) for one in part]
            known = set(await self._store.known(platform, marks))
            fresh.extend(one for position, one in enumerate(part) if position not in known)
        return fresh

    async def _queue(
        self, agent_id: str, fresh: Sequence[Candidate], platform: str, caps: Caps, fleet_node_id: int | None
    ) -> int:
        start = 0
        while start < len(fresh):
            records, start = await asyncio.to_thread(_load, fresh, start, fleet_node_id)
            enqueued = await self._store.enqueue(
                agent_id, records, caps=caps, now_ms=self._now_ms(), scanned_for=platform
            )
            if enqueued.left_out:
                left_out = enqueued.left_out + len(fresh) - start
                _LOG.warning("the queue is full; finished work stays on disk", extra={"fields": {"records": left_out}})
                return left_out
        return 0

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)


def _load(candidates: Sequence[Candidate], start: int, fleet_node_id: int | None) -> tuple[list[Record], int]:
    """Read the records from `start` on, as many as fit in memory at a time; return them and where to go on."""
    records: list[Record] = []
    size = 0
    for position in range(start, len(candidates)):
        record = candidates[position].load()
        if record is not None:
            records.append(replace(record, fleet_node_id=fleet_node_id))
            size += len(record.body)
        if len(records) >= _LOAD_RECORDS or size >= _LOAD_BYTES:
            return records, position + 1
    return records, len(candidates)


def _caps(queue: Queue) -> Caps:
    return Caps(records=queue.max_records, bytes=queue.max_bytes)


def _log_problems(result: ScanResult) -> None:
    for problem in result.new_problems[:_MAX_LOGGED]:
        _LOG.warning(
            "a workspace or part of it is skipped", extra={"fields": {"path": problem.path, "problem": problem.text}}
        )
    more = len(result.new_problems) - _MAX_LOGGED
    if more > 0:
        _LOG.warning("more workspaces are skipped", extra={"fields": {"problems": more}})
