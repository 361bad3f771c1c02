"""How presence grows: what one more agent and one more guild cost when there are few and when there are many."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.fleet import Guilds, Pairs, guilds, pairs, plugin
from bench.process import private_mib
from bench.values import Curve, Goal, Table, at_most

AGENTS = (10, 100, 1_000, 10_000)
GUILDS = (1, 10, 100, 1_000)
IN_EACH_GUILD = 10  # agents
TURNS = 4
FLAT = 1.5  # times the cost of one more at a tenth of the size


@dataclass(frozen=True, slots=True)
class Size:
    """What a fleet of one size took in one run: first showing, a turn without changes, memory."""

    first_ms: float
    turn_ms: float
    memory_kib: float


Measured = dict[int, list[Size]]


async def presence_curves(runs: int) -> list[Table]:
    """Measure fleets of growing size; what one more costs is the difference between two, shared out."""
    async with guilds() as town:
        agents: Measured = {size: [] for size in AGENTS}
        places: Measured = {size: [] for size in GUILDS}
        for _ in range(runs):
            for size in AGENTS:
                agents[size].append(await _size(town, pairs(size, 1), guilds_in_all=10))
            for size in GUILDS:
                bound = [f"g{number}" for number in range(size)]
                members = {f"a{number}": bound for number in range(IN_EACH_GUILD)}
                places[size].append(await _size(town, members, guilds_in_all=size))
    return [*_tables("agent", agents, "in one of ten guilds"), *_tables("guild", places, f"of {IN_EACH_GUILD} agents")]


async def _size(town: Guilds, members: Pairs, *, guilds_in_all: int) -> Size:
    await town.clear(guilds=guilds_in_all)
    async with plugin(town, members, interval_s=5, refresh_s=86_400) as it:
        await town.wait(sum(map(len, members.values())))
        first_ms = it.cpu_s * 1000
        agents = list(members)

        async def turn(number: int) -> float:
            for agent in (agents[0], agents[-1]):
                await it.host.wait_for_reads(agent, number, timeout_s=60)
            return it.cpu_s * 1000

        done = it.host.reads[agents[0]] + 1
        before_ms = await turn(done)
        after_ms = await turn(done + TURNS)
        return Size(first_ms, (after_ms - before_ms) / TURNS, private_mib(it.host.pid) * 1024)


def _tables(what: str, sizes: Measured, which: str) -> list[Table]:
    showing = _curve("first showing", sizes, lambda size: size.first_ms)
    turn = _curve("a turn without changes", sizes, lambda size: size.turn_ms)
    memory = _curve("memory", sizes, lambda size: size.memory_kib)
    title = f"Growth: one more {what} ({which})"
    return [
        Table(
            row=f"growth-{what}s",
            title=f"{title}, CPU",
            unit="ms of CPU",
            # A turn asks the host about agents; guilds cost it nothing that could be told from noise.
            curves=(showing, turn) if what == "agent" else (showing,),
            goals=(_flat(showing, what),),
            x=f"{what}s",
        ),
        Table(
            row=f"growth-{what}s-memory",
            title=f"{title}, memory",
            unit="KiB",
            curves=(memory,),
            goals=(_flat(memory, what),),
            x=f"{what}s",
        ),
    ]


def _curve(name: str, sizes: Measured, value: Callable[[Size], float]) -> Curve:
    """Return what one more costs between each size and the next."""
    points = [
        (float(large), _one_more(small, large, sizes, value)) for small, large in itertools.pairwise(sorted(sizes))
    ]
    return Curve(name=name, points=tuple(points))


def _one_more(small: int, large: int, sizes: Measured, value: Callable[[Size], float]) -> float:
    rounds = zip(sizes[small], sizes[large], strict=True)
    return statistics.median((value(b) - value(a)) / (large - small) for a, b in rounds)


def _flat(curve: Curve, what: str) -> Goal:
    (_, few), (many, cost) = curve.points[-2:]
    return at_most(f"{curve.name}, one more {what} at {many:,.0f}, times that at a tenth:", cost / few, FLAT)
