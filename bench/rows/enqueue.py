"""What it costs until work is on the disk for good: alone, for many callers at once, and behind a long queue."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec

from bench import outbox
from bench.race import race
from bench.stage import fill, folder, launched, opened, records, work
from bench.values import Table, at_least, at_most, ratio
from plugin.loopback.host import LoopbackHost
from plugin.store.interface import Caps, Record
from plugin.store.sqlite import SqliteStore

CALLS = 600
TOGETHER = 4_096
CALLERS = 64
LONG = 100_000
CAPS = Caps(records=10_000_000, bytes=1 << 40)

WIRE = "agentic-sync, the whole call over the wire"
STORE = "agentic-sync, the store's enqueue"
BARE = "SQLite and a writer's thread alone (bare)"
FLOOR = "append + fdatasync"
WHY_ALONE = (
    "Where append and sync take 125 µs, SQLite behind a thread takes 155 and an enqueue 230. The bare one pays 30 for "
    "the way to the thread and back; the rest is its commit, which writes over a log that has its room already and so "
    "syncs as fast as an append. Of the 75 more that an enqueue takes, 11 see that a full disk would still let the "
    "queue drain, 20 count what is there, what the agent has and what came, and the rest is wider rows, a checksum, "
    "and Python run by threads that have just slept, at half its usual speed. To reach 0.8, the caps, the counts and "
    "the room set aside would have to go."
)
WHY_TOGETHER = (
    "A call takes 16 µs: 7 to look whether it is queued, for its checksum, its row and two indexes, 4 for its share "
    "of the commit and the log, 1 for the thread's list of jobs, 3 for the caller, and 1 or 2 of waiting for the disk. "
    "So eight times the rate of a sync for each record takes a sync of 0.128 ms or more. Bare, it is 10: a third of "
    "the difference is the wider row, the rest is what Python does to keep the caps, say what became of each call and "
    "undo one without the others."
)
GO = "the Go way: the whole queue read and written as JSON"

Enqueue = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Where work can be put, all on one disk, and the numbers of records that none of them has seen."""

    home: Path
    host: LoopbackHost
    store: SqliteStore
    bare: outbox.Outbox
    numbers: Iterator[int]

    def records(self, many: int) -> list[Record]:
        """Return so many records that nobody has seen."""
        return records([next(self.numbers) for _ in range(many)])


async def measure(runs: int) -> list[Table]:
    """Measure the three tables."""
    with folder() as home:
        async with (
            launched(home) as host,
            opened(home / "store") as store,
            outbox.opened(home / "bare.db") as bare,
        ):
            at = Stores(home=home, host=host, store=store, bare=bare, numbers=count())
            return [await _alone(at, runs), await _together(at, runs), await _behind(home, runs)]


async def _alone(at: Stores, runs: int) -> Table:
    figures = await race(
        {
            FLOOR: lambda: _appended(at.home / "log", at.records(CALLS)),
            BARE: lambda: rate(_put(at.bare, at.records(CALLS)), CALLS),
            STORE: lambda: rate(_stored(at.store, at.records(CALLS)), CALLS),
            WIRE: lambda: rate(over_wire(at.host), CALLS),
        },
        runs,
    )
    share, wire = ratio(figures, STORE, FLOOR), ratio(figures, WIRE, FLOOR)
    return Table(
        row="enqueue",
        title="Work put on the disk for good, by one caller",
        unit="records/s",
        figures=figures,
        goals=(at_least(f"{STORE}, as a share of {FLOOR}", share, 0.8, why=WHY_ALONE),),
        note=f"The call over the wire, with host and plugin on this machine, reaches {wire:.2f} of {FLOOR}.",
    )


