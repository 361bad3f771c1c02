"""Presence at scale: everything sent for the first time, nothing to send, a guild that hangs, what cells weigh."""

import statistics
import time
from collections.abc import Awaitable, Callable

from bench.fleet import Guilds, guilds, pairs, plugin
from bench.process import private_mib
from bench.puts import Send, show_all, with_aiohttp, with_httpx
from bench.race import race
from bench.values import Figure, Table, at_least, at_most, ratio

AGENTS, EACH = 1_000, 10
CELLS = AGENTS * EACH
PART = 10  # the slow contestants do a tenth or a fiftieth of the work, and are reckoned up
SERIAL_PART = 50
OURS, FLOOR, SHARED, SERIAL = "agentic-sync", "aiohttp (floor)", "httpx, one shared client", "one after the other"
HUNG = "g9"
QUIET_TICKS = 5
FOR_EVER = {"refresh_s": 86_400}


async def measure(runs: int) -> list[Table]:
    """Measure all four."""
    async with guilds() as town:
        return [*await _cold(town, runs), *await _quiet(town, runs), await _hang(town, runs), await _weight(town, runs)]


async def _cold(town: Guilds, runs: int) -> list[Table]:
    cpu: dict[str, list[float]] = {OURS: [], FLOOR: [], SHARED: [], SERIAL: []}

    async def ours() -> float:
        await town.clear()
        async with plugin(town, pairs(AGENTS), interval_s=5, **FOR_EVER) as it:
            done = await town.wait(CELLS)
            cpu[OURS].append(it.cpu_s / CELLS * 1e6)
            return done.at - it.began_at

    async def other(name: str, send: Send, part: int, in_flight: int) -> float:
        await town.clear()
        began = time.process_time()
        took_s = await show_all(send, town, pairs(AGENTS // part), in_flight=in_flight)
        cpu[name].append((time.process_time() - began) * part / CELLS * 1e6)
        return took_s * part

    async with with_aiohttp() as fast, with_httpx() as shared:
        contestants: dict[str, Callable[[], Awaitable[float]]] = {
            OURS: ours,
            FLOOR: lambda: other(FLOOR, fast, 1, 80),
            SHARED: lambda: other(SHARED, shared, PART, 64),
            SERIAL: lambda: other(SERIAL, fast, SERIAL_PART, 1),
        }
        figures = await race(contestants, runs)
    burnt = tuple(Figure(contestant=name, values=tuple(values[-runs:])) for name, values in cpu.items())
    return [
        Table(
            row="presence",
            title="Presence: 1,000 agents shown in 10 guilds for the first time, 10 ms a PUT",
            unit="s",
            figures=figures,
            goals=(
                at_least("times as fast as the serial loop:", ratio(figures, SERIAL, OURS), 30),
                at_least("times as fast as one httpx client:", ratio(figures, SHARED, OURS), 8),
                at_least("share of the floor's speed:", ratio(figures, FLOOR, OURS), 0.35),
            ),
            note=(
                "All log 1,000 agents in and PUT 10,000 presences; the plugin asks its host 1,000 times besides. "
                "From the first question to the last answer. The floor has 80 requests in flight, as many as the "
                f"plugin; the httpx client 64. Reckoned up from a part: that client ({PART}), the serial loop "
                f"({SERIAL_PART}), which is the Go program's way and has aiohttp's speed."
            ),
        ),
        Table(row="presence-cpu", title="The same, CPU of the client a PUT", unit="µs", figures=burnt),
    ]


async def _quiet(town: Guilds, runs: int) -> list[Table]:
    await town.clear()
    cpu: list[float] = []
    reads: list[float] = []
    async with plugin(town, pairs(AGENTS), interval_s=1, **FOR_EVER) as it:
        await town.wait(CELLS)
        await _turns(it.host.wait_for_reads, it.host.reads["a0"] + 2)
        for _ in range(runs):
            turn, cpu_before, reads_before = it.host.reads["a0"], it.cpu_s, it.reads
            await _turns(it.host.wait_for_reads, turn + QUIET_TICKS)
            cpu.append((it.cpu_s - cpu_before) / QUIET_TICKS)
            reads.append((it.reads - reads_before) / QUIET_TICKS)
        puts = (await town.wait(0)).puts - CELLS
    figures = (Figure(contestant="agentic-sync, CPU a turn", values=tuple(cpu)),)
    return [
        Table(
            row="presence-quiet",
            title="Presence: a turn over 1,000 agents in 10 guilds when nothing changed",
            unit="s of CPU",
            figures=figures,
            goals=(
                at_most("PUTs:", puts, 0),
                at_most("questions to the host a turn:", statistics.median(reads), AGENTS),
                at_most("CPU seconds a turn:", figures[0].median, 0.1),
            ),
        )
    ]


async def _turns(wait_for_reads: Callable[[str, int], Awaitable[None]], count: int) -> None:
    """Wait until the last of a turn was asked as well."""
    await wait_for_reads("a0", count)
    await wait_for_reads(f"a{AGENTS - 1}", count)


async def _hang(town: Guilds, runs: int) -> Table:
    async def nine(*hung: str) -> float:
        await town.clear(hung=hung)
        async with plugin(town, pairs(AGENTS), interval_s=5, **FOR_EVER) as it:
            done = await town.wait(CELLS - AGENTS, without=[HUNG])
            return done.at - it.began_at

    figures = await race({"all ten answer": nine, "one of ten hangs": lambda: nine(HUNG)}, runs, warm_up=False)
    return Table(
        row="presence-hang",
        title="Presence: the first showing in nine guilds, while the tenth hangs",
        unit="s",
        figures=figures,
        goals=(at_most("times as long:", ratio(figures, "one of ten hangs", "all ten answer"), 1.1),),
    )


async def _weight(town: Guilds, runs: int) -> Table:
    async def weigh(agents: int) -> float:
        await town.clear()
        async with plugin(town, pairs(AGENTS), enabled=agents > 0, interval_s=1, **FOR_EVER) as it:
            await town.wait(agents * EACH)
            if agents:
                await _turns(it.host.wait_for_reads, it.host.reads["a0"] + 2)
            else:
                await it.host.call("agentic.presence.status", {"agent_id": "a0"})
            return private_mib(it.host.pid)

    full, empty = "1,000 agents in 10 guilds", "the same configuration, presence off"
    figures = await race({full: lambda: weigh(AGENTS), empty: lambda: weigh(0)}, runs, warm_up=False)
    more = [one - other for one, other in zip(figures[0].values, figures[1].values, strict=True)]
    return Table(
        row="presence-memory",
        title="Presence: memory that belongs to the process alone",
        unit="MiB",
        figures=figures,
        goals=(at_most("MiB for 10,000 cells:", statistics.median(more), 8),),
        note="The difference holds agents, sessions with their tokens, cells, and the connections to ten guilds.",
    )
