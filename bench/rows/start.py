"""What a process costs before it does anything: the time until `initialize` is answered, the memory when it is idle."""

import tempfile
from functools import partial
from pathlib import Path

from bench.contestants import FLOOR, PLUGIN, contestants, packages
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
        idle = (*rivals, packages())
        memory = await race({rival.name: partial(_memory, rival) for rival in idle}, runs, warm_up=False)
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
        "The required packages alone, made ready as the plugin has them idle, take 39.4 MiB, 1.85 of the floor: the "
        "goal is below what they leave. Of the 18.2 MiB between, 5.2 are pages of shared libraries (OpenSSL 1.3, "
        "SQLite 1.4, libstdc++ 1, which only frozenlist needs), and 2.8 the authorities of three TLS settings: 0.7 of "
        "the one that is used, the rest of two that aiohttp makes while it is imported, where the system has a file of "
        "authorities; it can't be told not to. The rest is aiohttp, httpx, and email, urllib and attrs, which they "
        "import. The plugin adds 5.2: 3.1 its code, 1.1 the open store, the rest settings, methods and threads. "
        "Nothing of it is slack: of 17 MiB in Python's arenas 0.9 are free, of 10.4 in those of the C library 0.5, the "
        "garbage collector finds 500 objects, and to have one arena for all threads saves 0.4. What would have to give "
        "is aiohttp: over httpx's own connections bare would be 31.5 MiB and the plugin 37, 1.7 of the floor, and send "
        "a tenth of the requests."
    )
    return Table(
        row="idle-memory",
        title="Memory of the idle process, all that it needs loaded",
        unit="MiB",
        figures=figures,
        goals=(at_most("to the floor", ratio(figures, PLUGIN, FLOOR), 1.8, why=why),),
        note="Resident memory, after some thousand requests. Bare: aiohttp, httpx and the bridge between them, TLS "
        "with its authorities, SQLite, msgspec, and of jsonrpcserver what dispatches, as the plugin loads it (all of "
        "it would be 3 more).",
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