async def _together(at: Stores, runs: int) -> Table:
    figures = await race(
        {
            FLOOR: lambda: _appended(at.home / "log", at.records(CALLS)),
            BARE: lambda: rate(_put(at.bare, at.records(TOGETHER)), TOGETHER, callers=CALLERS),
            STORE: lambda: rate(_stored(at.store, at.records(TOGETHER)), TOGETHER, callers=CALLERS),
            WIRE: lambda: rate(over_wire(at.host), TOGETHER, callers=CALLERS),
        },
        runs,
    )
    share, wire = ratio(figures, STORE, FLOOR), ratio(figures, WIRE, FLOOR)
    return Table(
        row="enqueue-together",
        title=f"Work put on the disk for good, by {CALLERS} callers at once",
        unit="records/s",
        figures=figures,
        goals=(at_least(f"{STORE}, against {FLOOR}", share, 8.0, why=WHY_TOGETHER),),
        note=f"{FLOOR} syncs each record, as it returns only then. Over the wire: {wire:.1f} of it.",
    )


async def _behind(home: Path, runs: int) -> Table:
    short, long = "agentic-sync, nothing queued", f"agentic-sync, {LONG:,} queued"
    go_short, go_long = "the Go way, nothing queued", f"the Go way, {LONG:,} queued"
    async with queues(home, (0, LONG)) as hosts:
        queued = await race({short: lambda: _took(hosts[0], 300), long: lambda: _took(hosts[1], 300)}, runs)
    go = {go_short: lambda: rewritten(home, 0, 20), go_long: lambda: rewritten(home, LONG, 1)}
    figures = (*queued, *await race(go, runs, warm_up=False))
    return Table(
        row="enqueue-behind",
        title=f"One more record behind {LONG:,}",
        unit="ms",
        figures=figures,
        goals=(at_most(f"{long}, against {short}", ratio(figures, long, short), 1.2),),
        note=f"{GO}. All by one caller; agentic-sync is called over the wire.",
    )


@asynccontextmanager
async def queues(home: Path, lengths: Sequence[int]) -> AsyncGenerator[list[LoopbackHost]]:
    """Launch a plugin for each length, with so many records queued."""
    async with AsyncExitStack() as stack:
        hosts: list[LoopbackHost] = []
        for length in lengths:
            host = await stack.enter_async_context(launched(home / f"queue-{length}"))
            await fill(host, ("bench",), length)
            hosts.append(host)
        yield hosts


async def _took(host: LoopbackHost, calls: int) -> float:
    return 1000 / await rate(over_wire(host), calls)


async def rate(enqueue: Enqueue, calls: int, *, callers: int = 1) -> float:
    """Return how many calls a second so many callers get answered, one after the other each."""
    places = iter(range(calls))

    async def caller() -> None:
        for place in places:
            await enqueue(place)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return calls / (time.perf_counter() - started)


_unique = count(1_000_000)


def over_wire(host: LoopbackHost) -> Enqueue:
    """Queue a piece of work by the plugin's action; without a token it stays in the queue."""

    def call(_place: int) -> Awaitable[object]:
        given = {"agent_id": "bench", "queue_only": True, "dispatches": [work(next(_unique))]}
        return host.call("agentic.sync.push", given)

    return call


def _put(bare: outbox.Outbox, given: Sequence[Record]) -> Enqueue:
    rows = [("bench", record.id, record.fingerprint, record.body) for record in given]
    return lambda place: bare.put(rows[place])


def _stored(store: SqliteStore, given: Sequence[Record]) -> Enqueue:
    return lambda place: store.enqueue("bench", [given[place]], caps=CAPS, now_ms=0)


async def _appended(path: Path, given: Sequence[Record]) -> float:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        started = time.perf_counter()
        for record in given:
            os.write(fd, record.body + b"\n")
            os.fdatasync(fd)
        return len(given) / (time.perf_counter() - started)
    finally:
        os.close(fd)


async def rewritten(home: Path, length: int, calls: int) -> float:
    """Return the milliseconds of an enqueue that reads, decodes, encodes and replaces a queue of so many entries."""
    path, part = home / "queue.json", home / "queue.json.tmp"
    path.write_bytes(msgspec.json.encode([_entry(number) for number in range(length)]))
    started = time.perf_counter()
    for number in range(calls):
        entries = msgspec.json.decode(path.read_bytes())
        entries.append(_entry(length + number))
        part.write_bytes(msgspec.json.encode(entries))
        part.replace(path)
    return (time.perf_counter() - started) / calls * 1000


def _entry(number: int) -> dict[str, object]:
    return {"agent_id": "bench", "dispatches": [work(number)], "queued_at": "2026-04-14T12:00:00Z"}
