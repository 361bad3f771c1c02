"""From the host's word that an agent changed to the guilds' acknowledgement, at 100 changes a second."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from bench.fleet import Guilds, guilds, pairs, plugin
from bench.guilds import DELAY_S
from bench.puts import put_one, seats, with_aiohttp
from bench.race import race
from bench.values import Figure, Table, at_most

AGENTS, EACH = 1_000, 10
CHANGES, CHANGES_PER_S = 500, 100
OURS, FLOOR = "agentic-sync", "aiohttp at once (floor)"

Change = Callable[[int, str], Awaitable[object]]


async def measure(runs: int) -> list[Table]:
    """Measure the median and the slowest hundredth, of all PUTs of a round."""
    slow: dict[str, list[float]] = {OURS: [], FLOOR: []}
    statuses = {OURS: "idle", FLOOR: "idle"}
    async with guilds() as town, with_aiohttp() as send, plugin(town, pairs(AGENTS), refresh_s=86_400) as it:
        await town.wait(AGENTS * EACH)
        places = await seats(send, town)

        async def tell(number: int, status: str) -> None:
            await it.host.set_state(f"a{number}", status)

        async def put(number: int, status: str) -> None:
            async with asyncio.TaskGroup() as group:
                for seat in places:
                    group.create_task(put_one(send, seat, f"user-a{number}", status))

        async def contestant(name: str, change: Change) -> float:
            statuses[name] = "busy" if statuses[name] == "idle" else "idle"
            delays_ms = sorted(await _delays_ms(town, change, statuses[name]))
            slow[name].append(delays_ms[round(len(delays_ms) * 0.99) - 1])
            return statistics.median(delays_ms)

        figures = await race({OURS: lambda: contestant(OURS, tell), FLOOR: lambda: contestant(FLOOR, put)}, runs)
    slowest = tuple(Figure(contestant=name, values=tuple(values[-runs:])) for name, values in slow.items())
    title = "Presence: from the host's notification until {} is shown, 100 changes a second in 10 guilds each"
    return [
        Table(
            row="latency",
            title=title.format("half of it"),
            unit="ms beyond the guild's own 10",
            figures=figures,
            goals=(at_most("ms beyond the guild's own, p50:", figures[0].median, 40),),
            note="The plugin waits 25 ms for a change that follows; until the guild's answer is sent.",
        ),
        Table(
            row="latency-p99",
            title=title.format("99 % of it"),
            unit="ms beyond the guild's own 10",
            figures=slowest,
            goals=(at_most("ms beyond the guild's own, p99:", slowest[0].median, 200),),
        ),
    ]


async def _delays_ms(town: Guilds, change: Change, status: str) -> list[float]:
    """Change the agents one after the other at an even pace; return how much later than possible each PUT was."""
    await town.clear()
    told: dict[str, float] = {}
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(CHANGES):
            await asyncio.sleep(max(0.0, began + number / CHANGES_PER_S - time.monotonic()))
            told[f"user-a{number}"] = time.monotonic()
            group.create_task(_awaited(change(number, status)))
    await town.wait(CHANGES * EACH)
    return [(at - told[user] - DELAY_S) * 1000 for user, _, at in await town.log()]


async def _awaited(change: Awaitable[object]) -> None:
    await change
