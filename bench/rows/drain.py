"""How fast a full queue goes out, to a platform in a process of its own, beside the same POSTs alone."""

import asyncio
import os
import time
from contextlib import closing
from typing import cast

import aiohttp

from bench import drain_bare
from bench.platform import TOKEN
from bench.process import cpu_s
from bench.race import race
from bench.stage import config, fill, folder, launched, records, serving
from bench.values import Figure, Table, at_least, ratio

RECORDS = 20_000
BATCH = 50
IN_FLIGHT = 2
AGENTS = ("aider", "claude", "codex", "gemini")  # each one's requests go one after the other
PLUGIN, FLOOR = "agentic-sync", "aiohttp, the POSTs alone"
BARE = "the same work with the packages alone"  # what is above the floor here is the job's, not the plugin's
WHY = (
    "The same work with the packages alone misses it too, at about 0.37: two threads that share one interpreter lock "
    "take 0.63 ms of processor time for a request of 50 records, and the rate asked for leaves 0.52 ms of time. "
    "There the disk's thread takes 0.31 ms (reading, checking and claiming 0.07, from the outbox to the ledger 0.09, "
    "a commit of 43 pages for two requests 0.14) and waits 0.07 ms for the disk; HTTP takes 0.14 ms, and waiting for "
    "each other the rest. The plugin takes 0.9 ms: its thread 0.41 ms (reading 0.12: it keeps order among agents, "
    "whatever was split or set apart; recording 0.13: it counts, and keeps the gate; commits 0.15), HTTP 0.14 ms, "
    "the sender 0.1 ms, the turns of two threads the rest. Were what is acknowledged moved in bulks of 2,000 records, "
    "the packages alone would come to about 0.43; so the loop would have to cost less as well."
)
LONGEST_S = 300.0


async def measure(runs: int) -> list[Table]:
    """Measure the drain's rate, and what processor time a request takes."""
    cpu: dict[str, list[float]] = {FLOOR: [], BARE: [], PLUGIN: []}
    contestants = {
        FLOOR: lambda: _posted(cpu[FLOOR]),
        BARE: lambda: _drained_barely(cpu[BARE]),
        PLUGIN: lambda: _drained(cpu[PLUGIN]),
    }
    figures = await race(contestants, runs)
    spent = tuple(Figure(contestant=name, values=tuple(values[-runs:])) for name, values in cpu.items())
    return [
        Table(
            row="drain",
            title=f"{RECORDS:,} queued records sent, {BATCH} a request, {IN_FLIGHT} requests at once",
            unit="records/s",
            figures=figures,
            goals=(at_least(f"{PLUGIN}, as a share of {FLOOR}", ratio(figures, PLUGIN, FLOOR), 0.5, why=WHY),),
            note="The plugin reads each batch from the disk, checks it, sends it, and records there what came of it.",
        ),
        Table(
            row="drain-cpu",
            title="Processor time of the sender for a request of 50 records",
            unit="ms",
            figures=spent,
        ),
    ]


async def _drained(cpu: list[float]) -> float:
    """Queue the records without a token, then hand it over; return records a second until all are recorded."""
    with folder() as home:
        async with launched(home) as host, serving(RECORDS) as (url, came):
            await fill(host, AGENTS, RECORDS)
            used_s, started = cpu_s(host.pid), time.perf_counter()
            await host.call("configure", {"config": config(home, url)})
            async with asyncio.timeout(LONGEST_S):
                await came.readline()
                for agent in AGENTS:
                    await host.call("agentic.sync.push", {"agent_id": agent, "queue_only": True})
            took_s = time.perf_counter() - started
            cpu.append((cpu_s(host.pid) - used_s) * 1000 / (RECORDS / BATCH))
            status = cast("dict[str, object]", await host.call("agentic.sync.status"))
            assert (status["queued"], status["dead"], status["ledger"]) == (0, 0, RECORDS)
    return RECORDS / took_s


async def _drained_barely(cpu: list[float]) -> float:
    """Drain the same records from the least queue that keeps the promises."""
    queued = ((_agent(number), one.id, one.body) for number, one in enumerate(records(range(RECORDS))))
    with folder() as home, closing(drain_bare.opened(home / "bare.db", queued)) as db:
        async with serving() as (url, _):
            used_s, started = cpu_s(os.getpid()), time.perf_counter()
            await drain_bare.drain(db, url, TOKEN, agents=AGENTS, most=BATCH)
            took_s = time.perf_counter() - started
            cpu.append((cpu_s(os.getpid()) - used_s) * 1000 / (RECORDS / BATCH))
        assert drain_bare.left(db) == (0, RECORDS)
    return RECORDS / took_s


async def _posted(cpu: list[float]) -> float:
    """Send the same bodies, with the same headers."""
    bodies = iter(_bodies())
    async with serving() as (url, _), aiohttp.ClientSession() as session:

        async def sender() -> None:
            for number, body in bodies:
                headers = {
                    "authorization": f"Bearer {TOKEN}",
                    "content-type": "application/json",
                    "accept": "application/json",
                    "idempotency-key": f"{number:064x}",
                }
                async with session.post(f"{url}/v1/agent/sync", data=body, headers=headers) as answer:
                    assert answer.status == 201  # noqa: PLR2004 - "created", as the contract has it
                    await answer.read()

        used_s, started = cpu_s(os.getpid()), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(sender())
        took_s = time.perf_counter() - started
        cpu.append((cpu_s(os.getpid()) - used_s) * 1000 / (RECORDS / BATCH))
    return RECORDS / took_s


def _agent(number: int) -> str:
    """Return whose a record is: 500 of one agent, then 500 of the next."""
    return AGENTS[number // 500 % len(AGENTS)]


def _bodies() -> list[tuple[int, bytes]]:
    made = records(range(RECORDS))
    return [
        (
            first,
            b'{"agent_id":"%b","dispatches":[%b]}'
            % (_agent(first).encode(), b",".join(one.body for one in made[first : first + BATCH])),
        )
        for first in range(0, RECORDS, BATCH)
    ]
