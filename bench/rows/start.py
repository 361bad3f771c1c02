"""What a process costs before it does anything: the time until `initialize` is answered, the memory when it is idle."""

import tempfile
from functools import partial
from pathlib import Path

from bench.contestants import FLOOR, PLUGIN, contestants
from bench.race import race
from bench.stdio import Contestant, Running
from bench.values import Figure, Table, at_most, ratio

_ROUNDS = 2  # for each that was asked for


async def measure(runs: int) -> list[Table]:
    """Start each of them anew in each round."""
    with tempfile.TemporaryDirectory() as folder:
        rivals = contestants(Path(folder))
        took: dict[str, list[tuple[float, float]]] = {rival.name: [] for rival in rivals}
        turns = {rival.name: partial(_start, rival, took[rival.name]) for rival in rivals}
        wall = await race(turns, runs * _ROUNDS)
        memory = await race({rival.name: partial(_memory, rival) for rival in rivals}, runs, warm_up=False)
    cpu = tuple(Figure(contestant=name, values=tuple(cpu_ms for _, cpu_ms in took[name][1:])) for name in took)
    return [
        _started("start", "From the start of the process to the answer of initialize", wall),
        _started("start-cpu", "Processor time until initialize is answered", cpu),
        _occupied(memory),
    ]


def _started(row: str, title: str, figures: tuple[Figure, ...]) -> Table:
    goals = (at_most("to the floor", ratio(figures, PLUGIN, FLOOR), 1.5),)
    return Table(row=row, title=title, unit="ms", figures=figures, goals=goals)


def _occupied(figures: tuple[Figure, ...]) -> Table:
    why = (
        "Of the 22.8 MiB beyond the floor, aiohttp takes 12.6 (2.7 of them the first use of OpenSSL and the two TLS "
        "settings that it makes while it is imported, 1.1 libstdc++ for one of its parts, 1.1 urllib and email, 1 "
        "attrs), httpx 1.1, the bridge between them 1, our own TLS settings and what starts with the services 1.7, "
        "the plugin before initialize 2.7, SQLite and the store 1.5, sync and presence 2.2. Nothing of it is slack: "
        "96 % of the heap is live objects, and giving back the rest, in whatever thread the imports run, changes "
        "nothing. What would have to give is aiohttp: over httpx's own connections it would be 36 MiB, 1.7 of the "
        "floor, and send a tenth of the requests."
    )
    return Table(
        row="idle-memory",
        title="Memory of the idle process, all that it needs loaded",
        unit="MiB",
        figures=figures,
        goals=(at_most("to the floor", ratio(figures, PLUGIN, FLOOR), 1.8, why=why),),
        note="Resident memory, after some thousand requests.",
    )


async def _start(rival: Contestant, took: list[tuple[float, float]]) -> float:
    with Running(rival) as process:
        wall_s, cpu_s = process.greet()
    took.append((wall_s * 1000, cpu_s * 1000))
    return wall_s * 1000


async def _memory(rival: Contestant) -> float:
    with Running(rival) as process:
        process.greet()
        process.settle()
        process.load(20)
        process.settle()
        return process.memory_mib()
